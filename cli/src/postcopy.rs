//! The options for a guest that moves before its memory (postcopy), for `vmm` and for `demo`.

use clap::ValueEnum;
use limosa_qmp::{MigrationCapability, MigrationCapabilityStatus, MigrationParameters};

/// What a VMM that waits for a guest must be told from the start.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct PostcopyOptions {
    /// The guest may move before its memory (postcopy); on both sides. Needs userfaultfd here.
    #[arg(long)]
    postcopy: bool,
    /// Pages that the guest waits for come on the main connection, not on one of their own.
    #[arg(long, requires = "postcopy")]
    no_preempt: bool,
}

/// What a demonstration is told.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct PostcopySwitch {
    /// Let the guest move before its memory (postcopy): `round` after the first round, `now` as soon as memory moves, `auto`
    /// when another round would not help.
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "round")]
    postcopy: Option<When>,
    /// Send pages that the guest waits for on the main connection, not on one of their own.
    #[arg(long, requires = "postcopy")]
    no_preempt: bool,
}

/// When the guest moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// After the first round.
    Round,
    /// As soon as memory moves.
    Now,
    /// When another round would not help.
    Auto,
}

impl PostcopyOptions {
    /// The capabilities, on or off.
    pub(crate) fn capabilities(self) -> [MigrationCapabilityStatus; 3] {
        capabilities(self.postcopy, !self.no_preempt)
    }
}

impl PostcopySwitch {
    /// The capabilities, on or off.
    pub(crate) fn capabilities(self) -> [MigrationCapabilityStatus; 3] {
        capabilities(self.postcopy.is_some(), !self.no_preempt)
    }

    /// What the source's monitor is told; the rest of a `when` is a command.
    pub(crate) fn parameters(self) -> MigrationParameters {
        MigrationParameters {
            x_postcopy_auto: Some(matches!(self.postcopy, Some(When::Round | When::Auto))),
            x_postcopy_auto_rounds: Some(u64::from(self.postcopy == Some(When::Round))),
            ..MigrationParameters::default()
        }
    }

    /// Whether the source has to be told as soon as memory moves.
    pub(crate) fn is_now(self) -> bool {
        self.postcopy == Some(When::Now)
    }

    /// The words of the destination's command line.
    pub(crate) fn arguments(self) -> Vec<String> {
        let word = |word: &str, said: bool| said.then(|| word.to_owned());
        let words = [word("--postcopy", self.postcopy.is_some()), word("--no-preempt", self.no_preempt)];
        words.into_iter().flatten().collect()
    }
}

fn capabilities(postcopy: bool, preempt: bool) -> [MigrationCapabilityStatus; 3] {
    let status = |capability, state| MigrationCapabilityStatus { capability, state };
    [
        status(MigrationCapability::PostcopyRam, postcopy),
        status(MigrationCapability::PostcopyPreempt, postcopy && preempt),
        status(MigrationCapability::PostcopyBlocktime, postcopy),
    ]
}
