//! The report as text for people.
//!
//! Names come from the stream and may hold anything: they are escaped before they reach a terminal.

mod table;
mod values;

use crate::inspect::report::{
    BlockReport, ConfigurationReport, DescriptionReport, DeviceReport, Element, Report, Row, SectionKind,
};
use std::fmt::Display;
use std::io::{self, Write};
use table::{Align, Table};

/// Writes the whole report; parts of which nothing was seen are left out.
pub(super) fn write(report: &Report, name: &str, out: &mut impl Write) -> io::Result<()> {
    head(report, name, out)?;
    if !report.elements.is_empty() {
        elements(report, out)?;
    }
    if !report.ram.is_empty() {
        ram(report, out)?;
    }
    if !report.devices.is_empty() {
        devices(&report.devices, out)?;
    }
    report.device_values.iter().try_for_each(|device| values::write(device, out))
}

/// Bytes with a unit: exact below 100,000, with one decimal above.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 100_000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A text of the stream without control characters.
pub(super) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn head(report: &Report, name: &str, out: &mut impl Write) -> io::Result<()> {
    let mut line = |key: &str, value: &dyn Display| writeln!(out, "{key:<15} {value}");
    line("Stream", &printable(name))?;
    line("Read", &format_args!("{} ({} bytes)", size(report.bytes), report.bytes))?;
    if let Some(version) = report.version {
        line("Version", &version)?;
    }
    if let Some(configuration) = &report.configuration {
        let ConfigurationReport { machine, target_page_bits, capabilities, uuid } = configuration;
        line("Machine", &printable(machine))?;
        if let Some(bits) = target_page_bits {
            line("Page bits", bits)?;
        }
        let listed = capabilities.as_deref().unwrap_or_default();
        let listed = if listed.is_empty() { "none".to_owned() } else { printable(&listed.join(", ")) };
        line("Capabilities", &listed)?;
        line("UUID", &uuid.as_deref().unwrap_or("none"))?;
    }
    match &report.vmdescription {
        DescriptionReport::Absent => line("Vmdescription", &"none seen")?,
        DescriptionReport::Empty => line("Vmdescription", &"empty")?,
        DescriptionReport::Read { bytes, devices, page_size } => {
            let page = page_size.map_or_else(String::new, |page| format!(", target page {page} B"));
            line("Vmdescription", &format_args!("{}, {devices} devices{page}", size(*bytes as u64)))?;
        }
    }
    line("Trailing bytes", &report.trailing_bytes)
}

fn elements(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new([
        ("offset", Align::Right),
        ("size", Align::Right),
        ("element", Align::Left),
        ("id", Align::Right),
        ("name", Align::Left),
        ("instance", Align::Right),
        ("version", Align::Right),
        ("count", Align::Right),
    ]);
    for row in &report.elements {
        table.row(element(row));
    }
    writeln!(out, "\nElements")?;
    table.write(out)?;
    if report.elements_not_listed > 0 {
        writeln!(out, "  ... and {} elements more", report.elements_not_listed)?;
    }
    Ok(())
}

fn element(row: &Row) -> [String; 8] {
    let bare = |what: &str, detail: String| {
        [what.to_owned(), String::new(), detail, String::new(), String::new(), String::new()]
    };
    let [what, id, name, instance, version, count] = match &row.element {
        Element::Header => bare("header", String::new()),
        Element::Configuration => bare("configuration", String::new()),
        Element::Command { command, detail } if detail.is_empty() => bare("COMMAND", (*command).to_owned()),
        Element::Command { command, detail } => bare("COMMAND", format!("{command} ({detail})")),
        Element::EndOfStream => bare("end of stream", String::new()),
        Element::VmDescription => bare("vmdescription", String::new()),
        Element::TrailingBytes => bare("trailing bytes", String::new()),
        Element::Section { kind, id, idstr, instance_id, version_id } => {
            let count = if *kind == SectionKind::Part { row.count.to_string() } else { String::new() };
            [
                kind.to_string(),
                id.to_string(),
                printable(idstr),
                instance_id.to_string(),
                version_id.to_string(),
                count,
            ]
        }
    };
    [format!("{:#x}", row.offset), size(row.bytes), what, id, name, instance, version, count]
}

fn ram(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new([
        ("block", Align::Left),
        ("length", Align::Right),
        ("pages", Align::Right),
        ("zero", Align::Right),
        ("normal", Align::Right),
        ("xbzrle", Align::Right),
        ("xbzrle size", Align::Right),
        ("sent", Align::Right),
        ("repeated", Align::Right),
        ("untouched", Align::Right),
    ]);
    report.ram.iter().for_each(|block| table.row(block_row(block)));
    if report.ram.len() > 1 {
        table.row(block_row(&total(&report.ram)));
    }
    writeln!(out, "\nRAM (pages of 4 KiB, records by kind)")?;
    table.write(out)?;
    for block in &report.ram {
        if let Some(bytes) = block.host_page_bytes {
            writeln!(out, "  {}: host pages of {}", printable(&block.name), size(bytes))?;
        }
        if let Some(address) = block.guest_address {
            writeln!(out, "  {}: at guest address {address:#x}", printable(&block.name))?;
        }
    }
    if report.multifd_flushes > 0 {
        let flushes = report.multifd_flushes;
        writeln!(
            out,
            "  {flushes} multifd flushes: pages went over multifd channels too, which are not here"
        )?;
    }
    Ok(())
}

fn block_row(block: &BlockReport) -> [String; 10] {
    let known = |count: Option<u64>| count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    [
        printable(&block.name),
        size(block.length),
        block.pages.to_string(),
        block.zero.to_string(),
        block.normal.to_string(),
        block.xbzrle.to_string(),
        size(block.xbzrle_bytes),
        size(block.bytes),
        known(block.repeated),
        known(block.untouched),
    ]
}

fn total(blocks: &[BlockReport]) -> BlockReport {
    let sum = |count: fn(&BlockReport) -> u64| blocks.iter().map(count).sum();
    BlockReport {
        name: "(all)".to_owned(),
        length: sum(|block| block.length),
        host_page_bytes: None,
        guest_address: None,
        pages: sum(|block| block.pages),
        zero: sum(|block| block.zero),
        normal: sum(|block| block.normal),
        xbzrle: sum(|block| block.xbzrle),
        xbzrle_bytes: sum(|block| block.xbzrle_bytes),
        bytes: sum(|block| block.bytes),
        repeated: blocks.iter().map(|block| block.repeated).sum(),
        untouched: blocks.iter().map(|block| block.untouched).sum(),
    }
}

fn devices(devices: &[DeviceReport], out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new([
        ("id", Align::Right),
        ("device", Align::Left),
        ("instance", Align::Right),
        ("version", Align::Right),
        ("body", Align::Right),
        ("format", Align::Left),
        ("", Align::Left),
    ]);
    for device in devices {
        let differs = device.described_bytes.filter(|bytes| *bytes != device.bytes);
        table.row([
            device.id.to_string(),
            printable(&device.idstr),
            device.instance_id.to_string(),
            device.version_id.to_string(),
            size(device.bytes),
            device.vmsd_name.as_deref().map_or_else(|| "unknown".to_owned(), printable),
            differs.map_or_else(String::new, |bytes| format!("described with {bytes} bytes")),
        ]);
    }
    let bytes = devices.iter().map(|device| device.bytes).sum();
    writeln!(out, "\nDevices ({}, bodies of {})", devices.len(), size(bytes))?;
    table.write(out)
}
