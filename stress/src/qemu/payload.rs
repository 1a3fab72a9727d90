//! The guest that the tests run inside a QEMU: a few hundred bytes, assembled at run time.
//!
//! It turns a working set of pages over and over, and proves itself while doing so: pass *n* finds the
//! value *n - 1* in every page, or says which page is wrong. A second counter lives in a register and in RAM
//! at once and is printed on COM1 as `T xxxxxxxx`: a migration that loses a page, a register or the order of
//! the two prints `F xxxxxxxx` and halts. Each pass also changes one more byte of every page, so that
//! XBZRLE has two short runs to encode.
//!
//! The same body starts in two ways: as a flash image, from the reset vector (every machine; no
//! firmware of others in the guest), and as a boot sector that real firmware loads at 0x7c00.

use super::binary::Accelerator;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, byte_ptr, dword_ptr, dx, eax, ebp, ebx, ecx, edi, esi, esp,
};
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};
use limosa_pages::{PAGE_BYTES, PageCount};
use thiserror::Error;

/// Bytes of a flash image: QEMU wants a multiple of 64 KiB, and one such unit is reachable in real mode.
pub const FLASH_BYTES: usize = 64 * 1024;

/// Bytes of a boot sector.
pub const SECTOR_BYTES: usize = 512;

/// Guest-physical address of the first page of the working set: the first one past real mode's megabyte.
pub const WORKING_SET_START: u64 = 0x10_0000;

/// Guest-physical address of the tick that the guest keeps in RAM.
pub const TICK_ADDRESS: u64 = 0x6000;

/// Memory that the guest cannot have left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("page {page} of the working set says pass {got}, and the page before it {before}")]
pub struct Inconsistent {
    /// Number of the page in the working set.
    pub page: u64,
    /// Its pass.
    pub got: u32,
    /// The pass of the page before it.
    pub before: u32,
}

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Pages written in a pass, from [`WORKING_SET_START`] on.
    pub working_set: PageCount,
    /// Pages written between two ticks on COM1.
    pub pages_per_tick: u32,
    /// Port reads after each tick, about a microsecond each: the only clock the guest has.
    pub pause: u32,
}

impl Default for Payload {
    /// 1 MiB of working set, 16 pages and the pause of KVM to a tick.
    fn default() -> Self {
        Self { working_set: PageCount(256), pages_per_tick: 16, pause: KVM_PAUSE }
    }
}

/// Port reads to a tick: about a millisecond each way, as one costs a trip through the kernel under KVM (about
/// 10 microseconds) and a function call under TCG (about 100 nanoseconds).
const KVM_PAUSE: u32 = 100;
const TCG_PAUSE: u32 = 10_000;

const COM1: u32 = 0x3f8;
const LINE_STATUS: u32 = COM1 + 5;
const TRANSMITTER_EMPTY: u32 = 0x20;
const POST_PORT: u32 = 0x80;
const FLASH_END: u64 = 1 << 32;
const RESET_VECTOR: usize = 0xfff0;
const FLASH_START_OFFSET: usize = 0xf000;
const SECTOR_ADDRESS: u64 = 0x7c00;
const STACK_TOP: u32 = 0x7000;
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u32 = 16;
const SECOND_RUN: u32 = PAGE_BYTES as u32 / 2;

/// Null, flat 32-bit code, flat 32-bit data.
const DESCRIPTORS: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

impl Payload {
    /// The default at about a thousand ticks a second under `accelerator`.
    pub fn paced(accelerator: Accelerator) -> Self {
        let pause = match accelerator {
            Accelerator::Kvm => KVM_PAUSE,
            Accelerator::Tcg => TCG_PAUSE,
        };
        Self { pause, ..Self::default() }
    }

    /// The guest as a flash image: for `-bios`.
    ///
    /// # Panics
    /// If a field is zero.
    pub fn flash(&self) -> Vec<u8> {
        let start = FLASH_END - FLASH_BYTES as u64 + FLASH_START_OFFSET as u64;
        let body = self.assemble(start);
        let mut image = vec![0; FLASH_BYTES];
        assert!(FLASH_START_OFFSET + body.len() <= RESET_VECTOR, "the payload reaches the reset vector");
        image[FLASH_START_OFFSET..][..body.len()].copy_from_slice(&body);
        let jump = jump_to_start().expect("a constant program assembles");
        image[RESET_VECTOR..][..jump.len()].copy_from_slice(&jump);
        image
    }

    /// The guest as a boot sector, with its signature.
    ///
    /// # Panics
    /// If a field is zero.
    pub fn boot_sector(&self) -> Vec<u8> {
        let body = self.assemble(SECTOR_ADDRESS);
        assert!(body.len() <= SECTOR_BYTES - 2, "{} bytes do not fit a boot sector", body.len());
        let mut image = vec![0; SECTOR_BYTES];
        image[..body.len()].copy_from_slice(&body);
        image[SECTOR_BYTES - 2..].copy_from_slice(&[0x55, 0xaa]);
        image
    }

