//! Recordings of an unmodified QEMU decode to the last byte.
//!
//! The recordings hold firmware of others and stay outside of this repository: set `LIMOSA_CAPTURES` to their
//! folder, or put it at `../shared/captures` beside the workspace. Without them this ring is left out, loudly;
//! with `LIMOSA_REQUIRE_ALL_RINGS=1` it fails instead.

mod recording;

use limosa_wire::devices::{VmDescription, find_end, split_by_footers, split_by_sizes};
use limosa_wire::multifd::Compression;
use recording::{Channel, Ending, MainChannel, Preempt, load};

/// What the recording of a whole precopy must show, whatever the machine.
fn whole_precopy(name: &str) -> Option<MainChannel> {
    let recording = MainChannel::walk(&load(name)?);
    assert_eq!(recording.ending, Ending::VmDescription, "{name}");
    assert_eq!(recording.devices.first().map(String::as_str), Some("timer"), "{name}");
    assert_eq!(recording.devices.last().map(String::as_str), Some("globalstate"), "{name}");
    Some(recording)
}

#[test]
fn precopy_of_microvm_decodes_to_the_last_byte() {
    let Some(recording) = whole_precopy("precopy-microvm-16M.mig") else { return };
    assert_eq!(recording.machine, "microvm");
    assert_eq!(recording.blocks.len(), 5);
    assert_eq!(recording.blocks[0], ("microvm.ram".to_owned(), 16 << 20));
    assert!(
        recording.zero_pages + recording.pages >= 4096,
        "all of the guest's 16 MiB are in the first pass"
    );
    assert_eq!(recording.ends, 1);
}

#[test]
fn precopy_of_microvm_under_tcg_decodes_to_the_last_byte() {
    let Some(recording) = whole_precopy("precopy-microvm-tcg-16M.mig") else { return };
    assert!(recording.devices.iter().any(|idstr| idstr == "mc146818rtc"), "{:?}", recording.devices);
}

#[test]
fn precopy_of_pc_decodes_to_the_last_byte() {
    let Some(recording) = whole_precopy("precopy-pc-16M.mig") else { return };
    assert_eq!(recording.machine, "pc-i440fx-10.0");
    assert!(
        recording.devices.iter().any(|idstr| idstr == "0000:00:01.3/piix4_pm"),
        "{:?}",
        recording.devices
    );
}

#[test]
fn background_snapshot_decodes_although_ram_has_no_end() {
    let Some(recording) = whole_precopy("background-snapshot-microvm-16M.mig") else { return };
    assert_eq!(recording.ends, 0);
    assert!(recording.pages > 0);
}

#[test]
fn mapped_ram_file_decodes_around_its_pages() {
    let Some(recording) = whole_precopy("mapped-ram-pc-16M.mig") else { return };
    assert_eq!(recording.capabilities, ["mapped-ram"]);
    assert_eq!(recording.blocks[0], ("pc.ram".to_owned(), 16 << 20));
    assert_eq!(recording.pages + recording.zero_pages, 0, "pages lie at fixed offsets, not in records");
    assert!(recording.mapped_pages > 0);
}

#[test]
fn multifd_main_channels_carry_no_pages_but_flushes() {
    for name in ["multifd3-none", "multifd3-zlib", "multifd3-zstd"] {
        let Some(recording) = whole_precopy(&format!("{name}.0")) else { return };
        assert_eq!(recording.pages + recording.zero_pages, 0, "{name}");
        assert_eq!(recording.flushes, 4, "{name}");
    }
}

#[test]
fn multifd_main_channel_carries_zero_pages_when_they_are_found_there() {
    let Some(recording) = whole_precopy("multifd3-none-legacy-zero.0") else { return };
    assert_eq!(recording.pages, 0);
    assert!(recording.zero_pages > 0);
}

#[test]
fn every_multifd_channel_decodes_to_the_last_byte() {
    let recordings = [
        ("multifd3-none", Compression::None),
        ("multifd3-none-legacy-zero", Compression::None),
        ("multifd3-zlib", Compression::Zlib),
        ("multifd3-zstd", Compression::Zstd),
    ];
    for (name, compression) in recordings {
        let Some(main) = whole_precopy(&format!("{name}.0")) else { return };
        // Without flush records the channels are synchronised at the end of every section.
        let sync_points = if main.flushes > 0 { main.flushes } else { main.ram_sections };
        let mut numbers = Vec::new();
        let mut ids = Vec::new();
        for index in 1..=3 {
            let channel = Channel::walk(&load(&format!("{name}.{index}")).expect("all channels are there"));
            assert_eq!(channel.syncs, sync_points, "{name}.{index}");
            assert!(channel.compressions.iter().all(|found| *found == compression), "{name}.{index}");
            numbers.extend(channel.packet_numbers);
            ids.push(channel.id);
        }
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2], "{name}");
        numbers.sort_unstable();
        let expected: Vec<u64> = (0..numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "{name}: the packet counter is shared by all channels");
    }
}

#[test]
fn postcopy_main_channel_decodes_to_the_cut() {
    let Some(bytes) = load("postcopy-cut.main") else { return };
    let recording = MainChannel::walk(&bytes);
    assert_eq!(recording.ending, Ending::Cut);
    assert!(recording.discards > 0);
    assert_eq!(recording.packages, 1);
    assert!(recording.devices.is_empty() && !recording.packaged_devices.is_empty());
    assert_eq!(recording.packaged_devices.last().map(String::as_str), Some("globalstate"));
    assert_eq!(recording.pings, [1, 2, 3, 4]);
}

#[test]
fn postcopy_with_preempt_decodes_on_both_channels() {
    let Some(bytes) = load("postcopy-preempt-cut.main") else { return };
    let recording = MainChannel::walk(&bytes);
    assert_eq!(recording.ending, Ending::Cut);
    assert_eq!(recording.packages, 1);
    let preempt = Preempt::walk(&load("postcopy-preempt-cut.preempt").expect("both channels are there"));
    assert_eq!(preempt.block.as_deref(), Some("microvm.ram"));
    assert_eq!(preempt.pages, 2);
}

#[test]
fn recovery_connections_begin_without_a_header() {
    for name in ["postcopy-cut.recovered", "postcopy-preempt-cut.recovered"] {
        let Some(bytes) = load(name) else { return };
        let recording = MainChannel::walk_recovered(&bytes);
        assert_eq!(recording.bitmap_requests.first().map(String::as_str), Some("microvm.ram"), "{name}");
        assert_eq!(recording.bitmap_requests.len(), 5, "{name}");
        assert_eq!(recording.ending, Ending::EndOfStream, "{name}");
    }
}

#[test]
fn footers_divide_the_devices_as_the_vmdescription_does() {
    for name in ["precopy-microvm-16M.mig", "precopy-microvm-tcg-16M.mig", "precopy-pc-16M.mig"] {
        let Some(bytes) = load(name) else { return };
        let end = find_end(&bytes).expect("a whole stream ends with a vmdescription");
        let description = VmDescription::parse(&bytes[end.description..]).expect("QEMU's own text");
        let tail = &bytes[MainChannel::walk(&bytes).first_device.expect("devices")..end.end_of_stream];
        let by_sizes = split_by_sizes(tail, &description).expect("sizes fit");
        assert_eq!(by_sizes.len(), description.devices.len(), "{name}");
        assert_eq!(split_by_footers(tail).expect("footers chain up"), by_sizes, "{name}");
    }
}
