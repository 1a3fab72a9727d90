//! A good stream, cut after every byte and damaged in every bit.

use super::stream::{self, Piece, What, pieces};
use super::{Recording, Verdict, Victim};
use limosa_wire::{Command, GREETING};

/// What a flipped bit may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The stream is no good.
    Refused,
    /// Content of a page: exactly this byte of RAM differs.
    Page,
    /// Content of a device.
    Device,
    /// Nothing that the guest would notice.
    None,
}

/// What a flip of `bit` in byte `at` of the stream, in `piece`, must do.
fn effect_of(piece: &Piece, at: usize, bit: u8, stream: &[u8]) -> Effect {
    let within = at - piece.range.start;
    match &piece.what {
        What::Content => Effect::Page,
        What::Device if piece.place == "section counter/0" => Effect::Device,
        What::Device => effect_in_global_state(within, bit),
        // The value of a PING comes back as it was sent; that it is the wrong one is for the source to see.
        // Only the greeting's is ours: without it the FEATURES that follow come from nowhere.
        What::Command(Command::Ping(value)) if within >= 5 && *value != GREETING => Effect::None,
        // Five features are offered, in the last byte of their set. They concern channels and postcopy, of which there
        // is none, and a report of populated pages, on which nothing depends.
        What::Command(Command::Features(_)) if within == 12 && bit < 5 => Effect::None,
        // Mark, length, text: a shorter text leaves bytes behind that nobody reads, a longer one never ends.
        What::Description => match within {
            0 => Effect::Refused,
            1..5 if stream[at] & (1 << bit) != 0 => Effect::None,
            1..5 => Effect::Refused,
            _ => Effect::None,
        },
        _ => Effect::Refused,
    }
}

/// `running` with its NUL, padded to 32 bytes behind the length of it; two bools; padding.
fn effect_in_global_state(within: usize, bit: u8) -> Effect {
    const NAME: std::ops::Range<usize> = 4..4 + "running\0".len();
    match within {
        0..4 => Effect::Refused,
        _ if NAME.contains(&within) => Effect::Refused,
        36 | 37 if bit == 0 => Effect::None,
        36 | 37 => Effect::Refused,
        _ => Effect::None,
    }
}

#[test]
fn a_stream_cut_after_any_byte_is_refused_at_that_place() {
    let recording = Recording::new();
    let mut victim = Victim::new();
    let mut before: Option<Piece> = None;
    for piece in pieces(&recording.stream) {
        for length in piece.range.clone() {
            let error = victim.refuse(&recording.stream[..length], "cut");
            // Only the next byte tells whether the configuration is whole.
            let ends_before = before.as_ref().filter(|_| length == piece.range.start);
            let asked = ends_before.filter(|before| before.what == What::Configuration).unwrap_or(&piece);
            let place = asked.place.as_str();
            assert!(error.contains(place), "cut after {length}, in {place}: {error}");
            let offset = stream::offset_in(&error);
            assert!((asked.range.start..=length).contains(&offset), "cut after {length}: {error}");
        }
        before = Some(piece);
    }
}

#[test]
fn a_flipped_bit_is_refused_or_was_content() {
    let Recording { stream, memory, counter } = Recording::new();
    let mut victim = Victim::new();
    for piece in pieces(&stream) {
        // Content is alike everywhere: a few of its bytes stand for the others.
        let step = match piece.what {
            What::Content => 509,
            What::Description if piece.range.len() > 64 => 61,
            _ => 1,
        };
        let all = piece.range.clone().enumerate();
        for (within, at) in all.filter(|(within, _)| *within < 8 || within % step == 0) {
            for bit in 0..8 {
                let mut damaged = stream.clone();
                damaged[at] ^= 1 << bit;
                let what =
                    format!("bit {bit} of byte {at}, {within} into {:?} of {}", piece.what, piece.place);
                let expected = effect_of(&piece, at, bit, &stream);
                match victim.offer(&damaged) {
                    Verdict::Refused(error) => {
                        assert_eq!(expected, Effect::Refused, "{what}: {error}");
                        super::assert_names_place(&error, &what);
                        assert!(super::stream::offset_in(&error) >= piece.range.start, "{what}: {error}");
                    }
                    Verdict::Ran(ram, device) => {
                        let bytes = ram.iter().zip(&memory).filter(|(got, sent)| got != sent).count();
                        let effect = match (bytes, device == counter) {
                            (0, true) => Effect::None,
                            (1, true) => Effect::Page,
                            (0, false) => Effect::Device,
                            _ => panic!("{bytes} bytes of RAM differ: {what}"),
                        };
                        assert_eq!(effect, expected, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn bytes_behind_the_end_are_nobodys() {
    let Recording { mut stream, memory, counter } = Recording::new();
    stream.extend_from_slice(&[0x55; 100]);
    let Verdict::Ran(ram, device) = Victim::new().offer(&stream) else {
        panic!("a whole stream was refused")
    };
    assert!(ram == memory && device == counter);
}
