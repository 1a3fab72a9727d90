//! Enumerations that are words in JSON.

/// Declares an enumeration whose values are words of QEMU's schema, with their spelling beside them.
macro_rules! words {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])* $value:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $word)] $value,)* }

        impl $name {
            /// Every value, in QEMU's order.
            pub const ALL: &[Self] = &[$(Self::$value),*];

            /// QEMU's word for it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $word,)* }
            }

            /// The value of this word, if it is one.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$value),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl crate::arguments::Argument for $name {
            fn read(value: serde_json::Value, path: &str) -> Result<Self, crate::CommandError> {
                let word = <String as crate::arguments::Argument>::read(value, path)?;
                Self::from_word(&word).ok_or_else(|| crate::arguments::not_accepted(path, &word))
            }
        }
    };
}
pub(crate) use words;
