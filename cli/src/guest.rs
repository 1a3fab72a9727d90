//! The options by which a guest is ordered; the same for `vmm` and for `demo`.

use crate::size::Size;
use clap::ValueEnum;
use limosa_pages::{ByteCount, PageCount};
use limosa_vmm::{Content, Dirtier, GuestKind, Prefill, Rate, Writing};

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

/// Size and kind of a machine.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MachineOptions {
    /// What executes the guest.
    #[arg(long, value_enum, default_value_t = Kind::Auto)]
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
pub(crate) struct DirtierOptions {
    /// Pages of 4 KiB that the guest writes per second; `max` is as fast as it can.
    #[arg(long, value_name = "PAGES", default_value = "20000")]
    pub(crate) dirty_rate: DirtyRate,
    /// The part of RAM that it writes again and again; all of it if not said.
    #[arg(long, value_name = "SIZE")]
    pub(crate) working_set: Option<Size>,
    /// What it writes.
    #[arg(long, value_enum, default_value_t = Class::Mixed)]
    pub(crate) content: Class,
    /// What RAM holds before; untouched zeros if not said.
    #[arg(long, value_enum, value_name = "CONTENT")]
    pub(crate) prefill: Option<Class>,
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

impl std::str::FromStr for DirtyRate {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "max" { Ok(Self(Rate::Unlimited)) } else { Ok(Self(Rate::PagesPerSecond(text.parse()?))) }
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
    /// The guest as the VMM knows it; `prefilled` if the memory file holds the prefill already.
    pub(crate) fn dirtier(&self, prefilled: bool) -> Dirtier {
        let prefill = self.prefill.map(Class::content);
        Dirtier {
            seed: self.seed,
            content: self.content.content(),
            prefill: match prefill {
                None => Prefill::Untouched,
                Some(content) if prefilled => Prefill::Present(content),
                Some(content) => Prefill::Write(content),
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

fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_owned()
}
