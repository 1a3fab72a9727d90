//! Settings that differ between us and an unmodified QEMU: ours gives up and says why.

use limosa::{Codec, GuestFate, Incoming, IncomingConfig, NoObserver};
use limosa_stress::qemu::{ChannelSetting, ForeignGuest, Peer, Qemu, Release, Still, send};
use std::sync::Arc;
use std::time::Duration;

const PLAIN: ChannelSetting = ChannelSetting::PLAIN;
const ZSTD: ChannelSetting = ChannelSetting { codec: Codec::Zstd { level: 1 }, ..PLAIN };

/// Lets a QEMU with the settings `theirs` send its guest to us; that QEMU, and why we refused.
fn refused(current: Peer<'_>, theirs: ChannelSetting, config: IncomingConfig) -> (Qemu, String) {
    let (_, model) = current.capture(PLAIN);
    let ForeignGuest { savevm, .. } = ForeignGuest::like(&model).expect("memory");
    let mut source = theirs.setup().start(current.binary).expect("source");
    source.wait_tick_past(0).expect("a running guest");
    let address = theirs.transport.address(source.folder());
    let incoming =
        Incoming::listen(&address, config, savevm, Arc::new(Still), Arc::new(NoObserver)).expect("a start");
    theirs.apply(&mut source, Release::Current);
    source.migrate(&incoming.address().expect("it listens").to_string()).expect("migrate");
    let (report, _) = incoming.wait();
    assert!(!report.is_completed(), "{theirs:?}");
    (source, report.statistics.error.expect("a failure has a reason"))
}

#[test]
fn a_qemu_with_another_number_of_channels_is_told_and_keeps_its_guest() {
    let Some(binary) = Release::Current.require() else { return };
    let current = Peer { binary: &binary, release: Release::Current };
    let one = ChannelSetting { channels: 1, ..PLAIN };
    let without = IncomingConfig { channels: None, ..PLAIN.incoming() };
    for (theirs, config, words) in [
        (one, PLAIN.incoming(), "1 of 2 multifd channels came"),
        (PLAIN, one.incoming(), "more multifd channels than the 1 that are set here"),
        (PLAIN, without, "more multifd channels than the 0 that are set here"),
    ] {
        let config = IncomingConfig { channel_patience: Duration::from_secs(1), ..config };
        let (mut source, error) = refused(current, theirs, config);
        source.wait_migration("failed").expect("source");
        let tick = source.wait_tick_past(0).expect("a tick");
        source.wait_tick_past(tick + 20).expect("a guest that goes on");
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
}

#[test]
fn a_qemu_that_compresses_otherwise_is_refused_by_the_channel_that_noticed() {
    let Some(binary) = Release::Current.require() else { return };
    let current = Peer { binary: &binary, release: Release::Current };
    for (theirs, ours) in [(ZSTD, PLAIN), (PLAIN, ZSTD)] {
        // What becomes of the QEMU is its own affair: it may hang when its channels are closed (wire 4.9).
        let (_source, error) = refused(current, theirs, ours.incoming());
        assert!(error.contains("multifd channel"), "{error:?}");
    }
}

#[test]
fn a_codec_of_our_own_is_not_tried_on_a_qemu() {
    let Some(binary) = Release::Current.require() else { return };
    let current = Peer { binary: &binary, release: Release::Current };
    let (_, captured) = current.capture(PLAIN);
    let guest = ForeignGuest::holding(captured);
    let mut destination = PLAIN.setup().destination().start(&binary).expect("destination");
    PLAIN.apply(&mut destination, Release::Current);
    let address = destination.listen(PLAIN.transport).expect("listen");
    let ours = ChannelSetting { codec: Codec::Lz4, ..PLAIN };
    let report =
        send(guest.savevm, address, ours.outgoing(), Arc::new(Still), Arc::new(NoObserver)).expect("a start");
    assert_eq!(report.guest(), GuestFate::OnSource);
    let error = report.statistics.error.expect("a failure has a reason");
    assert!(error.contains("knows no extensions and offers no codecs per packet"), "{error:?}");
}
