//! The rules of the house that a compiler does not hold.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates from the bottom up, and the layer of each. An arrow may point to a lower layer, or inside the layer of the
/// kernel to the left: transport sends from ram.
const LAYERS: &[(&str, u32)] = &[
    ("limosa-pages", 0),
    ("limosa-vmstate-derive", 0),
    ("limosa-wire", 1),
    ("limosa-vmstate", 1),
    ("limosa-compress", 2),
    ("limosa-protocol", 2),
    ("limosa-ram", 3),
    ("limosa-transport", 4),
    ("limosa-multifd", 5),
    ("limosa-postcopy", 5),
    ("limosa-engine", 6),
    ("limosa", 7),
    ("limosa-qmp", 7),
    ("limosa-vmm", 8),
    ("limosa-cli", 9),
    ("limosa-stress", 9),
    ("limosa-benches", 10),
];

/// Crates without I/O, clock, thread or unsafe.
const PURE: &[&str] = &["pages", "wire", "vmstate", "compress", "protocol"];

/// Files with unsafe code, by their crate. Every other crate forbids it.
const ISLANDS: &[&str] = &["ram", "transport", "postcopy", "vmm"];

/// A file that needs more is two files; tests and tables may run a little over the 500 of the rule.
const LINES_MAX: usize = 650;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every Rust file below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn arrows_between_crates_point_down() {
    let layers: BTreeMap<&str, u32> = LAYERS.iter().copied().collect();
    let metadata = metadata();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let layer = *layers.get(name).unwrap_or_else(|| panic!("{name} has no place in the house"));
        seen.insert(name.to_owned());
        for dependency in package["dependencies"].as_array().unwrap() {
            let target = dependency["name"].as_str().unwrap();
            let is_ours = dependency["path"].is_string();
            // A test may look up: it is nobody's foundation.
            if is_ours && dependency["kind"].is_null() {
                assert!(layers[target] < layer, "{name} must not depend on {target}");
            }
        }
    }
    assert_eq!(seen.len(), LAYERS.len(), "a crate of the list is gone: {seen:?}");
}

#[test]
fn unsafe_code_lives_in_the_islands_only() {
    let root = root();
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned();
        let name = folder.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let allowed = ISLANDS.contains(&name.as_str());
        for file in sources(&folder.join("src")) {
            let text = std::fs::read_to_string(&file).unwrap();
            let is_root =
                ["lib.rs", "main.rs"].iter().any(|root| file.ends_with(Path::new("src").join(root)));
            if is_root && !allowed {
                assert!(
                    text.contains("#![forbid(unsafe_code)]"),
                    "{} does not forbid unsafe",
                    file.display()
                );
            }
            if text.contains("allow(unsafe_code") {
                assert!(allowed, "{} is no island", file.display());
                assert!(text.contains("reason = "), "{} gives no reason", file.display());
            }
        }
    }
}

#[test]
fn pure_crates_refuse_clocks_threads_and_io() {
    for name in PURE {
        let fence = std::fs::read_to_string(root().join(name).join("clippy.toml")).unwrap();
        for refused in ["Instant::now", "thread::spawn", "env::var", "fs::File", "net::TcpStream"] {
            assert!(fence.contains(refused), "{name}/clippy.toml lets {refused} through");
        }
    }
}

#[test]
fn files_stay_small_enough_to_hold_in_the_head() {
    for file in sources(&root()) {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", file.display());
    }
}
