//! One of two VMMs is killed while a guest moves: what the other says, and whether it has the guest.

use crate::process::wait_until;
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

/// A guest on its way.
fn under_way(moment: Moment) -> (Vmm, Vmm) {
    let mut source = Vmm::start(&["--vcpus=2", "--dirty-rate=2000", "--prefill=random"]);
    let mut destination = Vmm::start(&["--vcpus=2", "--incoming=defer"]);
    for vmm in [&mut source, &mut destination] {
        let on = json!([{ "capability": "postcopy-ram", "state": true }]);
        vmm.execute("migrate-set-capabilities", json!({ "capabilities": on }));
    }
    source
        .execute("migrate-set-parameters", json!({ "max-bandwidth": SLOW, "max-postcopy-bandwidth": SLOW }));
    let uri = format!("unix:{}", destination.path("stream").display());
    destination.execute("migrate-incoming", json!({ "uri": uri, "exit-on-error": false }));
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
