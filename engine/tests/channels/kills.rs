//! A channel ends, or nothing comes on it any more, anywhere.

use super::proxy::{End, Mischief};
use super::{Bench, CODECS, Ended, SHORT, assert_migrates_now};
use limosa_engine::{Codec, IncomingConfig};
use limosa_wire::multifd::{InitPacket, PagesHeader};

/// Cuts at places that no boundary is near.
const SCATTERED: usize = 12;

/// Init packet and first SYNC packet.
const AFTER_SETUP: usize = InitPacket::BYTES + PagesHeader::BYTES;

/// Checks what a channel left behind that ended after `at` bytes: the error is that of a channel. Of several, a source that
/// has noticed it ends the others, and the destination may be told of one of those before.
fn assert_stays(bench: &mut Bench, ended: &Ended, number: u8, at: usize) {
    bench.assert_stays(ended, &format!("channel {number} at {at}"));
    let errors = ended.errors();
    // Before its init packet is whole nobody but the source knows its number, and before its first four bytes are there
    // nobody knows what the connection is for.
    let named = ["multifd channel ", "multifd connection"];
    let nameless = ["a connection begins with", "did not say what it is for"];
    let expected = named.iter().chain(nameless.iter().filter(|_| at < 4));
    assert!(expected.into_iter().any(|name| errors.contains(*name)), "at {at}: {errors}");
    bench.put_back();
}

#[test]
fn a_channel_cut_at_any_packet_leaves_the_guest_on_the_source() {
    for codec in CODECS {
        let mut bench = Bench::new(1, codec);
        let channel = bench.record().remove(0);
        // The first round, and the switchover: what the guest wrote with its stop.
        assert!(channel.packets.len() >= 6, "{} packets", channel.packets.len());
        let boundaries = channel.boundaries();
        let end = *boundaries.last().unwrap();
        let around = boundaries.iter().flat_map(|at| [at.saturating_sub(1), *at, at + 1]);
        let scattered = (1..=SCATTERED).map(|part| end * part / (SCATTERED + 1));
        for at in around.chain(scattered).filter(|at| *at < end) {
            for how in [End::Close, End::Reset] {
                let ended = bench.run(0, Mischief::Cut(at, how));
                assert_stays(&mut bench, &ended, 0, at);
            }
        }
        assert_migrates_now(bench);
    }
}

#[test]
fn any_of_several_channels_may_be_the_one_that_is_cut() {
    let mut bench = Bench::new(3, Codec::None);
    for number in 0..3 {
        // Inside the init packet, the first SYNC packet, and whatever comes then.
        let near = |at: usize| [at - 1, at, at + 1];
        let places = [InitPacket::BYTES, AFTER_SETUP].into_iter().flat_map(near);
        for at in [0, 1, 4, 700].into_iter().chain(places) {
            let ended = bench.run(number, Mischief::Cut(at, End::Close));
            assert_stays(&mut bench, &ended, number, at);
        }
    }
    assert_migrates_now(bench);
}

#[test]
fn a_channel_on_which_nothing_comes_any_more_is_given_up() {
    let mut bench = Bench::new(1, Codec::None);
    let boundaries = bench.record().remove(0).boundaries();
    bench.patience = SHORT;
    let end = *boundaries.last().unwrap();
    let places = boundaries.iter().flat_map(|at| [at.saturating_sub(1), *at, at + 1]);
    // The destination waits longer for the first bytes, by which it knows what a connection is for.
    for at in places.filter(|at| (4..end).contains(at)) {
        let ended = bench.run(0, Mischief::Swallow(at));
        let error = ended.incoming.statistics.error.clone().unwrap();
        assert!(error.contains("nothing came for 20ms before synchronisation point"), "at {at}: {error}");
        assert_stays(&mut bench, &ended, 0, at);
    }
    bench.patience = IncomingConfig::default().sync_patience;
    assert_migrates_now(bench);
}

#[test]
fn a_channel_that_nobody_reads_is_given_up_by_the_source() {
    let mut bench = Bench::large(1);
    bench.write_deadline = SHORT;
    let ended = bench.run(0, Mischief::Stall(AFTER_SETUP));
    let error = ended.outgoing.statistics.error.clone().unwrap();
    assert!(error.contains("multifd channel 0"), "{error}");
    assert_stays(&mut bench, &ended, 0, AFTER_SETUP);
}
