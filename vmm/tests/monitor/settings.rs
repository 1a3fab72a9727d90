//! Parameters and capabilities: what can be set, when, and what is refused by which name.

use crate::stage::{Vmm, any_kind, at_work, move_guest};
use limosa_vmm::Program;
use serde_json::{Value, json};

fn idle(test: &str) -> Option<Vmm> {
    Some(Vmm::of(any_kind(test)?, Program::Dirtier(at_work()), false))
}

#[test]
fn parameters_that_were_set_are_shown() {
    let Some(mut vmm) = idle("parameters") else { return };
    let defaults = vmm.execute("query-migrate-parameters", Value::Null);
    assert_eq!(
        defaults,
        json!({
            "max-bandwidth": 0,
            "avail-switchover-bandwidth": 0,
            "downtime-limit": 300,
            "xbzrle-cache-size": 64 << 20,
            "multifd-channels": 2,
            "multifd-compression": "none",
            "multifd-zlib-level": 1,
            "multifd-zstd-level": 1,
            "x-multifd-codec-workers": 0,
            "x-multifd-flush-after-each-section": false,
            "max-postcopy-bandwidth": 0,
            "x-postcopy-auto": false,
            "x-postcopy-auto-rounds": 0,
            "x-postcopy-auto-time": 0,
            "zero-page-detection": "multifd",
            "mode": "normal",
        })
    );
    vmm.execute("migrate-set-parameters", json!({ "max-bandwidth": 1000, "mode": "normal" }));
    let set = json!({ "downtime-limit": 20, "xbzrle-cache-size": 8192, "avail-switchover-bandwidth": 7 });
    vmm.execute("migrate-set-parameters", set);
    // A level waits for its method.
    let set = json!({ "multifd-channels": 4, "multifd-zlib-level": 9, "multifd-zstd-level": 20 });
    vmm.execute("migrate-set-parameters", set);
    let set = json!({ "x-multifd-codec-workers": 3, "x-multifd-flush-after-each-section": true });
    vmm.execute("migrate-set-parameters", set);
    let set = json!({ "max-postcopy-bandwidth": 5, "x-postcopy-auto": true, "x-postcopy-auto-rounds": 2 });
    vmm.execute("migrate-set-parameters", set);
    let set = json!({ "multifd-compression": "zstd", "zero-page-detection": "legacy" });
    vmm.execute("migrate-set-parameters", set);
    assert_eq!(
        vmm.execute("query-migrate-parameters", Value::Null),
        json!({
            "max-bandwidth": 1000,
            "avail-switchover-bandwidth": 7,
            "downtime-limit": 20,
            "xbzrle-cache-size": 8192,
            "multifd-channels": 4,
            "multifd-compression": "zstd",
            "multifd-zlib-level": 9,
            "multifd-zstd-level": 20,
            "x-multifd-codec-workers": 3,
            "x-multifd-flush-after-each-section": true,
            "max-postcopy-bandwidth": 5,
            "x-postcopy-auto": true,
            "x-postcopy-auto-rounds": 2,
            "x-postcopy-auto-time": 0,
            "zero-page-detection": "legacy",
            "mode": "normal",
        })
    );
}

#[test]
fn what_cannot_be_set_is_refused_by_name_and_nothing_is_changed() {
    let Some(mut vmm) = idle("refused parameters") else { return };
    let before = vmm.execute("query-migrate-parameters", Value::Null);
    for (wanted, name) in [
        (json!({ "max-bandwidth": 5, "no-such-parameter": 1 }), "'no-such-parameter' is unexpected"),
        (json!({ "max-bandwidth": 5, "direct-io": true }), "'direct-io' is not supported"),
        (json!({ "max-bandwidth": 5, "multifd-compression": "qpl" }), "'qpl' is not supported"),
        (json!({ "max-bandwidth": 5, "multifd-channels": 0 }), "multifd-channels"),
        // Each level is checked, also where another method is on.
        (json!({ "max-bandwidth": 5, "multifd-zlib-level": 10 }), "multifd-zlib-level"),
        (json!({ "max-bandwidth": 5, "multifd-zstd-level": 21 }), "multifd-zstd-level"),
        (json!({ "max-bandwidth": 5, "mode": "cpr-reboot" }), "'mode' is not supported"),
        (json!({ "max-bandwidth": 5, "downtime-limit": 2_000_001 }), "downtime-limit"),
        (json!({ "max-bandwidth": 5, "xbzrle-cache-size": 5000 }), "xbzrle-cache-size"),
        (json!({ "max-bandwidth": -1 }), "'max-bandwidth' expects uint64"),
        (json!({ "max-bandwidth": "5M" }), "'max-bandwidth' expects uint64"),
    ] {
        let refusal = vmm.refusal("migrate-set-parameters", wanted.clone());
        assert!(refusal.contains(name), "{wanted}: {refusal}");
        assert_eq!(vmm.execute("query-migrate-parameters", Value::Null), before, "{wanted}");
    }
}

