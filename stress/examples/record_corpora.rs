//! Records the migration streams in `corpora/` anew: two QEMUs, a guest of our own, and a tap between them.
//!
//! `cargo run -p limosa-stress --example record_corpora [FOLDER]`

use limosa_pages::PageCount;
use limosa_stress::qemu::{Accelerator, Binary, Boot, Machine, Payload, Qemu, Release, Setup, Tap};
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};

/// A migration to record.
struct Scenario {
    name: &'static str,
    machine: Machine,
    accelerator: Accelerator,
    capabilities: &'static [&'static str],
    /// Of both sides.
    parameters: Value,
    /// Beside the main one.
    channels: usize,
    switch: Switch,
}

/// When the guest moves.
enum Switch {
    /// When QEMU sees fit.
    Converged,
    /// After this many rounds.
    AfterPasses(u64),
    /// By postcopy, in the first round.
    Postcopy,
}

/// As small as a guest that still has something to say: RAM, working set (128 KiB), rate.
const MEMORY_MIB: u32 = 2;
const WORKING_SET: PageCount = PageCount(32);
const LEVEL: i32 = 19;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(default_folder, PathBuf::from);
    let Some(binary) = Release::Current.require() else { return Err("no QEMU".into()) };
    for scenario in scenarios() {
        record(&scenario, &binary, &folder)?;
    }
    Ok(())
}

fn default_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora")
}

fn scenarios() -> Vec<Scenario> {
    let precopy = |name, machine, accelerator| Scenario {
        name,
        machine,
        accelerator,
        capabilities: &["return-path"],
        parameters: json!({}),
        channels: 0,
        switch: Switch::Converged,
    };
    let multifd = |name, compression| Scenario {
        capabilities: &["return-path", "multifd"],
        parameters: json!({ "multifd-channels": 2, "multifd-compression": compression }),
        channels: 2,
        ..precopy(name, Machine::Microvm, Accelerator::Tcg)
    };
    vec![
        precopy("precopy-microvm-tcg", Machine::Microvm, Accelerator::Tcg),
        precopy("precopy-microvm-kvm", Machine::Microvm, Accelerator::Kvm),
        precopy("precopy-pc-tcg", Machine::Pc, Accelerator::Tcg),
        Scenario {
            capabilities: &["return-path", "xbzrle"],
            switch: Switch::AfterPasses(5),
            ..precopy("xbzrle-microvm", Machine::Microvm, Accelerator::Tcg)
        },
        multifd("multifd2-none-microvm", "none"),
        multifd("multifd2-zlib-microvm", "zlib"),
        multifd("multifd2-zstd-microvm", "zstd"),
        Scenario {
            capabilities: &["postcopy-ram"],
            switch: Switch::Postcopy,
            ..precopy("postcopy-microvm", Machine::Microvm, Accelerator::Tcg)
        },
    ]
}

fn record(scenario: &Scenario, binary: &Binary, folder: &Path) -> Result<(), Box<dyn Error>> {
    let payload = Payload { working_set: WORKING_SET, ..Payload::paced(scenario.accelerator) };
    let setup = Setup {
        memory_mib: MEMORY_MIB,
        // ACPI tables are QEMU's own work and would lie in blocks of their own.
        machine_options: vec!["acpi=off"],
        boot: Boot::Flash(payload),
        ..Setup::new(scenario.machine, scenario.accelerator)
    };
    let mut source = setup.start(binary)?;
    let mut destination = setup.destination().start(binary)?;
    for qemu in [&mut source, &mut destination] {
        let states: Vec<(&str, bool)> = scenario.capabilities.iter().map(|name| (*name, true)).collect();
        qemu.set_capabilities(&states)?;
        qemu.set_parameters(scenario.parameters.clone())?;
    }
    let socket = destination.folder().join("migration");
    destination.migrate_incoming(&format!("unix:{}", socket.display()))?;
    let tap = Tap::start(source.folder(), socket, 1 + scenario.channels)?;

    let tick = source.wait_tick_past(20)?;
    migrate(scenario, &mut source, &tap.uri())?;
    destination.wait_migrated()?;
    destination.wait_tick_past(tick + 20)?;
    drop((source, destination));

    for (channel, conversation) in tap.finish()?.into_iter().enumerate() {
        write(folder, &format!("{}.{channel}", scenario.name), &conversation.forward)?;
        if !conversation.backward.is_empty() {
            write(folder, &format!("{}.return", scenario.name), &conversation.backward)?;
        }
    }
    Ok(())
}

fn migrate(scenario: &Scenario, source: &mut Qemu, uri: &str) -> Result<(), Box<dyn Error>> {
    // Slow enough that the guest writes everything again in each round.
    let slow = json!({ "downtime-limit": 1, "max-bandwidth": 256 << 10 });
    let fast = json!({ "downtime-limit": 2000, "max-bandwidth": 0 });
    match scenario.switch {
        Switch::Converged => source.migrate(uri)?,
        Switch::AfterPasses(passes) => {
            source.set_parameters(slow)?;
            source.migrate(uri)?;
            source.wait_pass(passes)?;
            source.set_parameters(fast)?;
        }
        Switch::Postcopy => {
            source.set_parameters(slow)?;
            source.migrate(uri)?;
            source.wait_pass(1)?;
            source.execute("migrate-start-postcopy", json!({}))?;
        }
    }
    Ok(source.wait_migrated()?)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let compressed = zstd::encode_all(bytes, LEVEL)?;
    println!("{name}: {} bytes, {} compressed", bytes.len(), compressed.len());
    Ok(std::fs::write(folder.join(format!("{name}.zst")), compressed)?)
}