    /// Checks `ram`, guest memory from address 0 on, as the guest would: the working set is of one pass up to some
    /// page and of the pass before from there on. Returns the pass of the first page.
    ///
    /// # Errors
    /// The first page that is of another pass.
    ///
    /// # Panics
    /// If `ram` ends before the working set.
    pub fn verify(&self, ram: &[u8]) -> Result<u32, Inconsistent> {
        let pass = |page: u64| {
            let at = (WORKING_SET_START + page * PAGE_BYTES as u64) as usize;
            u32::from_le_bytes(ram[at..at + 4].try_into().expect("four bytes"))
        };
        let first = pass(0);
        let mut before = first;
        for page in 1..self.working_set.0 {
            let got = pass(page);
            if got != before && (before != first || got != first - 1) {
                return Err(Inconsistent { page, got, before });
            }
            before = got;
        }
        Ok(first)
    }

    /// Real-mode entry, protected-mode body, descriptor table; `start` is its linear address.
    fn assemble(&self, start: u64) -> Vec<u8> {
        assert!(self.working_set.0 > 0 && self.pages_per_tick > 0 && self.pause > 0, "{self:?}");
        // The entry's length depends on no address, so one trial tells where the rest begins.
        let entry_length = entry(start, 0, 0).expect("a constant program assembles").len() as u64;
        let body_start = start + entry_length;
        let body = self.body(body_start).expect("a constant program assembles");
        let table = body_start + body.len() as u64;
        let mut image = entry(start, body_start, table).expect("a constant program assembles");
        image.extend_from_slice(&body);
        for descriptor in DESCRIPTORS {
            image.extend_from_slice(&descriptor.to_le_bytes());
        }
        image.extend_from_slice(&(size_of_val(&DESCRIPTORS) as u16 - 1).to_le_bytes());
        image.extend_from_slice(&(table as u32).to_le_bytes());
        image
    }

    /// esi: pass; edi: page; ebp: tick; ebx: pages left until the next tick.
    fn body(&self, start: u64) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(32)?;
        let mut print = a.create_label();
        let mut fail = a.create_label();
        let mut pass = a.create_label();
        let mut page = a.create_label();
        let mut write = a.create_label();
        let mut same_tick = a.create_label();
        let mut pause = a.create_label();
        let tick = dword_ptr(TICK_ADDRESS);
        let end = WORKING_SET_START + self.working_set.0 * PAGE_BYTES as u64;

        a.mov(eax, DATA_SELECTOR)?;
        for segment in [Register::DS, Register::ES, Register::SS] {
            a.add_instruction(Instruction::with2(Code::Mov_Sreg_rm16, segment, Register::AX)?)?;
        }
        a.mov(esp, STACK_TOP)?;
        a.mov(dx, COM1 + 3)?;
        a.mov(al, 3)?; // Eight bits, no parity.
        a.out(dx, al)?;
        a.xor(esi, esi)?;
        a.xor(ebp, ebp)?;
        a.mov(tick, ebp)?;
        a.mov(ebx, self.pages_per_tick)?;

        a.set_label(&mut pass)?;
        a.mov(edi, WORKING_SET_START as u32)?;
        a.set_label(&mut page)?;
        a.test(esi, esi)?;
        a.je(write)?; // The first pass finds whatever memory held.
        a.cmp(dword_ptr(edi), esi)?;
        a.jne(fail)?;
        a.set_label(&mut write)?;
        a.lea(eax, dword_ptr(esi + 1))?;
        a.mov(dword_ptr(edi), eax)?;
        a.inc(byte_ptr(edi + SECOND_RUN))?;
        a.dec(ebx)?;
        a.jne(same_tick)?;

        a.mov(ebx, self.pages_per_tick)?;
        a.cmp(tick, ebp)?;
        a.jne(fail)?;
        a.inc(ebp)?;
        a.mov(tick, ebp)?;
        a.mov(al, u32::from(b'T'))?;
        a.mov(ecx, ebp)?;
        a.call(print)?;
        a.mov(ecx, self.pause)?;
        a.set_label(&mut pause)?;
        a.in_(al, POST_PORT)?;
        a.dec(ecx)?;
        a.jne(pause)?;

        a.set_label(&mut same_tick)?;
        a.add(edi, PAGE_BYTES as u32)?;
        a.cmp(edi, end as u32)?;
        a.jb(page)?;
        a.inc(esi)?;
        a.jmp(pass)?;

