//! The commands that QEMU does not have.

use crate::ring::{let_work, total_steps};
use crate::stage::{Vmm, any_kind, move_guest};
use limosa_pages::BlockId;
use serde_json::{Value, json};

#[test]
fn they_are_listed_among_the_commands() {
    let Some(kind) = any_kind("query-commands") else { return };
    let mut vmm = Vmm::incoming(kind);
    let commands = vmm.execute("query-commands", Value::Null);
    let names: Vec<&str> =
        commands.as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    let vendor: Vec<&&str> = names.iter().filter(|name| name.starts_with("x-")).collect();
    assert_eq!(
        vendor,
        [
            &"x-limosa-verify",
            &"x-limosa-progress",
            &"x-limosa-report",
            &"x-limosa-set-rate",
            &"x-limosa-set-autostart",
            &"x-limosa-end-postcopy"
        ]
    );
    assert!(names.contains(&"query-migrate"));
}

#[test]
fn the_report_tells_both_sides_of_the_last_migration() {
    let Some(kind) = any_kind("report") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    assert_eq!(source.refusal("x-limosa-report", Value::Null), "No migration has ended yet");
    move_guest(&mut source, &mut destination, "unix");
    let (left, arrived) =
        (source.execute("x-limosa-report", Value::Null), destination.execute("x-limosa-report", Value::Null));
    assert_eq!((&left["direction"], &left["status"]), (&json!("outgoing"), &json!("completed")));
    assert_eq!((&arrived["direction"], &arrived["status"]), (&json!("incoming"), &json!("completed")));
    assert_eq!(left["transferred"], arrived["received"]);
    let rounds = left["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 2 && rounds[0]["owed-pages"] == json!(2048), "{rounds:?}");
    let parts = ["stop", "sync", "ram", "devices", "load", "resume"];
    let sum: u64 = parts.iter().map(|part| left["downtime-us"][part].as_u64().unwrap()).sum();
    let total = left["downtime-us"]["total"].as_u64().unwrap();
    // Each part is rounded down to a microsecond.
    assert!(sum <= total && total <= sum + parts.len() as u64, "{left}");
}

#[test]
fn verify_finds_a_page_that_is_not_what_it_must_be() {
    let Some(kind) = any_kind("verify") else { return };
    let mut vmm = Vmm::running(kind);
    let_work(vmm.host.machine(), 100);
    vmm.execute("stop", Value::Null);
    let clean = vmm.execute("x-limosa-verify", Value::Null);
    assert_eq!((&clean["clean"], &clean["pages-bad"]), (&json!(true), &json!(0)));
    assert!(clean["pages-checked"].as_u64().unwrap() >= 2046, "{clean}");
    // The last page is outside of the working set: it is as it was filled.
    vmm.host.machine().ram().block(BlockId(0)).copy_in(2047 * 4096 + 5, b"!");
    let bad = vmm.execute("x-limosa-verify", Value::Null);
    assert_eq!((&bad["clean"], &bad["pages-bad"]), (&json!(false), &json!(1)));
    assert!(bad["faults"][0].as_str().unwrap().contains("2047"), "{bad}");
    let nothing = Vmm::incoming(kind).refusal("x-limosa-verify", Value::Null);
    assert!(nothing.contains("has not arrived yet"), "{nothing}");
}

#[test]
fn the_rate_can_be_changed_while_the_guest_runs() {
    let Some(kind) = any_kind("rate") else { return };
    let mut vmm = Vmm::running(kind);
    vmm.execute("x-limosa-set-rate", json!({ "pages-per-second": 0 }));
    vmm.execute("stop", Value::Null);
    let before = total_steps(vmm.host.machine());
    let steps = vmm.execute("x-limosa-progress", Value::Null)["steps"].clone();
    assert_eq!(steps.as_array().unwrap().iter().map(|one| one.as_u64().unwrap()).sum::<u64>(), before);
    vmm.execute("cont", Value::Null);
    vmm.execute("x-limosa-set-rate", json!({ "pages-per-second": null }));
    let_work(vmm.host.machine(), 10_000);
    for wrong in [json!({}), json!({ "pages-per-second": "fast" }), json!({ "pages-per-second": -1 })] {
        assert!(vmm.refusal("x-limosa-set-rate", wrong).contains("'pages-per-second'"));
    }
    let refusal = vmm.refusal("x-limosa-set-rate", json!({ "pages-per-second": 1, "for": 5 }));
    assert_eq!(refusal, "Parameter 'for' is unexpected");
}

#[test]
fn a_guest_arrives_paused_if_its_operator_said_so_at_any_time_before() {
    let Some(kind) = any_kind("autostart") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    let uri = destination.listen("unix");
    // Said when it listens already.
    destination.execute("x-limosa-set-autostart", json!({ "on": false }));
    source.migrate(&uri);
    source.wait("completed");
    destination.wait("completed");
    assert_eq!(destination.status(), "paused");
    let arrived = total_steps(destination.host.machine());
    assert_eq!(arrived, total_steps(source.host.machine()));
    destination.execute("cont", Value::Null);
    let_work(destination.host.machine(), 1);
    assert!(destination.refusal("x-limosa-set-autostart", json!({ "on": 1 })).contains("'on'"));
}
