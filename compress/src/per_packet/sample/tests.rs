use super::*;
use crate::packet::tests::{noise, text};

fn noise_page(seed: u64) -> Page {
    noise(1, seed).try_into().expect("one page")
}

fn text_page() -> Page {
    text(1).try_into().expect("one page")
}

#[test]
fn noise_is_incompressible() {
    // Five standard deviations: none of ten thousand.
    assert!((0..10_000).all(|seed| Sampler::new().is_incompressible(&noise_page(seed))));
}

#[test]
fn what_an_entropy_coder_or_lz4_shrinks_is_not() {
    let seven_bits = |seed| noise_page(seed).map(|byte| byte & 0x7f);
    // Numbers of 32 bits in words of 64, and half a page of noise.
    let numbers = |seed| {
        let mut page = noise_page(seed);
        page.as_chunks_mut::<8>().0.iter_mut().for_each(|word| word[4..].fill(0));
        page
    };
    let half = |seed| {
        let mut page = noise_page(seed);
        page[..PAGE_BYTES / 2].fill(0);
        page
    };
    for seed in 0..1000 {
        for page in [seven_bits(seed), numbers(seed), half(seed), text_page()] {
            assert!(!Sampler::new().is_incompressible(&page));
        }
    }
}

/// Of `pages` pages of noise, those that are looked at.
fn looks(sampler: &mut Sampler, pages: u64) -> u64 {
    let looked = |seed: &u64| !sampler.skips() && sampler.is_incompressible(&noise_page(*seed));
    (0..pages).filter(looked).count() as u64
}

#[test]
fn a_long_row_of_noise_is_looked_at_once_in_thirty_two_pages() {
    let mut sampler = Sampler::new();
    assert_eq!(looks(&mut sampler, u64::from(PATIENCE)), u64::from(PATIENCE));
    // The gaps grow from 1 over 3, 7 and 15 pages to 31.
    assert_eq!(looks(&mut sampler, 1 + 2 + 4 + 8 + 16), 5);
    assert_eq!(looks(&mut sampler, 32 * 100), 100);
}

#[test]
fn one_compressible_page_ends_the_skipping() {
    let mut sampler = Sampler::new();
    looks(&mut sampler, 1000);
    while sampler.skips() {}
    assert!(!sampler.is_incompressible(&text_page()));
    assert_eq!(looks(&mut sampler, u64::from(PATIENCE)), u64::from(PATIENCE));
}

#[test]
fn a_change_to_compressible_pages_is_noticed_within_thirty_two() {
    let mut sampler = Sampler::new();
    looks(&mut sampler, 1000);
    let unseen = (0..).take_while(|_| sampler.skips() || sampler.is_incompressible(&text_page())).count();
    assert!(unseen <= SKIP_MAX as usize, "{unseen} pages of text went raw");
}
