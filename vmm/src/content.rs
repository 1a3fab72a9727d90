//! What a page of the guest contains: a function of (seed, class, page, generation), nothing else.
//!
//! A page that is not zero proves itself: its first four words are a tag, its own number, its generation and a
//! checksum of the other 511 words. The body is cheap enough to be computed while it is written (about
//! 1 ns per word), and a verifier computes it again from the page's number.

use limosa_pages::{PAGE_BYTES, PageIndex};

/// 64-bit words in a page.
pub(crate) const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Words before the body: tag, page, generation, checksum.
pub(crate) const HEADER_WORDS: usize = 4;
/// The body is written in groups of four words: (512 - 4) / 4 = 127 groups.
pub(crate) const GROUP_WORDS: usize = 4;
pub(crate) const BODY_GROUPS: usize = (PAGE_WORDS - HEADER_WORDS) / GROUP_WORDS;

/// First word of a page that proves itself, in memory order `LIMOSApg`.
pub(crate) const TAG: u64 = u64::from_le_bytes(*b"LIMOSApg");
/// Distance between neighbouring inputs of the word generator (the golden ratio's Weyl sequence).
pub(crate) const WEYL: u64 = 0x9e37_79b9_7f4a_7c15;
/// Multiplier of the word generator: word = high half xor low half of input * MULTIPLIER.
pub(crate) const MULTIPLIER: u64 = 0xa076_1d64_78bd_642f;
/// Keeps the inputs of different pages apart.
pub(crate) const PAGE_STEP: u64 = 0xe703_7ed1_a0b4_28db;
/// Keeps the inputs of different generations apart.
pub(crate) const GENERATION_STEP: u64 = 0x8ebc_6af0_9c88_c6e3;
/// Keeps the choice of a page's class apart from its words.
pub(crate) const BLEND_STEP: u64 = 0x5899_65cc_7537_4cc3;
/// The checksum rotates by this before each word, so that the order of the words counts.
pub(crate) const CHECKSUM_ROTATION: u32 = 7;

/// Phrases of the text class; the top four bits of a generated word choose one.
pub(crate) const PHRASES: usize = 16;
pub(crate) const PHRASE_CHOICE_SHIFT: u32 = 60;
/// In a group of text the fourth word is eight letters of six random bits each: 0x20 to 0x5f.
pub(crate) const LETTER_MASK: u64 = 0x3f3f_3f3f_3f3f_3f3f;
pub(crate) const LETTER_BASE: u64 = 0x2020_2020_2020_2020;

/// The words of one page.
pub(crate) type PageWords = [u64; PAGE_WORDS];

/// What the pages of a guest look like, as far as a compressor or a zero test cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// All zeros. Such a page cannot prove its generation.
    Zero,
    /// Incompressible.
    #[default]
    Random,
    /// Letters; shrinks to about a third with lz4 and zstd.
    Text,
    /// A blend by page number: one page in four zero, one random, two text.
    Mixed,
}

/// The class of one page, after the blend of [`Content::Mixed`] has been decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageClass {
    Zero,
    Random,
    Text,
}

/// Everything that determines the bytes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRecipe {
    pub(crate) seed: u64,
    pub(crate) class: PageClass,
    pub(crate) page: PageIndex,
    /// How often the page was written by a worker; 0 is the prefill.
    pub(crate) generation: u64,
    /// The generation whose body the page carries: light writing renews only the header.
    pub(crate) body_generation: u64,
}

impl Content {
    /// All contents, in the order of their [codes](Self::code).
    pub const ALL: [Self; 4] = [Self::Zero, Self::Random, Self::Text, Self::Mixed];

    /// The number that stands for the content in guest memory and in the migration stream.
    pub const fn code(self) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Random => 1,
            Self::Text => 2,
            Self::Mixed => 3,
        }
    }

    /// The content with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Zero),
            1 => Some(Self::Random),
            2 => Some(Self::Text),
            3 => Some(Self::Mixed),
            _ => None,
        }
    }

    /// The class of `page` in a guest of this content.
    pub(crate) fn class_of(self, seed: u64, page: PageIndex) -> PageClass {
        match self {
            Self::Zero => PageClass::Zero,
            Self::Random => PageClass::Random,
            Self::Text => PageClass::Text,
            Self::Mixed => match scramble(seed.wrapping_add(page.0.wrapping_mul(BLEND_STEP))) >> 62 {
                0 => PageClass::Zero,
                1 => PageClass::Random,
                _ => PageClass::Text,
            },
        }
    }
}

impl PageRecipe {
    /// Writes the page into `words`. Cost: about half a microsecond.
    pub(crate) fn write_into(&self, words: &mut PageWords) {
        if self.class == PageClass::Zero {
            words.fill(0);
            return;
        }
        let mut input = self
            .seed
            .wrapping_add(self.page.0.wrapping_mul(PAGE_STEP))
            .wrapping_add(self.body_generation.wrapping_mul(GENERATION_STEP));
        let (header, body) = words.split_at_mut(HEADER_WORDS);
        match self.class {
            PageClass::Zero => {}
            PageClass::Random => {
                for word in body.iter_mut() {
                    input = input.wrapping_add(WEYL);
                    *word = scramble(input);
                }
            }
            PageClass::Text => {
                for group in body.chunks_exact_mut(GROUP_WORDS) {
                    input = input.wrapping_add(WEYL);
                    let choice = scramble(input);
                    group[..3].copy_from_slice(&PHRASE_TABLE[(choice >> PHRASE_CHOICE_SHIFT) as usize][..3]);
                    group[3] = (choice & LETTER_MASK) + LETTER_BASE;
                }
            }
        }
        header[..3].copy_from_slice(&[TAG, self.page.0, self.generation]);
        words[3] = checksum(words);
    }
}

