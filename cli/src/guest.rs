//! The options by which a guest is ordered; the same for `vmm` and for `demo`.

use crate::size::Size;
use clap::ValueEnum;
use limosa_pages::{ByteCount, PageCount};
use limosa_vmm::{Content, Dirtier, GuestKind, Rate, Writing};
use thiserror::Error;

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// KVM where it is usable, else threads of a process.
    Auto,
    /// vCPUs under KVM.
    Kvm,
    /// Threads of a process that write into the guest's memory.
    Process,
}

/// Part of RAM that a demonstration's guest writes, if nobody says: at the default rate it is written all over in 0.8 s, so
/// that a migration needs several rounds.
const DEMO_WORKING_SET: u64 = 64 << 20;

/// What the guest's pages look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Class {
    /// All zeros.
    Zero,
    /// Incompressible.
    Random,
    /// Letters; shrinks to about a third.
    Text,
    /// One page in four zero, one random, two text.
    Mixed,
}

/// What the guest's pages hold at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prefill {
    /// Nothing: memory that was never touched.
    None,
    /// Zeros that were written: memory that was touched.
    Zero,
    /// Incompressible.
    Random,
    /// Letters; shrinks to about a third.
    Text,
    /// One page in four zero, one random, two text.
    Mixed,
}

/// Size and kind of a machine.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineOptions {
    /// What executes the guest.
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Kind::Auto)]
    pub(crate) guest: Kind,
    /// RAM, for example 512M or 4G.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub(crate) memory: Size,
    /// vCPUs, or workers of a process guest.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) vcpus: u32,
}

/// What the built-in guest does.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "What the built-in guest does")]
pub(crate) struct DirtierOptions {
    /// Pages of 4 KiB that the guest writes per second; `max` is as fast as it can.
    #[arg(long, value_name = "PAGES", default_value = "20000")]
    pub(crate) dirty_rate: DirtyRate,
    /// The part of RAM that it writes again and again [default: all; of a demo 64M]
    #[arg(long, value_name = "SIZE")]
    pub(crate) working_set: Option<Size>,
    /// What it writes.
    #[arg(long, value_enum, value_name = "CONTENT", default_value_t = Class::Mixed)]
    pub(crate) content: Class,
    /// What RAM holds before [default: none; of a demo mixed]
    #[arg(long, value_enum, value_name = "CONTENT")]
    pub(crate) prefill: Option<Prefill>,
    /// Write only 16 bytes of a page that was written before.
    #[arg(long)]
    pub(crate) light: bool,
    /// Makes one guest's content different from another's.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// How fast a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirtyRate(pub(crate) Rate);

/// Text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected a number of pages per second, or max")]
pub(crate) struct DirtyRateError;

impl std::str::FromStr for DirtyRate {
    type Err = DirtyRateError;

    fn from_str(text: &str) -> Result<Self, DirtyRateError> {
        match text {
            "max" => Ok(Self(Rate::Unlimited)),
            _ => text.parse().map(|pages| Self(Rate::PagesPerSecond(pages))).map_err(|_| DirtyRateError),
        }
    }
}

impl DirtyRate {
    /// `20000 pages/s`.
    pub(crate) fn in_words(self) -> String {
        match self.0 {
            Rate::Idle | Rate::PagesPerSecond(0) => "nothing".to_owned(),
            Rate::PagesPerSecond(pages) => format!("{pages} pages/s"),
            Rate::Unlimited => "as fast as it can".to_owned(),
        }
    }
}

impl std::fmt::Display for DirtyRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Rate::Idle => f.write_str("0"),
            Rate::PagesPerSecond(pages) => pages.fmt(f),
            Rate::Unlimited => f.write_str("max"),
        }
    }
}

impl MachineOptions {
    pub(crate) fn kind(&self) -> GuestKind {
        match self.guest {
            Kind::Auto => GuestKind::Auto,
            Kind::Kvm => GuestKind::Kvm,
            Kind::Process => GuestKind::Process,
        }
    }

    /// `2 vCPUs`.
    pub(crate) fn vcpus_in_words(&self) -> String {
        format!("{} vCPU{}", self.vcpus, if self.vcpus == 1 { "" } else { "s" })
    }

    pub(crate) fn memory(&self) -> ByteCount {
        ByteCount(self.memory.0)
    }

    /// As words of a command line.
    pub(crate) fn arguments(&self) -> Vec<String> {
        vec![
            format!("--guest={}", word(self.guest)),
            format!("--memory={}", self.memory.0),
            format!("--vcpus={}", self.vcpus),
        ]
    }
}

impl DirtierOptions {
    /// What a demonstration takes where nothing was said: a guest whose migration is worth looking at.
    pub(crate) fn fill_in_for_demo(&mut self, memory: Size) {
        self.prefill.get_or_insert(Prefill::Mixed);
        self.working_set.get_or_insert(Size(DEMO_WORKING_SET.min(memory.0 / 2)));
    }

    /// The guest as the VMM knows it; `prefilled` if the memory file holds the prefill already.
    pub(crate) fn dirtier(&self, prefilled: bool) -> Dirtier {
        let prefill = self.prefill.and_then(Prefill::content);
        Dirtier {
            seed: self.seed,
            content: self.content.content(),
            prefill: match prefill {
                None => limosa_vmm::Prefill::Untouched,
                Some(content) if prefilled => limosa_vmm::Prefill::Present(content),
                Some(content) => limosa_vmm::Prefill::Write(content),
            },
            working_set: self.working_set.map(|size| PageCount(size.0 / limosa_pages::PAGE_BYTES as u64)),
            rate: self.dirty_rate.0,
            writing: if self.light { Writing::Light } else { Writing::Full },
        }
    }

    /// As words of a command line.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut words = vec![
            format!("--dirty-rate={}", self.dirty_rate),
            format!("--content={}", word(self.content)),
            format!("--seed={}", self.seed),
        ];
        words.extend(self.working_set.map(|size| format!("--working-set={}", size.0)));
        words.extend(self.prefill.map(|class| format!("--prefill={}", word(class))));
        words.extend(self.light.then(|| "--light".to_owned()));
        words
    }
}

impl Class {
    pub(crate) const fn content(self) -> Content {
        match self {
            Self::Zero => Content::Zero,
            Self::Random => Content::Random,
            Self::Text => Content::Text,
            Self::Mixed => Content::Mixed,
        }
    }
}

impl Prefill {
    /// `None` if memory is left alone.
    const fn content(self) -> Option<Content> {
        match self {
            Self::None => None,
            Self::Zero => Some(Content::Zero),
            Self::Random => Some(Content::Random),
            Self::Text => Some(Content::Text),
            Self::Mixed => Some(Content::Mixed),
        }
    }
}

fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_owned()
}