        a.set_label(&mut fail)?;
        a.mov(al, u32::from(b'F'))?;
        a.mov(ecx, edi)?;
        a.call(print)?;
        let mut halt = a.create_label();
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)?;

        print_line(&mut a, &mut print)?;
        a.assemble(start)
    }
}

/// `print`: the letter in al, a space, ecx in hexadecimal and a line feed. Clobbers eax, ecx and edx.
fn print_line(a: &mut CodeAssembler, print: &mut CodeLabel) -> Result<(), IcedError> {
    let mut put = a.create_label();
    let mut ready = a.create_label();
    let mut digit = a.create_label();
    let mut decimal = a.create_label();
    a.set_label(print)?;
    a.push(ebx)?;
    a.call(put)?;
    a.mov(al, u32::from(b' '))?;
    a.call(put)?;
    a.mov(ebx, 8u32)?;
    a.set_label(&mut digit)?;
    a.rol(ecx, 4u32)?;
    a.mov(eax, ecx)?;
    a.and(eax, 15u32)?;
    a.add(eax, u32::from(b'0'))?;
    a.cmp(eax, u32::from(b'9'))?;
    a.jbe(decimal)?;
    a.add(eax, u32::from(b'a' - b'9' - 1))?;
    a.set_label(&mut decimal)?;
    a.call(put)?;
    a.dec(ebx)?;
    a.jne(digit)?;
    a.mov(al, u32::from(b'\n'))?;
    a.call(put)?;
    a.pop(ebx)?;
    a.ret()?;

    a.set_label(&mut put)?;
    a.push(eax)?;
    a.mov(dx, LINE_STATUS)?;
    a.set_label(&mut ready)?;
    a.in_(al, dx)?;
    a.test(al, TRANSMITTER_EMPTY)?;
    a.je(ready)?;
    a.pop(eax)?;
    a.mov(dx, COM1)?;
    a.out(dx, al)?;
    a.ret()
}

/// From real mode to flat protected mode at `body`; works at any CS whose base is `start` rounded down to 64 KiB.
fn entry(start: u64, body: u64, table: u64) -> Result<Vec<u8>, IcedError> {
    use iced_x86::code_asm::cr0;
    let mut a = CodeAssembler::new(16)?;
    // The pointer to the table stands behind the table's entries.
    let pointer = (table + size_of_val(&DESCRIPTORS) as u64) & 0xffff;
    a.cli()?;
    let operand =
        MemoryOperand::new(Register::None, Register::None, 1, pointer as i64, 2, false, Register::CS);
    a.add_instruction(Instruction::with1(Code::Lgdt_m1632, operand)?)?;
    a.mov(eax, cr0)?;
    a.or(eax, 1u32)?;
    a.mov(cr0, eax)?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, CODE_SELECTOR, body as u32)?)?;
    a.assemble(start & 0xffff)
}

/// What the processor finds at the reset vector.
fn jump_to_start() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.jmp(FLASH_START_OFFSET as u64)?;
    a.assemble(RESET_VECTOR as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flash_image_starts_at_the_reset_vector() {
        let image = Payload::default().flash();
        assert_eq!(image.len(), FLASH_BYTES);
        assert_eq!(image[RESET_VECTOR], 0xe9, "a near jump");
        assert_ne!(image[FLASH_START_OFFSET], 0);
    }

    #[test]
    fn the_boot_sector_has_its_signature_and_fits() {
        let sector = Payload { working_set: PageCount(100_000), ..Payload::default() }.boot_sector();
        assert_eq!(sector.len(), SECTOR_BYTES);
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }

    #[test]
    fn memory_is_consistent_up_to_one_step_down_by_one() {
        let payload = Payload { working_set: PageCount(4), ..Payload::default() };
        let memory = |passes: [u32; 4]| {
            let mut ram = vec![0; WORKING_SET_START as usize + 4 * PAGE_BYTES];
            for (page, pass) in passes.into_iter().enumerate() {
                ram[WORKING_SET_START as usize + page * PAGE_BYTES..][..4]
                    .copy_from_slice(&pass.to_le_bytes());
            }
            ram
        };
        assert_eq!(payload.verify(&memory([7, 7, 7, 7])), Ok(7));
        assert_eq!(payload.verify(&memory([7, 6, 6, 6])), Ok(7));
        let stale = Inconsistent { page: 2, got: 5, before: 6 };
        assert_eq!(payload.verify(&memory([7, 6, 5, 5])), Err(stale));
        let ahead = Inconsistent { page: 2, got: 7, before: 6 };
        assert_eq!(payload.verify(&memory([7, 6, 7, 6])), Err(ahead));
    }

    #[test]
    #[should_panic(expected = "working_set: PageCount(0)")]
    fn an_empty_working_set_is_refused() {
        let _ = Payload { working_set: PageCount(0), ..Payload::default() }.flash();
    }
}
