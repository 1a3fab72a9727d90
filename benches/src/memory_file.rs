//! Guest memory in a file that both programs' sources map.

use crate::error::BenchError;
use limosa_pages::ByteCount;
use limosa_vmm::{Content, write_memory_file};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Any number: the content only has to be the same for everybody.
const SEED: u64 = 1;

/// A file without a name, filled with content.
///
/// Others open it through this process's descriptor. It is gone with its last user, however that one ends.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
    _file: File,
}

impl MemoryFile {
    /// Fills a new file in `folder`, a tmpfs if possible, with `memory` bytes of `content`.
    ///
    /// # Errors
    /// No such file in that folder, or no room for it.
    pub fn fill(folder: &Path, memory: ByteCount, content: Content) -> Result<Self, BenchError> {
        let files = |source: io::Error| BenchError::Files { folder: folder.to_owned(), source };
        let file = tempfile::tempfile_in(folder).map_err(files)?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        write_memory_file(&path, memory, content, SEED)?;
        Ok(Self { path, _file: file })
    }

    /// A name under which other processes of this user can open it while this value lives.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
