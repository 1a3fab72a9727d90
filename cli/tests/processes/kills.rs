//! One of two VMMs is killed while a guest moves: what the other says, and whether it has the guest.

use crate::process::wait_until;
use crate::relay::{Hold, Relay};
use crate::vmm::{Vmm, can_move};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// How far the migration is when one side is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Precopy,
    /// Most of its memory is not there yet.
    Postcopy,
    Paused,
}

const MOMENTS: [Moment; 3] = [Moment::Precopy, Moment::Postcopy, Moment::Paused];

/// Slow enough that neither precopy nor postcopy of 16 MiB ends by itself.
const SLOW: u64 = 64 << 10;

fn wait_for(vmm: &mut Vmm, status: &str) {
    wait_until(status, || vmm.execute("query-migrate", Value::Null)["status"] == json!(status));
}

/// How far the switch to postcopy is when one side is killed, by what the other knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The destination drops what is stale, and the guest runs here.
    DiscardingAhead,
    /// The guest stands.
    Stopped,
    /// The package has left, and nothing of it has come.
    PackageSent,
    /// All of it has come but its last byte; LISTEN is among it.
    PackageIncomplete,
    /// The guest runs there, and nothing has been heard since the package left.
    Unheard,
    /// The devices are known to be there, but not that the guest runs.
    DevicesLoaded,
}

const STAGES: [Stage; 6] = [
    Stage::DiscardingAhead,
    Stage::Stopped,
    Stage::PackageSent,
    Stage::PackageIncomplete,
    Stage::Unheard,
    Stage::DevicesLoaded,
];

impl Stage {
    /// Where the connection is stopped for it.
    const fn hold(self) -> Hold {
        match self {
            Self::DiscardingAhead => Hold::Answer(&[0, 2, 0, 4, 0x4c, 0, 0, 4]),
            Self::Stopped => Hold::Nowhere,
            Self::PackageSent => Hold::Package,
            Self::PackageIncomplete => Hold::EndOfPackage,
            Self::Unheard => Hold::Answer(&[0, 2, 0, 4, 0, 0, 0, 3]),
            Self::DevicesLoaded => Hold::Answer(&[0x4c, 2, 0, 0]),
        }
    }
}

/// A guest that can go over in the middle of precopy, a place for it, and where it listens.
fn pair() -> (Vmm, Vmm, String) {
    let mut source = Vmm::start(&["--vcpus=2", "--dirty-rate=2000", "--prefill=random"]);
    let mut destination = Vmm::start(&["--vcpus=2", "--incoming=defer"]);
    for vmm in [&mut source, &mut destination] {
        set_capability(vmm, "postcopy-ram");
    }
    source
        .execute("migrate-set-parameters", json!({ "max-bandwidth": SLOW, "max-postcopy-bandwidth": SLOW }));
    let uri = format!("unix:{}", destination.path("stream").display());
    destination.execute("migrate-incoming", json!({ "uri": uri, "exit-on-error": false }));
    (source, destination, uri)
}

fn set_capability(vmm: &mut Vmm, capability: &str) {
    let on = json!([{ "capability": capability, "state": true }]);
    vmm.execute("migrate-set-capabilities", json!({ "capabilities": on }));
}

/// A guest whose switch has come to `stage`, and goes no further.
fn switching(stage: Stage) -> (Vmm, Vmm, Relay) {
    let (mut source, mut destination, _) = pair();
    let relay = Relay::start(source.path("near"), &destination.path("stream"), stage.hold());
    if stage == Stage::Stopped {
        set_capability(&mut source, "pause-before-switchover");
    }
    source.execute("migrate", json!({ "uri": relay.uri() }));
    wait_for(&mut source, "active");
    source.execute("migrate-start-postcopy", Value::Null);
    if stage == Stage::Stopped {
        wait_for(&mut source, "pre-switchover");
    } else {
        relay.wait_held();
    }
    if stage == Stage::DiscardingAhead {
        assert!(source.is_running());
    } else {
        wait_until("the guest stands here", || !source.is_running());
    }
    if stage >= Stage::PackageSent {
        wait_for(&mut source, "postcopy-active");
    }
    if stage >= Stage::Unheard {
        wait_until("the guest runs there", || destination.is_running());
    } else {
        assert!(!destination.is_running(), "{stage:?}");
    }
    (source, destination, relay)
}

