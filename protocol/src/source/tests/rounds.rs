//! Slices, pauses, rests, and rounds that lead nowhere.

use super::*;

#[test]
fn the_bandwidth_limit_bounds_a_slice_and_then_asks_for_time() {
    // 1 MB/s: the burst is 40 ms of it, and the next slice is worth sending after 10 ms more.
    let config = SourceConfig { max_bandwidth: Some(BytesPerSecond(1_000_000)), ..SourceConfig::default() };
    let mut run = Run::in_phase(config, Phase::Setup);
    run.all_after([setup_saved(), pong(PingPurpose::Setup)]);
    let slice = Iterate { max_bytes: ByteCount(40_000), max_time: SLICE_TIME_MAX };
    assert_eq!(run.after(synced(MIB)), [slice]);
    assert_eq!(run.after(iterated(41_000, MIB - 41_000)), [], "a millisecond has brought the last thousand");
    assert_eq!(run.source.poll_timeout(), Some(run.now + Duration::from_millis(10)));
    let slice = Iterate { max_bytes: ByteCount(10_000), max_time: SLICE_TIME_MAX };
    assert_eq!(run.after_timeout(), [slice]);
}

#[test]
fn lifting_the_limit_ends_the_pause() {
    let config = SourceConfig { max_bandwidth: Some(BytesPerSecond(1_000_000)), ..SourceConfig::default() };
    let mut run = Run::in_phase(config, Phase::Setup);
    run.all_after([setup_saved(), pong(PingPurpose::Setup), synced(MIB), iterated(41_000, MIB - 41_000)]);
    let change = ParameterChange { max_bandwidth: Some(None), ..ParameterChange::default() };
    assert_eq!(run.after(SourceEvent::SetParameters(change)), [SLICE]);
}

#[test]
fn the_switchover_waits_for_the_acknowledgement_where_it_must() {
    let config = SourceConfig { switchover_ack: true, ..SourceConfig::default() };
    let mut run = Run::in_phase(config.clone(), Phase::Barrier);
    run.after(pong(PingPurpose::Round(1)));
    assert_eq!(run.after(synced(0)), []);
    assert_eq!(run.source.poll_timeout(), Some(run.now + REST));
    assert_eq!(run.after_timeout(), [SyncDirty], "what the guest has dirtied meanwhile may need a round");
    assert_eq!(run.after(synced(0)), []);
    assert_eq!(run.after(SourceEvent::Return(ReturnMessage::SwitchoverAck)), [SyncDirty]);
    assert_eq!(run.after(synced(0)), [StopVm]);

    let mut run = Run::in_phase(config, Phase::Barrier);
    assert_eq!(run.after(SourceEvent::Return(ReturnMessage::SwitchoverAck)), [], "early is as good");
    run.after(pong(PingPurpose::Round(1)));
    assert_eq!(run.after(synced(0)), [StopVm]);
}

#[test]
fn an_acknowledgement_that_nobody_waits_for_is_ignored() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Round);
    assert_eq!(run.after(SourceEvent::Return(ReturnMessage::SwitchoverAck)), []);
    assert_eq!(run.source.state_name(), "iterating");
}

#[test]
fn handlers_that_owe_and_never_send_are_stuck() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Round);
    for _ in 1..EMPTY_SLICES_MAX {
        assert_eq!(run.after(iterated(0, 8 * MIB)), [SLICE]);
    }
    assert_eq!(run.after(iterated(0, 8 * MIB)), [CloseLink, Finish]);
    let failure = SourceFailure::NoProgress { slices: EMPTY_SLICES_MAX };
    assert_eq!(run.outcome(), &failed(failure, GuestFate::OnSource));
}

#[test]
fn a_guest_that_does_not_converge_ends_at_the_limit_of_rounds() {
    let convergence = ConvergenceConfig { downtime_limit: Duration::ZERO, ..ConvergenceConfig::default() };
    let config = SourceConfig { rounds_max: 2, convergence, ..SourceConfig::default() };
    let mut run = Run::in_phase(config, Phase::Setup);
    run.all_after([setup_saved(), pong(PingPurpose::Setup), synced(MIB)]);
    for round in 1..=2 {
        run.all_after([iterated(MIB, 0), pong(PingPurpose::Round(round))]);
        if round == 1 {
            assert_eq!(run.after(synced(MIB)), [SLICE]);
        }
    }
    assert_eq!(run.after(synced(MIB)), [CloseLink, Finish]);
    assert_eq!(run.outcome(), &failed(SourceFailure::NotConverging { rounds: 2 }, GuestFate::OnSource));
}

#[test]
fn without_a_return_path_a_queue_that_never_drains_is_given_up() {
    let mut run = Run::new(without_return_path());
    run.actions();
    run.all_after([setup_saved(), synced(8 * MIB)]);
    let stuck = Pending { queued: ByteCount(8 * MIB), ..pending(0) };
    run.after(SourceEvent::Iterated { sent: ByteCount(8 * MIB), pending: stuck });
    let began = run.now;
    let failed = loop {
        if run.after(SourceEvent::Synced { pending: stuck }) == [CloseLink, Finish] {
            break &run.outcome().ending;
        }
        assert_eq!(run.after_timeout(), [SyncDirty]);
    };
    let limit = SourceTimeouts::default().round;
    assert_eq!(failed, &SourceEnding::Failed(SourceFailure::TimedOut { wait: Wait::Round(1), limit }));
    assert!(run.now - began >= limit);
}
