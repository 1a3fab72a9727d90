//! Reading a stopped QEMU's guest memory by QEMU's own means, to hold what a stream carried against it.

use super::process::{Qemu, QemuError};
use super::setup::Backing;
use limosa::ram::GuestRam;
use limosa_pages::{ByteCount, PAGE_BYTES};

/// A stretch of guest-physical memory and the part of a RAM block that the guest's processor sees there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The RAM block's name, as on the wire.
    pub block: String,
    /// Where in the block the window begins, in bytes.
    pub block_offset: u64,
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

/// The bytes behind a [`Window`].
pub struct Saved {
    /// Where they are.
    pub window: Window,
    /// All of them.
    pub bytes: Vec<u8>,
}

/// Two memories that should be equal and are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// RAM block.
    pub block: String,
    /// Byte offset in the block of the first page that differs.
    pub page: u64,
    /// Pages that differ in this window.
    pub pages: usize,
}

impl Qemu {
    /// What the guest's processor sees where, at this moment.
    ///
    /// Not every migrated block can be seen. Blobs of fw_cfg (`/rom@etc/...`) are in no address space; RAM
    /// behind a ROM (from 0xc0000 to 1 MiB, in part or whole by machine and by what firmware did to the
    /// chipset) is hidden by it, and the reverse. [`Qemu::ram_file`] shows all of main RAM.
    ///
    /// # Errors
    /// The monitor fails or says something that is not a flat view.
    pub fn windows(&mut self) -> Result<Vec<Window>, QemuError> {
        let text = self.human_monitor("info mtree -f")?;
        let windows = windows_of_system_memory(&text);
        if windows.is_empty() { Err(QemuError::NoFlatView { text }) } else { Ok(windows) }
    }

    /// Everything the guest's processor sees, by `pmemsave`. The guest must be stopped.
    ///
    /// # Errors
    /// The monitor fails, or the file it wrote cannot be read.
    pub fn save_memory(&mut self) -> Result<Vec<Saved>, QemuError> {
        let windows = self.windows()?;
        let mut saved = Vec::with_capacity(windows.len());
        for window in windows {
            let bytes = self.pmemsave(window.address, window.length)?;
            saved.push(Saved { window, bytes });
        }
        Ok(saved)
    }

    /// Holds every page that can be seen against `ram`, and all of main RAM if it lies in a shared file. Returns how much
    /// was compared.
    ///
    /// # Errors
    /// As [`Self::save_memory`].
    ///
    /// # Panics
    /// If a page differs, or a block is not in `ram`.
    pub fn assert_same_memory(&mut self, ram: &GuestRam) -> Result<ByteCount, QemuError> {
        let mut compared = ByteCount(0);
        for saved in self.save_memory()? {
            assert_eq!(
                saved.compare(&block_of(ram, &saved.window.block)),
                None,
                "pmemsave against the stream"
            );
            compared += ByteCount(saved.window.length);
        }
        if self.setup().backing == Backing::SharedFile {
            let name = self.setup().machine.ram_block();
            let io = |source| QemuError::Io { doing: "reading guest RAM from its file", source };
            let file = std::fs::read(self.ram_file()).map_err(io)?;
            assert_eq!(compare_pages(name, 0, &file, &block_of(ram, name)), None, "RAM against the stream");
            compared += ByteCount(file.len() as u64);
        }
        Ok(compared)
    }
}

fn block_of(ram: &GuestRam, name: &str) -> Vec<u8> {
    let id = ram.layout().find(name).unwrap_or_else(|| panic!("block {name} was not in the stream"));
    let block = ram.block(id);
    let mut bytes = vec![0; block.length().0 as usize];
    block.copy_out(0, &mut bytes);
    bytes
}

impl Saved {
    /// Compares with a whole `block`'s bytes received some other way.
    ///
    /// # Panics
    /// If the window leaves `block`.
    pub fn compare(&self, block: &[u8]) -> Option<Difference> {
        let start = self.window.block_offset as usize;
        compare_pages(&self.window.block, start as u64, &self.bytes, &block[start..start + self.bytes.len()])
    }
}

/// Compares `left` and `right`, both from byte `start` of `block`, page by page.
///
/// # Panics
/// If their lengths differ.
pub fn compare_pages(block: &str, start: u64, left: &[u8], right: &[u8]) -> Option<Difference> {
    assert_eq!(left.len(), right.len(), "lengths of {block} at {start:#x}");
    let pairs = left.chunks(PAGE_BYTES).zip(right.chunks(PAGE_BYTES)).enumerate();
    let mut different = pairs.filter(|(_, (left, right))| left != right).map(|(index, _)| index);
    let first = different.next()?;
    let page = start + (first * PAGE_BYTES) as u64;
    Some(Difference { block: block.to_owned(), page, pages: 1 + different.count() })
}

/// The RAM and ROM windows of the view that serves the address space `memory`.
fn windows_of_system_memory(text: &str) -> Vec<Window> {
    let views = text.split("FlatView #");
    let system = views.into_iter().find(|view| view.contains("AS \"memory\""));
    system.into_iter().flat_map(str::lines).filter_map(window).collect()
}

/// `0000000000100000-0000000000ffffff (prio 0, ram): pc.ram @0000000000100000 KVM`
fn window(line: &str) -> Option<Window> {
    let (range, rest) = line.trim().split_once(" (prio ")?;
    let (first, last) = range.split_once('-')?;
    let (kind, region) = rest.split_once("): ")?;
    if !kind.ends_with(", ram") && !kind.ends_with(", rom") {
        return None;
    }
    let mut words = region.split_whitespace();
    let block = words.next()?.to_owned();
    let offset = words.find_map(|word| word.strip_prefix('@')).unwrap_or("0");
    let number = |text| u64::from_str_radix(text, 16).ok();
    let address = number(first)?;
    Some(Window { block, block_offset: number(offset)?, address, length: number(last)? - address + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: &str = "FlatView #0\r\n AS \"I/O\", root: io\r\n  \
        0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r\n\r\n\
        FlatView #1\r\n AS \"memory\", root: system\r\n AS \"cpu-memory-0\", root: system\r\n  \
        0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM\r\n  \
        00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\r\n  \
        0000000000100000-0000000000ffffff (prio 0, ram): pc.ram @0000000000100000 KVM\r\n  \
        00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic\r\n";

    #[test]
    fn a_flat_view_gives_its_ram_and_rom_and_nothing_else() {
        let window = |block: &str, block_offset, address, length| Window {
            block: block.to_owned(),
            block_offset,
            address,
            length,
        };
        let expected = [
            window("pc.ram", 0, 0, 0xc_0000),
            window("pc.rom", 0, 0xc_0000, 0x2_0000),
            window("pc.ram", 0x10_0000, 0x10_0000, 0xf0_0000),
        ];
        assert_eq!(windows_of_system_memory(VIEW), expected);
    }

    #[test]
    fn a_text_without_system_memory_gives_no_window() {
        assert!(windows_of_system_memory(VIEW.split("FlatView #1").next().unwrap()).is_empty());
    }

    #[test]
    fn a_difference_names_the_first_page_and_counts_them_all() {
        let left = vec![0; 4 * PAGE_BYTES];
        let mut right = left.clone();
        assert_eq!(compare_pages("pc.ram", 0x1000, &left, &right), None);
        right[PAGE_BYTES + 7] = 1;
        right[4 * PAGE_BYTES - 1] = 1;
        let expected = Difference { block: "pc.ram".to_owned(), page: 0x2000, pages: 2 };
        assert_eq!(compare_pages("pc.ram", 0x1000, &left, &right), Some(expected));
    }
}
