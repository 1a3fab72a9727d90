//! The built-in guest: a loop in machine code that writes pages that prove themselves.
//!
//! It is [`crate::content`] and [`crate::walk`] once more, in assembly; the verifier never looks here. One copy
//! of the code serves all vCPUs. Each has its own control page, and declares a page there before it writes it.
//!
//! | register | meaning |
//! |---|---|
//! | rbx | steps done |
//! | rbp | position in the slice |
//! | r12 | steps still granted; at 0 the guest reads the doorbell, and the VMM answers with the next grant |
//! | r13 | generation that this round writes |
//! | r14 | the doorbell |
//! | r15 | control page |
//! | r9, r10 | multiplier and Weyl step of the word generator |

use crate::content::{
    BLEND_STEP, BODY_GROUPS, CHECKSUM_ROTATION, GENERATION_STEP, GROUP_WORDS, HEADER_WORDS, LETTER_BASE,
    LETTER_MASK, MULTIPLIER, PAGE_STEP, PAGE_WORDS, PHRASE_CHOICE_SHIFT, TAG, WEYL,
};
use crate::guest_map::{self, PHRASES, control};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::kvm_regs;

/// Bytes of a group of words: the distance between two entries of the phrase table, too.
const GROUP_BYTES: i32 = (GROUP_WORDS * 8) as i32;
const HEADER_BYTES: i32 = (HEADER_WORDS * 8) as i32;

/// The registers with which worker `worker` begins its walk, apart from the segments.
pub(crate) fn first_registers(worker: u32) -> kvm_regs {
    kvm_regs {
        rip: guest_map::CODE,
        // Bit 1 is always set; interrupts are off.
        rflags: 2,
        r9: MULTIPLIER,
        r10: WEYL,
        r13: 1,
        r14: guest_map::DOORBELL_VIRTUAL,
        r15: guest_map::control_page(worker),
        ..Default::default()
    }
}

/// The machine code, to be put at [`guest_map::CODE`].
///
/// # Panics
/// If it cannot be assembled; it is the same every time, and a test assembles it.
pub(crate) fn code() -> Vec<u8> {
    assemble().expect("the dirtier is a constant program")
}

fn assemble() -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let mut labels = Labels {
        top: asm.create_label(),
        full: asm.create_label(),
        zero: asm.create_label(),
        text: asm.create_label(),
        seal: asm.create_label(),
        done: asm.create_label(),
    };
    ask_for_steps(&mut asm, &mut labels)?;
    declare_page(&mut asm)?;
    choose_class(&mut asm, &labels)?;
    renew_header(&mut asm, &labels)?;
    begin_body(&mut asm, &mut labels)?;
    random_body(&mut asm, &labels)?;
    text_body(&mut asm, &mut labels)?;
    seal(&mut asm, &mut labels)?;
    zero_page(&mut asm, &mut labels)?;
    count_step(&mut asm, &mut labels)?;
    asm.assemble(guest_map::CODE)
}

struct Labels {
    top: CodeLabel,
    full: CodeLabel,
    zero: CodeLabel,
    text: CodeLabel,
    seal: CodeLabel,
    done: CodeLabel,
}

/// The operand of a word of the control page.
fn control_word(word: usize) -> AsmMemoryOperand {
    qword_ptr(r15 + (word * 8) as i32)
}

fn ask_for_steps(asm: &mut CodeAssembler, labels: &mut Labels) -> Result<(), IcedError> {
    let mut granted = asm.create_label();
    asm.set_label(&mut labels.top)?;
    asm.test(r12, r12)?;
    asm.jne(granted)?;
    asm.mov(r12, qword_ptr(r14))?;
    asm.jmp(labels.top)?;
    asm.set_label(&mut granted)
}

/// rsi := number of the page, rdi := its address. The declaration precedes every write to the page.
fn declare_page(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.mov(rsi, control_word(control::BASE))?;
    asm.add(rsi, rbp)?;
    asm.mov(control_word(control::IN_FLIGHT), rsi)?;
    asm.mov(rdi, rsi)?;
    asm.shl(rdi, 12)
}

/// r11 := class of the page (0 zero, 1 random, 2 text); goes on to `zero`, or falls through.
fn choose_class(asm: &mut CodeAssembler, labels: &Labels) -> Result<(), IcedError> {
    let mut chosen = asm.create_label();
    asm.mov(r11, control_word(control::CONTENT))?;
    asm.cmp(r11, 3)?;
    asm.jne(chosen)?;
    asm.mov(rax, BLEND_STEP)?;
    asm.imul_2(rax, rsi)?;
    asm.add(rax, control_word(control::SEED))?;
    asm.mul(r9)?;
    asm.xor(rax, rdx)?;
    asm.shr(rax, 62)?;
    asm.mov(r11, rax)?;
    asm.cmp(r11, 2)?;
    asm.jbe(chosen)?;
    asm.mov(r11d, 2)?;
    asm.set_label(&mut chosen)?;
    asm.test(r11, r11)?;
    asm.je(labels.zero)
}

/// In light writing every generation but the first renews only the generation and the checksum.
fn renew_header(asm: &mut CodeAssembler, labels: &Labels) -> Result<(), IcedError> {
    asm.cmp(control_word(control::WRITING), 0)?;
    asm.je(labels.full)?;
    asm.cmp(r13, 1)?;
    asm.jbe(labels.full)?;
    asm.inc(qword_ptr(rdi + 16))?;
    asm.inc(qword_ptr(rdi + 24))?;
    asm.jmp(labels.done)
}

