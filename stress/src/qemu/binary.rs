//! Which QEMUs this machine has, and what they run a guest with.

use super::ring;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A release that the ring knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The one in `PATH`, or where `LIMOSA_QEMU` points: 10.0 in Debian's backports.
    Current,
    /// The one where `LIMOSA_QEMU_7_2` points, else below `/opt/qemu-7.2`: 7.2 of Debian's main suite.
    V7_2,
}

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel's.
    Kvm,
    /// QEMU's own translator; works everywhere.
    Tcg,
}

/// An installed QEMU.
#[derive(Clone, Debug)]
pub struct Binary {
    path: PathBuf,
    /// Folders with its firmware, in order of search; empty where the built-in ones are right.
    data: Vec<PathBuf>,
}

const UNPACKED_7_2: &str = "/opt/qemu-7.2/usr/bin/qemu-system-x86_64";
const SYSTEM_DATA: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

impl Release {
    /// The QEMU of this release, or `None` after saying on stderr that the ring is left out.
    ///
    /// # Panics
    /// If it is missing and the environment says `LIMOSA_REQUIRE_ALL_RINGS=1`: there no test may be skipped.
    pub fn require(self) -> Option<Binary> {
        let found = self.find();
        if found.is_none() {
            ring::leave_out(format_args!("{self} is not installed (set {})", self.variable()));
        }
        found
    }

    fn variable(self) -> &'static str {
        match self {
            Release::Current => "LIMOSA_QEMU",
            Release::V7_2 => "LIMOSA_QEMU_7_2",
        }
    }

    fn find(self) -> Option<Binary> {
        let default = match self {
            Release::Current => "qemu-system-x86_64",
            Release::V7_2 => UNPACKED_7_2,
        };
        let path = env::var_os(self.variable()).unwrap_or_else(|| OsString::from(default));
        // Whether it starts is the question, not whether a file is there: a library may be missing.
        let answer = Command::new(&path).arg("--version").output().ok()?;
        answer.status.success().then(|| Binary { data: unpacked_data(Path::new(&path)), path: path.into() })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Release::Current => "qemu-system-x86_64",
            Release::V7_2 => "qemu-system-x86_64 7.2",
        })
    }
}

/// The data folders of a QEMU that stands outside of the system's own tree.
fn unpacked_data(path: &Path) -> Vec<PathBuf> {
    let Some(own) = path.parent().and_then(Path::parent).map(|prefix| prefix.join("share/qemu")) else {
        return Vec::new();
    };
    if own == Path::new(SYSTEM_DATA[0]) || !own.is_dir() {
        return Vec::new();
    }
    // SeaBIOS is a package of its own, so it is looked for in the system's tree too.
    [own].into_iter().chain(SYSTEM_DATA.map(PathBuf::from)).collect()
}

impl Binary {
    /// A command that starts it, with its data folders already given.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        for folder in &self.data {
            command.arg("-L").arg(folder);
        }
        command
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Accelerator {
    /// What `LIMOSA_QEMU_ACCEL` says (`kvm` or `tcg`), else KVM where this process may use it, else TCG.
    ///
    /// # Panics
    /// If the variable has another value.
    pub fn of_this_machine() -> Self {
        match env::var("LIMOSA_QEMU_ACCEL").as_deref() {
            Ok("kvm") => Self::Kvm,
            Ok("tcg") => Self::Tcg,
            Ok(other) => panic!("LIMOSA_QEMU_ACCEL is {other:?}; expected kvm or tcg"),
            Err(_) if Self::kvm_is_usable() => Self::Kvm,
            Err(_) => Self::Tcg,
        }
    }

    fn kvm_is_usable() -> bool {
        OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}
