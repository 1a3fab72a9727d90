//! Guest memory in a file that both programs' sources map.

use crate::error::BenchError;
use crate::scenario::Scenario;
use limosa_vmm::write_memory_file;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Any number: the content only has to be the same for everybody.
const SEED: u64 = 1;

/// A file without a name, filled for a scenario.
///
/// Others open it through this process's descriptor. It is gone with its last user, however that one ends.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
    _file: File,
}

impl MemoryFile {
    /// Fills a new file in `folder`, a tmpfs if possible, with what `scenario` says.
    ///
    /// # Errors
    /// No such file in that folder, or no room for it.
    pub fn fill(folder: &Path, scenario: &Scenario) -> Result<Self, BenchError> {
        let files = |source: io::Error| BenchError::Files { folder: folder.to_owned(), source };
        let file = tempfile::tempfile_in(folder).map_err(files)?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        write_memory_file(&path, scenario.memory, scenario.content, SEED)?;
        Ok(Self { path, _file: file })
    }

    /// A name under which other processes of this user can open it while this value lives.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