/// Tag, number and generation; r8 := the generator's first input, rcx := the empty checksum.
fn begin_body(asm: &mut CodeAssembler, labels: &mut Labels) -> Result<(), IcedError> {
    asm.set_label(&mut labels.full)?;
    asm.mov(r8, control_word(control::SEED))?;
    asm.mov(rax, PAGE_STEP)?;
    asm.imul_2(rax, rsi)?;
    asm.add(r8, rax)?;
    asm.mov(rax, GENERATION_STEP)?;
    asm.imul_2(rax, r13)?;
    asm.add(r8, rax)?;
    asm.mov(rax, TAG)?;
    asm.mov(qword_ptr(rdi), rax)?;
    asm.mov(qword_ptr(rdi + 8), rsi)?;
    asm.mov(qword_ptr(rdi + 16), r13)?;
    asm.xor(ecx, ecx)?;
    asm.cmp(r11, 2)?;
    asm.mov(r11d, BODY_GROUPS as u32)?;
    asm.je(labels.text)
}

/// rax := the next word of the generator.
fn next_word(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.add(r8, r10)?;
    asm.mov(rax, r8)?;
    asm.mul(r9)?;
    asm.xor(rax, rdx)
}

/// Stores `word` as word `index` of the group at rdi, and counts it in the checksum.
fn store_word(asm: &mut CodeAssembler, index: usize, word: AsmRegister64) -> Result<(), IcedError> {
    asm.mov(qword_ptr(rdi + (HEADER_BYTES + index as i32 * 8)), word)?;
    asm.rol(rcx, CHECKSUM_ROTATION)?;
    asm.add(rcx, word)
}

/// Goes on with the next group at `body`, or leaves the loop after the last.
fn next_group(asm: &mut CodeAssembler, body: CodeLabel) -> Result<(), IcedError> {
    asm.add(rdi, GROUP_BYTES)?;
    asm.dec(r11)?;
    asm.jne(body)
}

fn random_body(asm: &mut CodeAssembler, labels: &Labels) -> Result<(), IcedError> {
    let mut body = asm.create_label();
    asm.set_label(&mut body)?;
    for index in 0..GROUP_WORDS {
        next_word(asm)?;
        store_word(asm, index, rax)?;
    }
    next_group(asm, body)?;
    asm.jmp(labels.seal)
}

fn text_body(asm: &mut CodeAssembler, labels: &mut Labels) -> Result<(), IcedError> {
    asm.set_label(&mut labels.text)?;
    next_word(asm)?;
    asm.mov(rdx, rax)?;
    asm.shr(rdx, PHRASE_CHOICE_SHIFT)?;
    // An entry of the table is 32 bytes.
    asm.shl(rdx, 5)?;
    for index in 0..GROUP_WORDS - 1 {
        asm.mov(rsi, qword_ptr(rdx + (PHRASES as i32 + index as i32 * 8)))?;
        store_word(asm, index, rsi)?;
    }
    asm.mov(rsi, LETTER_MASK)?;
    asm.and(rax, rsi)?;
    asm.mov(rsi, LETTER_BASE)?;
    asm.add(rax, rsi)?;
    store_word(asm, GROUP_WORDS - 1, rax)?;
    next_group(asm, labels.text)
}

/// Completes the checksum with tag, number and generation, and stores it.
fn seal(asm: &mut CodeAssembler, labels: &mut Labels) -> Result<(), IcedError> {
    asm.set_label(&mut labels.seal)?;
    asm.sub(rdi, BODY_GROUPS as i32 * GROUP_BYTES)?;
    for word in 0..3 {
        asm.rol(rcx, CHECKSUM_ROTATION)?;
        asm.add(rcx, qword_ptr(rdi + word * 8))?;
    }
    asm.mov(qword_ptr(rdi + 24), rcx)?;
    asm.jmp(labels.done)
}

fn zero_page(asm: &mut CodeAssembler, labels: &mut Labels) -> Result<(), IcedError> {
    asm.set_label(&mut labels.zero)?;
    asm.mov(ecx, PAGE_WORDS as u32)?;
    asm.xor(eax, eax)?;
    asm.rep().stosq()
}

/// Counts the step, withdraws the declaration, and moves to the next position.
fn count_step(asm: &mut CodeAssembler, labels: &mut Labels) -> Result<(), IcedError> {
    let (mut inside, mut same_round) = (asm.create_label(), asm.create_label());
    asm.set_label(&mut labels.done)?;
    asm.inc(rbx)?;
    asm.mov(control_word(control::STEPS), rbx)?;
    asm.mov(control_word(control::IN_FLIGHT), 0)?;
    asm.add(rbp, control_word(control::STRIDE))?;
    asm.cmp(rbp, control_word(control::LEN))?;
    asm.jb(inside)?;
    asm.sub(rbp, control_word(control::LEN))?;
    asm.set_label(&mut inside)?;
    asm.test(rbp, rbp)?;
    asm.jne(same_round)?;
    asm.inc(r13)?;
    asm.set_label(&mut same_round)?;
    asm.dec(r12)?;
    asm.jmp(labels.top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_between_its_address_and_the_phrases() {
        assert!((1..=guest_map::PHRASES - guest_map::CODE).contains(&(code().len() as u64)));
    }
}