/// The checksum that belongs into word 3 of a page: over its body, then its tag, number and generation.
///
/// The generation comes last, so a page whose generation alone grows by one has a checksum greater by one.
pub(crate) fn checksum(words: &PageWords) -> u64 {
    let (header, body) = words.split_at(HEADER_WORDS);
    body.iter()
        .chain(&header[..3])
        .fold(0_u64, |sum, word| sum.rotate_left(CHECKSUM_ROTATION).wrapping_add(*word))
}

/// A word of the generator: the halves of `input * MULTIPLIER`, xored.
fn scramble(input: u64) -> u64 {
    let product = u128::from(input) * u128::from(MULTIPLIER);
    (product >> 64) as u64 ^ product as u64
}

/// Sixteen phrases of 24 letters; the fourth word of each entry is unused, so that an entry is 32 bytes.
pub(crate) const PHRASE_TABLE: [[u64; GROUP_WORDS]; PHRASES] = [
    phrase(b"the godwit left at dusk "),
    phrase(b"and nothing of it was lo"),
    phrase(b"pages owed to the other "),
    phrase(b"side are sent once again"),
    phrase(b" until the last one has "),
    phrase(b"landed; only then may th"),
    phrase(b"e guest be woken there, "),
    phrase(b"not before and not twice"),
    phrase(b". A bird that flies from"),
    phrase(b" Alaska to New Zealand d"),
    phrase(b"oes not stop for the nig"),
    phrase(b"ht, nor for the storm; i"),
    phrase(b"t carries what it needs "),
    phrase(b"from the first mile on, "),
    phrase(b"eleven days over the sea"),
    phrase(b", and arrives where it w"),
];

const fn phrase(letters: &[u8; 24]) -> [u64; GROUP_WORDS] {
    let mut words = [0_u64; GROUP_WORDS];
    let mut at = 0;
    while at < letters.len() {
        words[at / 8] |= (letters[at] as u64) << (at % 8 * 8);
        at += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(class: PageClass, page: u64, generation: u64) -> PageRecipe {
        PageRecipe { seed: 7, class, page: PageIndex(page), generation, body_generation: generation }
    }

    fn words(recipe: PageRecipe) -> PageWords {
        let mut words = [u64::MAX; PAGE_WORDS];
        recipe.write_into(&mut words);
        words
    }

    #[test]
    fn zero_class_is_all_zero_bytes() {
        assert_eq!(words(recipe(PageClass::Zero, 300, 4)), [0; PAGE_WORDS]);
    }

    #[test]
    fn a_page_carries_its_number_generation_and_checksum() {
        for class in [PageClass::Random, PageClass::Text] {
            let page = words(recipe(class, 300, 4));
            assert_eq!(page[..3], [TAG, 300, 4]);
            assert_eq!(page[3], checksum(&page));
        }
    }

    #[test]
    fn seed_page_and_generation_all_change_the_body() {
        let first = words(recipe(PageClass::Random, 300, 4));
        let others = [
            words(recipe(PageClass::Random, 301, 4)),
            words(recipe(PageClass::Random, 300, 5)),
            words(PageRecipe { seed: 8, ..recipe(PageClass::Random, 300, 4) }),
        ];
        for other in others {
            let equal = first[4..].iter().zip(&other[4..]).filter(|(a, b)| a == b).count();
            assert_eq!(equal, 0, "no word of the body may survive a change");
        }
    }

    #[test]
    fn a_renewed_header_keeps_the_body_and_adds_one_to_the_checksum() {
        let first = words(PageRecipe { body_generation: 1, ..recipe(PageClass::Text, 9, 1) });
        let second = words(PageRecipe { body_generation: 1, ..recipe(PageClass::Text, 9, 2) });
        assert_eq!(first[4..], second[4..]);
        assert_eq!(second[3], first[3].wrapping_add(1));
    }

    #[test]
    fn every_single_bit_counts_in_the_checksum() {
        let page = words(recipe(PageClass::Random, 300, 4));
        for word in (0..PAGE_WORDS).filter(|word| *word != 3) {
            for bit in [0, 31, 63] {
                let mut broken = page;
                broken[word] ^= 1 << bit;
                assert_ne!(checksum(&broken), page[3], "word {word} bit {bit}");
            }
        }
    }

    #[test]
    fn mixed_is_a_quarter_zero_a_quarter_random_and_half_text() {
        let count =
            |class| (0..40_000).filter(|n| Content::Mixed.class_of(1, PageIndex(*n)) == class).count();
        // 40,000 draws: one standard deviation of a quarter is 87 pages; ten of them are allowed.
        assert!(count(PageClass::Zero).abs_diff(10_000) < 870);
        assert!(count(PageClass::Random).abs_diff(10_000) < 870);
        assert!(count(PageClass::Text).abs_diff(20_000) < 870);
    }

    #[test]
    fn text_is_printable() {
        let page = words(recipe(PageClass::Text, 5, 1));
        let letters = page[HEADER_WORDS..].iter().flat_map(|word| word.to_le_bytes());
        assert!(letters.into_iter().all(|letter| (0x20..0x7f).contains(&letter)));
    }

    #[test]
    fn codes_name_contents_one_to_one() {
        for content in Content::ALL {
            assert_eq!(Content::from_code(content.code()), Some(content));
        }
        assert_eq!(Content::from_code(4), None);
    }
}
