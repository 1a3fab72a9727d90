//! Sizes on a command line: `4096`, `64K`, `512M`, `4G`, as QEMU reads them.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// Text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no size; expected a number of bytes, or of K, M, G or T, each 1024 times the one before"
)]
pub(crate) struct SizeError {
    text: String,
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let refused = || SizeError { text: text.to_owned() };
        let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(refused()),
        };
        let number: u64 = digits.parse().map_err(|_| refused())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(refused)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift {
                return write!(f, "{:.1} {unit}", self.0 as f64 / (1_u64 << shift) as f64);
            }
        }
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        let sizes = ["4096", "64K", "512M", "4g", "1T", "2GiB"].map(|text| text.parse::<Size>().unwrap().0);
        assert_eq!(sizes, [4096, 64 << 10, 512 << 20, 4 << 30, 1 << 40, 2 << 30]);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "4X", "-1", "1.5G", "99999999999T"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }
}
