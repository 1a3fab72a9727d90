//! The fields of a device, one below the other.

use super::printable;
use crate::inspect::values::{DeviceValues, FieldValue, Scalar, StructureValue, Value};
use std::fmt::Write as _;
use std::io::{self, Write};

/// Bytes of a buffer in one line.
const LINE_BYTES: usize = 32;

/// Equal values side by side that are written as one with a count.
const WORTH_COUNTING: usize = 4;

pub(super) fn write(device: &DeviceValues, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nDevice {}, instance {}", printable(&device.idstr), device.instance_id)?;
    content(&device.fields, &device.subsections, 1, out)
}

fn content(
    fields: &[FieldValue],
    subsections: &[StructureValue],
    depth: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let width = fields.iter().map(|field| label(field).chars().count()).max().unwrap_or(0);
    for field in fields {
        write_field(field, width, depth, out)?;
    }
    for subsection in subsections {
        structure("subsection ", subsection, depth, out)?;
    }
    Ok(())
}

fn structure(what: &str, value: &StructureValue, depth: usize, out: &mut impl Write) -> io::Result<()> {
    let (indent, name) = (indent(depth), printable(&value.vmsd_name));
    writeln!(out, "{indent}{what}{name} (version {})", value.version)?;
    content(&value.fields, &value.subsections, depth + 1, out)
}

fn write_field(field: &FieldValue, width: usize, depth: usize, out: &mut impl Write) -> io::Result<()> {
    let (indent, name, kind) = (indent(depth), label(field), printable(&field.kind));
    write!(out, "{indent}{name:<width$}  ")?;
    match &field.value {
        Value::Structure(value) => {
            writeln!(out, "{} (version {})", printable(&value.vmsd_name), value.version)?;
            content(&value.fields, &value.subsections, depth + 1, out)
        }
        Value::Structures(values) => {
            writeln!(out, "{kind} x {}", values.len())?;
            values
                .iter()
                .enumerate()
                .try_for_each(|(index, value)| structure(&format!("[{index}] "), value, depth + 1, out))
        }
        Value::One(Scalar::Bytes(bytes)) => buffer(bytes, &kind, depth, out),
        Value::One(value) => writeln!(out, "{}  {kind}", scalar(value, &field.kind)),
        Value::Array(values) => writeln!(out, "{}  {kind} x {}", array(values, &field.kind), values.len()),
    }
}

fn label(field: &FieldValue) -> String {
    let index = field.index.map_or_else(String::new, |index| format!("[{index}]"));
    printable(&field.name) + &index
}

fn scalar(value: &Scalar, kind: &str) -> String {
    match value {
        Scalar::Bool(value) => value.to_string(),
        Scalar::Signed(-1) if kind == "timer" => "not armed".to_owned(),
        Scalar::Unsigned(value @ 0..10) => value.to_string(),
        Scalar::Unsigned(value) => format!("{value} ({value:#x})"),
        Scalar::Signed(value) => value.to_string(),
        Scalar::Bytes(bytes) => hexadecimal(bytes),
    }
}

fn array(values: &[Scalar], kind: &str) -> String {
    let runs = values.chunk_by(|left, right| left == right).map(|run| {
        let text = scalar(&run[0], kind);
        if run.len() >= WORTH_COUNTING {
            format!("{} times {text}", run.len())
        } else {
            vec![text; run.len()].join(", ")
        }
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn buffer(bytes: &[u8], kind: &str, depth: usize, out: &mut impl Write) -> io::Result<()> {
    let count = bytes.len();
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = &bytes[..end];
    if text.is_empty() {
        writeln!(out, "{count} zero bytes  {kind}")
    } else if text.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') && text.len() > 1 {
        writeln!(out, "{:?}, {count} bytes  {kind}", String::from_utf8_lossy(text))
    } else if count <= LINE_BYTES {
        writeln!(out, "{}  {kind}", hexadecimal(bytes))
    } else {
        writeln!(out, "{count} bytes  {kind}")?;
        lines(bytes, depth + 1, out)
    }
}

/// A long buffer, line by line; lines of zeros are left out.
fn lines(bytes: &[u8], depth: usize, out: &mut impl Write) -> io::Result<()> {
    for (index, line) in bytes.chunks(LINE_BYTES).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            writeln!(out, "{}{:#06x}  {}", indent(depth), index * LINE_BYTES, hexadecimal(line))?;
        }
    }
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any text");
        text
    })
}

fn indent(depth: usize) -> String {
    "  ".repeat(depth)
}
