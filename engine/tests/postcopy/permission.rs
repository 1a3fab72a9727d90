//! A process that may not watch for faults is told so, and what to do about it, before anybody connects.

use super::guest::{Guest, Recorder};
use limosa_engine::{Incoming, IncomingConfig, IncomingPostcopy};
use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

/// Set where this test runs again, as nobody.
const AS_NOBODY: &str = "LIMOSA_TEST_AS_NOBODY";
const NOBODY: u32 = 65534;
/// With 1 in it everybody may watch for faults.
const SYSCTL: &str = "/proc/sys/vm/unprivileged_userfaultfd";

#[test]
fn without_permission_postcopy_is_refused_and_the_remedy_named() {
    if std::env::var_os(AS_NOBODY).is_some() {
        return listen_in_vain();
    }
    let everybody_may = std::fs::read_to_string(SYSCTL).is_ok_and(|value| value.trim() == "1");
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if everybody_may || !is_root {
        eprintln!(
            "LEFT OUT: only root can become nobody, and only where {SYSCTL} is 0 that takes something away"
        );
        return;
    }
    // The path to the program may lead through directories that nobody may enter.
    let again = Command::new("/proc/self/exe")
        .args(["--exact", "permission::without_permission_postcopy_is_refused_and_the_remedy_named"])
        .env(AS_NOBODY, "1")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && said.contains("1 passed"), "{said}");
}

fn listen_in_vain() {
    let mut guest = Guest::incoming(0);
    let config = IncomingConfig { postcopy: Some(IncomingPostcopy::default()), ..IncomingConfig::default() };
    let (savevm, vm) = (guest.take_savevm(), guest.vm());
    let anywhere = "tcp:127.0.0.1:0".parse().unwrap();
    let refused = Incoming::listen(&anywhere, config, savevm, vm, Arc::new(Recorder::default()));
    let Err(refused) = refused else { panic!("nobody may watch for faults") };
    let mut said = String::new();
    let mut cause: Option<&dyn Error> = Some(&refused);
    while let Some(error) = cause {
        said += &format!("{error}: ");
        cause = error.source();
    }
    assert!(
        said.contains("userfaultfd") && said.contains("set the sysctl vm.unprivileged_userfaultfd to 1"),
        "{said}"
    );
}
