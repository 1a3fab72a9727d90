//! What can go wrong with faults and with the pages that end them.

use limosa_pages::{BlockName, PageCount, PageRun, PageSize};
use limosa_ram::RamError;
use limosa_transport::TransportError;
use limosa_wire::WireError;
use std::io;
use thiserror::Error;

/// The kernel does not let this process watch the guest's memory.
#[derive(Debug, Error)]
pub enum UffdError {
    /// There is no userfaultfd to be had, or it lacks what postcopy needs.
    #[error("postcopy needs userfaultfd, which is not available: {remedy}")]
    Unavailable {
        /// What to do about it.
        remedy: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The memory of a block cannot be watched.
    #[error(
        "RAM block {block} cannot be watched for faults: its memory must be private, or a file on tmpfs or hugetlbfs"
    )]
    Register {
        /// Which block.
        block: BlockName,
        /// Why.
        source: io::Error,
    },
    /// A block cannot be released.
    #[error("RAM block {block}: the watch for faults cannot be ended")]
    Unregister {
        /// Which block.
        block: BlockName,
        /// Why.
        source: io::Error,
    },
    /// There is no memory to receive into.
    #[error("no memory to receive pages into")]
    Landing(#[source] RamError),
    /// Faults cannot be read.
    #[error("faults cannot be read from the kernel")]
    Read {
        /// Why.
        source: io::Error,
    },
    /// A fault outside of guest memory.
    #[error("the kernel reports a fault at {address:#x}, outside of guest memory")]
    StrangeAddress {
        /// Where.
        address: usize,
    },
    /// A thread of the postcopy, or what wakes it, cannot be made.
    #[error("a thread of the postcopy cannot be started")]
    Thread(#[source] io::Error),
    /// Pages are missing at the end: the guest must not go on without them.
    #[error("{count} pages of RAM block {block} never came, the first at page {first}", first = first.start)]
    Missing {
        /// The first block that is not whole.
        block: BlockName,
        /// How many of its pages are missing.
        count: PageCount,
        /// The first of them.
        first: PageRun,
    },
}

/// A received page cannot be put where it belongs.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The kernel refused.
    #[error("RAM block {block}: {call} failed at page {start}, {count} pages", start = run.start, count = run.count)]
    Kernel {
        /// Which block.
        block: BlockName,
        /// Which pages.
        run: PageRun,
        /// The system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Landing memory could not be given back.
    #[error("landing memory of {count} pages from page {start} on cannot be given back", start = run.start, count = run.count)]
    Landing {
        /// Which pages.
        run: PageRun,
        /// Why.
        source: RamError,
    },
    /// A page was received that is here already; it may be newer here (I4).
    #[error("RAM block {block}: a page of {count} from page {start} on came twice", start = run.start, count = run.count)]
    Twice {
        /// Which block.
        block: BlockName,
        /// Which pages.
        run: PageRun,
    },
    /// A peer named pages that are outside of the block, or parts of host pages.
    #[error(
        "RAM block {block}: pages {start} and {count} more are not whole pages of {bytes} bytes of the block",
        start = run.start, count = run.count, bytes = host_page.bytes()
    )]
    NotHostPages {
        /// Which block.
        block: BlockName,
        /// Which pages.
        run: PageRun,
        /// Pages behind the block.
        host_page: PageSize,
    },
}

/// The channel of urgent pages ended.
#[derive(Debug, Error)]
pub enum PreemptError {
    /// The link failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Bytes that cannot be a record.
    #[error("record at byte {offset} of the preempt channel")]
    Wire {
        /// Bytes before it.
        offset: u64,
        /// What is wrong with it.
        source: WireError,
    },
    /// A record that has no place on this channel.
    #[error("the preempt channel carries pages, not {record}")]
    Record {
        /// What came.
        record: &'static str,
    },
    /// A block that the guest does not have.
    #[error("the preempt channel names RAM block {name:?}, which does not exist")]
    UnknownBlock {
        /// Its name.
        name: String,
    },
    /// A page that its block does not have.
    #[error("RAM block {block}: no page begins at byte {offset:#x}")]
    Outside {
        /// Which block.
        block: BlockName,
        /// Where it should begin.
        offset: u64,
    },
    /// The page could not be put where it belongs.
    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// A request for pages that the source cannot serve: the destination is broken, or another guest's.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The first request names no block.
    #[error("a page request continues the previous block, and there is none")]
    NoPreviousBlock,
    /// A block that the guest does not have.
    #[error("a page request names RAM block {name}, which does not exist")]
    UnknownBlock {
        /// Its name.
        name: BlockName,
    },
    /// Not whole pages of the block, or too many at once.
    #[error(
        "a page request for {length} bytes at {start:#x} of RAM block {block}; expected whole pages of {page} bytes, \
         at most {limit} bytes"
    )]
    Range {
        /// Which block.
        block: BlockName,
        /// First byte asked for.
        start: u64,
        /// Bytes asked for.
        length: u32,
        /// Host page of the block.
        page: u64,
        /// Most that may be asked for at once.
        limit: u64,
    },
    /// The pages could not be sent.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl UffdError {
    pub(crate) fn unavailable(source: io::Error) -> Self {
        let remedy = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "give this process access to /dev/userfaultfd (mode or ACL of the device), or CAP_SYS_PTRACE, or set the \
                 sysctl vm.unprivileged_userfaultfd to 1"
            }
            Some(libc::EINVAL) => {
                "memory with two mappings needs Linux 5.14, huge pages with two mappings Linux 5.13"
            }
            Some(libc::ENOSYS | libc::ENOENT) => "this kernel is built without CONFIG_USERFAULTFD",
            Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (ulimit -n)",
            _ => "it needs Linux 5.14 with CONFIG_USERFAULTFD",
        };
        Self::Unavailable { remedy, source }
    }
}
