//! Columns as wide as their widest cell.

use std::io::{self, Write};

/// To which side a column's cells go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows of `N` cells, indented by two spaces.
pub(super) struct Table<const N: usize> {
    aligns: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(columns: [(&str, Align); N]) -> Self {
        let aligns = columns.map(|(_, align)| align);
        Self { aligns, rows: vec![columns.map(|(title, _)| title.to_owned())] }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let widest = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        let widths: [usize; N] = std::array::from_fn(|column| widest(column).unwrap_or(0));
        let mut line = String::new();
        for row in &self.rows {
            line.clear();
            for ((cell, width), align) in row.iter().zip(widths).zip(self.aligns) {
                let padding = " ".repeat(width - cell.chars().count());
                let (before, behind) = match align {
                    Align::Left => ("", padding.as_str()),
                    Align::Right => (padding.as_str(), ""),
                };
                line.push_str("  ");
                line.push_str(before);
                line.push_str(cell);
                line.push_str(behind);
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
