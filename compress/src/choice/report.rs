//! What was chosen, and why.

use super::Choice;
use std::fmt;

/// How many packets went by one choice, for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChoiceCount {
    /// What was chosen, and why.
    pub choice: Choice,
    /// Packets.
    pub packets: u64,
}

/// What was chosen so far, and why: a line for each kind of choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChoiceReport {
    counts: Vec<ChoiceCount>,
}

impl ChoiceReport {
    /// Every choice with its packets, in the order in which they were first made.
    ///
    /// At most one for each method, with and without delta, and reason.
    pub fn counts(&self) -> &[ChoiceCount] {
        &self.counts
    }

    /// All packets.
    pub fn packets(&self) -> u64 {
        self.counts.iter().map(|count| count.packets).sum()
    }

    pub(super) fn count(&mut self, choice: Choice) {
        match self.counts.iter_mut().find(|count| count.choice == choice) {
            Some(count) => count.packets += 1,
            None => self.counts.push(ChoiceCount { choice, packets: 1 }),
        }
    }
}

impl fmt::Display for ChoiceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (line, count) in self.counts.iter().enumerate() {
            if line > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{} packets by {}", count.packets, count.choice)?;
        }
        Ok(())
    }
}
