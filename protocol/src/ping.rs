//! What each PING of ours is for, and which PONG answers it.
//!
//! A destination answers pings in stream order, after it has processed everything before them. So a PONG is a
//! proof, and the value says of what. A QEMU destination gives the same proof: it echoes any value.

use limosa_wire::GREETING;
use std::fmt;

/// Highest number of a round; also the limit on their count (I11). The values of round pings have 28 bits for it:
/// at a round per millisecond that is three days.
pub const ROUNDS_MAX: u32 = 0x0fff_ffff;

// QEMU uses 1 to 4 and 0x42: outside of these but 3, which we use for what QEMU uses it for.
const PACKAGE: u32 = 3;
const SETUP: u32 = 0x4c00_0001;
const SWITCHOVER: u32 = 0x4c00_0002;
const POSTCOPY_END: u32 = 0x4c00_0003;
const DISCARDS: u32 = 0x4c00_0004;
const ROUND_BASE: u32 = 0x5000_0000;

/// What a PING asks. Zero is nobody's value (I9), so a defaulted answer satisfies no wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PingPurpose {
    /// Is anyone there? Sent first, with the value that QEMU uses for the same question.
    Open,
    /// Do you know our extensions? A HELLO comes before the answer if so (wire 14.1).
    Greeting,
    /// Do you accept the configuration, the block list and the versions?
    Setup,
    /// Have you processed everything of this round (I5)? Counted from 1.
    Round(u32),
    /// Have you loaded every device?
    Switchover,
    /// Have you dropped all that was stale so far? Asked again after every list.
    Discards,
    /// Have you loaded every device of the package? It stands inside of it, with the value that QEMU uses there.
    Package,
    /// Have you processed all pages of postcopy?
    PostcopyEnd,
}

/// What a PONG turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pong {
    /// The answer that is waited for.
    Awaited,
    /// The answer to a ping that nobody waits for any more.
    Earlier,
    /// Answers nothing that was asked.
    Unasked,
}

/// Remembers what was asked, so that an answer can be told from an invention.
#[derive(Debug, Default)]
pub(crate) struct PingLedger {
    open: bool,
    greeting: bool,
    setup: bool,
    last_round: u32,
    switchover: bool,
    package: bool,
    postcopy_end: bool,
    discards: bool,
    awaited: Option<PingPurpose>,
}

impl PingPurpose {
    /// The value on the wire.
    ///
    /// # Panics
    /// If a round's number is zero or above [`ROUNDS_MAX`].
    pub fn value(self) -> u32 {
        match self {
            Self::Open => 1,
            Self::Greeting => GREETING,
            Self::Setup => SETUP,
            Self::Round(number) => {
                assert!((1..=ROUNDS_MAX).contains(&number), "round {number} has no ping");
                ROUND_BASE + number
            }
            Self::Switchover => SWITCHOVER,
            Self::Package => PACKAGE,
            Self::PostcopyEnd => POSTCOPY_END,
            Self::Discards => DISCARDS,
        }
    }

    /// The purpose of a value of ours; `None` for anybody else's.
    pub fn from_value(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Open),
            GREETING => Some(Self::Greeting),
            SETUP => Some(Self::Setup),
            SWITCHOVER => Some(Self::Switchover),
            PACKAGE => Some(Self::Package),
            POSTCOPY_END => Some(Self::PostcopyEnd),
            DISCARDS => Some(Self::Discards),
            _ => match value.checked_sub(ROUND_BASE)? {
                number @ 1..=ROUNDS_MAX => Some(Self::Round(number)),
                _ => None,
            },
        }
    }
}

impl fmt::Display for PingPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Greeting => f.write_str("greeting"),
            Self::Setup => f.write_str("setup"),
            Self::Round(number) => write!(f, "round {number}"),
            Self::Switchover => f.write_str("switchover"),
            Self::Package => f.write_str("package"),
            Self::PostcopyEnd => f.write_str("end of postcopy"),
            Self::Discards => f.write_str("discards"),
        }
    }
}

impl PingLedger {
    /// Notes a ping that nobody waits for.
    pub(crate) fn ask(&mut self, purpose: PingPurpose) {
        match purpose {
            PingPurpose::Open => self.open = true,
            PingPurpose::Greeting => self.greeting = true,
            PingPurpose::Setup => self.setup = true,
            PingPurpose::Round(number) => self.last_round = number,
            PingPurpose::Switchover => self.switchover = true,
            PingPurpose::Package => self.package = true,
            PingPurpose::PostcopyEnd => self.postcopy_end = true,
            PingPurpose::Discards => self.discards = true,
        }
    }

    /// Notes a ping whose answer is waited for.
    pub(crate) fn ask_and_wait(&mut self, purpose: PingPurpose) {
        assert!(self.awaited.is_none(), "waits for {:?} already", self.awaited);
        self.ask(purpose);
        self.awaited = Some(purpose);
    }

    /// The answer that is waited for is wanted no more; it may still come.
    pub(crate) fn stop_waiting(&mut self) {
        self.awaited = None;
    }

    /// The connection is gone, and with it every answer that was on its way (I8).
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Judges an answer. The awaited one is waited for no more.
    pub(crate) fn answered(&mut self, value: u32) -> Pong {
        let Some(purpose) = PingPurpose::from_value(value) else { return Pong::Unasked };
        if self.awaited == Some(purpose) {
            self.awaited = None;
            return Pong::Awaited;
        }
        let asked = match purpose {
            PingPurpose::Open => self.open,
            PingPurpose::Greeting => self.greeting,
            PingPurpose::Setup => self.setup,
            PingPurpose::Round(number) => number <= self.last_round,
            PingPurpose::Switchover => self.switchover,
            PingPurpose::Package => self.package,
            PingPurpose::PostcopyEnd => self.postcopy_end,
            PingPurpose::Discards => self.discards,
        };
        if asked { Pong::Earlier } else { Pong::Unasked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purpose_has_a_value_of_its_own_that_nobody_else_uses() {
        let purposes = [
            PingPurpose::Open,
            PingPurpose::Greeting,
            PingPurpose::Setup,
            PingPurpose::Switchover,
            PingPurpose::Package,
            PingPurpose::PostcopyEnd,
            PingPurpose::Discards,
            PingPurpose::Round(1),
            PingPurpose::Round(ROUNDS_MAX),
        ];
        for purpose in purposes {
            assert_eq!(PingPurpose::from_value(purpose.value()), Some(purpose));
        }
        // Nothing, QEMU's other pings, a round zero.
        for value in [0, 2, 4, 0x42, ROUND_BASE] {
            assert_eq!(PingPurpose::from_value(value), None, "{value:#x}");
        }
    }

    #[test]
    fn an_answer_satisfies_its_own_wait_once_and_no_other() {
        let mut ledger = PingLedger::default();
        ledger.ask(PingPurpose::Open);
        ledger.ask_and_wait(PingPurpose::Round(2));
        assert_eq!(ledger.answered(0), Pong::Unasked);
        assert_eq!(ledger.answered(PingPurpose::Round(3).value()), Pong::Unasked);
        assert_eq!(ledger.answered(PingPurpose::Setup.value()), Pong::Unasked);
        assert_eq!(ledger.answered(PingPurpose::Round(1).value()), Pong::Earlier);
        assert_eq!(ledger.answered(PingPurpose::Open.value()), Pong::Earlier);
        assert_eq!(ledger.answered(PingPurpose::Round(2).value()), Pong::Awaited);
        assert_eq!(ledger.answered(PingPurpose::Round(2).value()), Pong::Earlier);
    }
}
