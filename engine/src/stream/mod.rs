//! The two ends of a migration stream: a buffered writer and a buffered reader over a link.

mod reader;
mod writer;

pub use reader::StreamReader;
pub use writer::StreamWriter;
