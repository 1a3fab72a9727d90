//! A boot sector in real mode prints to COM1, ends the guest, and survives a move.

mod ring;

use iced_x86::code_asm::*;
use limosa_pages::{BlockId, ByteCount};
use limosa_vmm::{
    BOOT_SECTOR_BYTES, GuestConfig, GuestEnd, GuestKind, Machine, Program, RunState, SerialBuffer,
    SerialOutput, VmmError,
};
use limosa_vmstate::SliceInput;
use ring::{kvm, wait_until};

const LOADED_AT: u64 = 0x7c00;
const COM1: u32 = 0x3f8;

#[test]
fn it_prints_and_ends_the_guest_with_its_code() {
    if !kvm("boot sector") {
        return;
    }
    let output = SerialBuffer::default();
    let machine = boot(Program::BootSector(print_and_exit()), &output);
    machine.resume().expect("it runs");
    wait_until("the guest ends", || machine.run_state() != RunState::Running);
    assert_eq!(machine.run_state(), RunState::Ended(GuestEnd::DebugExit(0x21)));
    assert_eq!(output.contents(), b"limosa\n");
    assert!(matches!(machine.resume(), Err(VmmError::Ended(GuestEnd::DebugExit(0x21)))));
    assert!(matches!(machine.verify(), Err(VmmError::NothingToVerify)));
}

#[test]
fn its_letters_go_on_where_they_were_on_another_machine() {
    if !kvm("boot sector, moved") {
        return;
    }
    let output = SerialBuffer::default();
    let mut here = boot(Program::BootSector(alphabet_forever()), &output);
    for moves in 1..=5 {
        here.resume().expect("it runs");
        wait_until("it prints", || output.contents().len() >= moves * 40);
        here.pause();
        let there = boot(Program::Incoming, &output);
        let mut memory = vec![0; here.ram().block(BlockId(0)).length().0 as usize];
        here.ram().block(BlockId(0)).copy_out(0, &mut memory);
        there.ram().block(BlockId(0)).copy_in(0, &memory);
        for (mut source, mut target) in here.devices().into_iter().zip(there.devices()) {
            let saved = source.device.save().expect("it saves");
            let version = source.device.version();
            target.device.load(version, &mut SliceInput::new(&saved.body)).expect("it loads");
        }
        here = there;
    }
    let letters = output.contents();
    let expected: Vec<u8> = (b'a'..=b'z').cycle().take(letters.len()).collect();
    assert_eq!(String::from_utf8_lossy(&letters), String::from_utf8_lossy(&expected));
}

#[test]
fn it_echoes_what_it_polls_from_the_serial_port() {
    if !kvm("boot sector, input") {
        return;
    }
    let output = SerialBuffer::default();
    let machine = boot(Program::BootSector(echo()), &output);
    machine.resume().expect("it runs");
    assert_eq!(machine.serial_input(b"godwit"), 6);
    wait_until("the input comes back", || output.contents() == b"godwit");
}

#[test]
fn a_halted_guest_can_be_paused() {
    if !kvm("boot sector, halted") {
        return;
    }
    let sector = assemble(|asm| {
        asm.cli()?;
        asm.hlt()
    });
    let machine = boot(Program::BootSector(sector), &SerialBuffer::default());
    for _ in 0..100 {
        machine.resume().expect("it runs");
        machine.pause();
        assert_eq!(machine.run_state(), RunState::Paused);
    }
}

#[test]
fn a_process_guest_refuses_it() {
    let sector = Box::new([0; BOOT_SECTOR_BYTES]);
    let config = GuestConfig {
        kind: GuestKind::Process,
        program: Program::BootSector(sector),
        ..GuestConfig::default()
    };
    assert!(matches!(Machine::new(&config), Err(VmmError::BootSectorWithoutKvm)));
}

fn boot(program: Program, output: &SerialBuffer) -> Machine {
    let serial = SerialOutput::Buffer(output.clone());
    let config = GuestConfig {
        kind: GuestKind::Kvm,
        memory: ByteCount(2 << 20),
        vcpus: 2,
        program,
        serial,
        ..GuestConfig::default()
    };
    Machine::new(&config).expect("the machine can be made")
}

fn assemble(
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Box<[u8; BOOT_SECTOR_BYTES]> {
    let mut asm = CodeAssembler::new(16).expect("16 bits exist");
    program(&mut asm).expect("the program is valid");
    let code = asm.assemble(LOADED_AT).expect("the program can be assembled");
    let mut sector = Box::new([0; BOOT_SECTOR_BYTES]);
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn print_and_exit() -> Box<[u8; BOOT_SECTOR_BYTES]> {
    assemble(|asm| {
        asm.mov(dx, COM1)?;
        for letter in b"limosa\n" {
            asm.mov(al, u32::from(*letter))?;
            asm.out(dx, al)?;
        }
        asm.mov(al, 0x21)?;
        asm.out(0xf4, al)?;
        let mut stay = asm.create_label();
        asm.set_label(&mut stay)?;
        asm.jmp(stay)
    })
}

/// Keeps the letter in memory, so that it is memory, too, that must survive.
fn alphabet_forever() -> Box<[u8; BOOT_SECTOR_BYTES]> {
    assemble(|asm| {
        const LETTER: u32 = 0x600;
        let (mut next, mut print) = (asm.create_label(), asm.create_label());
        asm.mov(byte_ptr(LETTER), u32::from(b'a'))?;
        asm.mov(dx, COM1)?;
        asm.set_label(&mut next)?;
        asm.mov(al, byte_ptr(LETTER))?;
        asm.out(dx, al)?;
        asm.inc(al)?;
        asm.cmp(al, u32::from(b'z'))?;
        asm.jbe(print)?;
        asm.mov(al, u32::from(b'a'))?;
        asm.set_label(&mut print)?;
        asm.mov(byte_ptr(LETTER), al)?;
        asm.jmp(next)
    })
}

fn echo() -> Box<[u8; BOOT_SECTOR_BYTES]> {
    assemble(|asm| {
        let mut poll = asm.create_label();
        asm.set_label(&mut poll)?;
        asm.mov(dx, COM1 + 5)?;
        asm.in_(al, dx)?;
        asm.test(al, 1)?;
        asm.je(poll)?;
        asm.mov(dx, COM1)?;
        asm.in_(al, dx)?;
        asm.out(dx, al)?;
        asm.jmp(poll)
    })
}