/// A guest on its way.
fn under_way(moment: Moment) -> (Vmm, Vmm) {
    let (mut source, mut destination, uri) = pair();
    source.execute("migrate", json!({ "uri": uri }));
    wait_for(&mut source, "active");
    if moment != Moment::Precopy {
        source.execute("migrate-start-postcopy", Value::Null);
        wait_for(&mut source, "postcopy-active");
        wait_for(&mut destination, "postcopy-active");
        // Until it has heard that the guest runs there, the source would believe an operator who says that it never did.
        let knows = |source: &mut Vmm| source.execute("query-migrate", Value::Null)["downtime"].is_u64();
        wait_until("the source knows that its guest runs there", || knows(&mut source));
    }
    if moment == Moment::Paused {
        source.execute("migrate-pause", Value::Null);
        wait_for(&mut source, "postcopy-paused");
        wait_for(&mut destination, "postcopy-paused");
    }
    (source, destination)
}

fn kill(vmm: Vmm) {
    vmm.process.signal(Signal::SIGKILL);
    vmm.process.wait();
}

#[test]
fn a_guest_whose_source_is_killed_runs_where_it_has_come_to_or_nowhere() {
    if !can_move("killed source") {
        return;
    }
    for moment in MOMENTS {
        let (source, mut destination) = under_way(moment);
        kill(source);
        if moment == Moment::Precopy {
            wait_for(&mut destination, "failed");
            assert!(!destination.is_running());
            continue;
        }
        wait_for(&mut destination, "postcopy-paused");
        assert!(destination.is_running(), "{moment:?}: on what it has");
        destination.execute("x-limosa-end-postcopy", json!({ "outcome": "lost" }));
        wait_for(&mut destination, "failed");
        destination.client.quit().unwrap();
        let ended = destination.process.wait();
        assert!(ended.status.success(), "{moment:?}: it ends although its guest waits for memory: {ended:?}");
    }
}

#[test]
fn a_guest_whose_destination_is_killed_goes_on_only_if_it_was_not_there_yet() {
    if !can_move("killed destination") {
        return;
    }
    for moment in MOMENTS {
        let (mut source, destination) = under_way(moment);
        kill(destination);
        if moment == Moment::Precopy {
            wait_for(&mut source, "failed");
            assert!(source.is_running());
            continue;
        }
        wait_for(&mut source, "postcopy-paused");
        assert!(!source.is_running(), "{moment:?}");
        // It ran there, whatever an operator says: what it did since is lost.
        source.execute("x-limosa-end-postcopy", json!({ "outcome": "never-ran" }));
        assert_eq!(source.execute("query-migrate", Value::Null)["status"], "postcopy-paused");
        assert!(!source.is_running(), "{moment:?}");
        source.execute("x-limosa-end-postcopy", json!({ "outcome": "lost" }));
        wait_for(&mut source, "failed");
        assert!(!source.is_running(), "{moment:?}");
    }
}

#[test]
fn a_guest_whose_source_is_killed_in_the_switch_runs_there_only_if_its_whole_package_came() {
    if !can_move("source killed in the switch") {
        return;
    }
    for stage in STAGES {
        let (source, mut destination, relay) = switching(stage);
        kill(source);
        relay.cut();
        if stage <= Stage::PackageIncomplete {
            wait_for(&mut destination, "failed");
            assert!(!destination.is_running(), "{stage:?}");
            continue;
        }
        wait_for(&mut destination, "postcopy-paused");
        assert!(destination.is_running(), "{stage:?}: on what it has");
    }
}

#[test]
fn a_guest_whose_destination_is_killed_in_the_switch_goes_on_by_itself_or_at_its_operators_word() {
    if !can_move("destination killed in the switch") {
        return;
    }
    for stage in STAGES {
        let (mut source, destination, relay) = switching(stage);
        kill(destination);
        relay.cut();
        if stage >= Stage::PackageSent {
            // It may have run there: who can look has to say.
            wait_for(&mut source, "postcopy-paused");
            assert!(!source.is_running(), "{stage:?}");
            source.execute("x-limosa-end-postcopy", json!({ "outcome": "never-ran" }));
        }
        wait_for(&mut source, "failed");
        wait_until("the guest runs here", || source.is_running());
        source.execute("stop", Value::Null);
        assert_eq!(source.execute("x-limosa-verify", Value::Null)["clean"], true, "{stage:?}");
    }
}