#[test]
fn capabilities_are_switched_all_or_none() {
    let Some(mut vmm) = idle("capabilities") else { return };
    let on = |vmm: &mut Vmm| -> Vec<String> {
        let all = vmm.execute("query-migrate-capabilities", Value::Null);
        let all = all.as_array().unwrap().clone();
        assert_eq!(all.len(), 22, "every capability of QEMU 10.0 is listed");
        let on = all.iter().filter(|entry| entry["state"] == json!(true));
        on.map(|entry| entry["capability"].as_str().unwrap().to_owned()).collect()
    };
    let set = |states: Value| json!({ "capabilities": states });
    assert_eq!(on(&mut vmm), ["events", "return-path"]);
    for (states, name) in [
        (
            json!([{ "capability": "xbzrle", "state": true }, { "capability": "x-colo", "state": true }]),
            "x-colo",
        ),
        (
            json!([{ "capability": "xbzrle", "state": true }, { "capability": "fast", "state": true }]),
            "'fast'",
        ),
        (
            json!([{ "capability": "return-path", "state": false }, { "capability": "switchover-ack", "state": true }]),
            "switchover-ack",
        ),
        (
            json!([{ "capability": "multifd", "state": true }, { "capability": "xbzrle", "state": true }]),
            "multifd",
        ),
    ] {
        let refusal = vmm.refusal("migrate-set-capabilities", set(states));
        assert!(refusal.contains(name), "{refusal}");
        assert_eq!(on(&mut vmm), ["events", "return-path"]);
    }
    // To switch off what is not there asks for nothing.
    vmm.execute("migrate-set-capabilities", set(json!([{ "capability": "mapped-ram", "state": false }])));
    vmm.set_capability("xbzrle", true);
    assert_eq!(on(&mut vmm), ["xbzrle", "events", "return-path"]);
}

#[test]
fn a_running_migration_obeys_new_parameters() {
    let Some(kind) = any_kind("parameters while running") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    source.hold_back();
    let uri = destination.listen("tcp");
    source.migrate(&uri);
    source.wait("active");
    // A value that is refused does not reach the migration either.
    source.refusal("migrate-set-parameters", json!({ "max-bandwidth": 0, "downtime-limit": 2_000_001 }));
    assert_eq!(source.query_migrate()["status"], "active");
    source.let_go();
    source.wait("completed");
    destination.wait("completed");
}

#[test]
fn deltas_are_counted_when_they_are_on() {
    let Some(kind) = any_kind("xbzrle") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    source.set_capability("xbzrle", true);
    source.set_capability("pause-before-switchover", true);
    let uri = destination.listen("unix");
    source.migrate(&uri);
    source.wait("pre-switchover");
    assert_eq!(source.query_migrate()["xbzrle-cache"]["cache-size"], json!(64 << 20));
    source.execute("migrate-continue", json!({ "state": "pre-switchover" }));
    source.wait("completed");
    let info = source.query_migrate();
    assert_eq!(info["ram"]["remaining"], 0);
    assert_eq!(info["ram"]["total"], crate::ring::MEMORY.0);
}

#[test]
fn a_guest_moves_over_several_channels_that_both_sides_were_set_to() {
    let Some(kind) = any_kind("multifd") else { return };
    for (channels, method) in [(4, "none"), (2, "zstd"), (1, "zlib")] {
        let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
        for vmm in [&mut source, &mut destination] {
            vmm.set_capability("multifd", true);
            let set = json!({ "multifd-channels": channels, "multifd-compression": method });
            vmm.execute("migrate-set-parameters", set);
        }
        move_guest(&mut source, &mut destination, "tcp");
        let ram = source.query_migrate()["ram"].clone();
        let on_channels = ram["multifd-bytes"].as_u64().expect("bytes");
        assert!(on_channels > 0 && on_channels < ram["transferred"].as_u64().expect("bytes"), "{ram}");
        destination.execute("stop", Value::Null);
        let verified = destination.execute("x-limosa-verify", Value::Null);
        assert_eq!(verified["clean"], true, "{channels} channels, {method}: {verified}");
    }
}

#[test]
fn a_guest_stays_where_the_sides_were_set_to_different_methods() {
    let Some(kind) = any_kind("multifd mismatch") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    for (vmm, method) in [(&mut source, "zlib"), (&mut destination, "zstd")] {
        vmm.set_capability("multifd", true);
        vmm.execute("migrate-set-parameters", json!({ "multifd-compression": method }));
    }
    let uri = destination.listen("tcp");
    source.migrate(&uri);
    source.wait("failed");
    destination.wait("failed");
    for vmm in [&mut source, &mut destination] {
        let error = vmm.query_migrate()["error-desc"].as_str().unwrap_or_default().to_owned();
        assert!(
            error.contains("multifd-compression: zlib at the source, zstd at the destination"),
            "{error}"
        );
    }
    assert_eq!((source.status(), destination.status()), ("running".to_owned(), "inmigrate".to_owned()));
}

#[test]
fn a_method_of_our_own_needs_answers() {
    let Some(mut vmm) = idle("a method of our own") else { return };
    vmm.set_capability("return-path", false);
    vmm.set_capability("multifd", true);
    vmm.execute("migrate-set-parameters", json!({ "multifd-compression": "lz4" }));
    let refusal = vmm.refusal("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    assert!(refusal.contains("multifd-compression lz4 needs capability return-path"), "{refusal}");
    assert_eq!(vmm.query_migrate(), json!({}), "nothing has begun");
}

#[test]
fn going_on_needs_the_state_that_it_names() {
    let Some(kind) = any_kind("migrate-continue") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    let go_on = json!({ "state": "pre-switchover" });
    assert_eq!(source.refusal("migrate-continue", go_on.clone()), "Migration not in expected state: none");
    source.hold_back();
    let uri = destination.listen("unix");
    source.migrate(&uri);
    source.wait("active");
    assert_eq!(source.refusal("migrate-continue", go_on.clone()), "Migration not in expected state: active");
    let refusal = source.refusal("migrate-continue", json!({ "state": "soon" }));
    assert_eq!(refusal, "Parameter 'state' does not accept value 'soon'");
    source.let_go();
    source.wait("completed");
    assert_eq!(source.refusal("migrate-continue", go_on), "Migration not in expected state: completed");
}
