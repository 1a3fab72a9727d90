//! COM1: as much of a 16550 as a guest needs that prints, and polls for input.
//!
//! **Deliberately absent:** interrupts, modem lines, timing. A byte is sent the moment it is written.

use crate::config::{SerialBuffer, SerialOutput};
use crate::error::VmmError;
use limosa_vmstate::VmState;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;

/// First of COM1's eight ports.
pub(crate) const COM1: u16 = 0x3f8;
/// Ports of a 16550.
pub(crate) const PORTS: u16 = 8;

/// Input that waits for the guest; what comes above it is dropped, as on a real line without flow control.
const INPUT_MAX: usize = 4096;

const LINE_CONTROL_DIVISOR_LATCH: u8 = 0x80;
const LINE_STATUS_DATA_READY: u8 = 0x01;
/// Holding register and shift register empty: always, because sending takes no time.
const LINE_STATUS_SENT: u8 = 0x60;
const INTERRUPT_NONE_PENDING: u8 = 0x01;
/// Carrier, data set ready, clear to send.
const MODEM_STATUS_READY: u8 = 0xb0;
/// 115,200 baud / 12 = 9600, the value after reset.
const DIVISOR_AFTER_RESET: u16 = 12;

/// The serial port. Its wire format is that of QEMU's `serial`, version 3.
#[derive(VmState)]
#[vmstate(name = "serial", version = 3)]
pub(crate) struct Serial {
    divider: u16,
    rbr: u8,
    ier: u8,
    iir: u8,
    lcr: u8,
    mcr: u8,
    lsr: u8,
    msr: u8,
    scr: u8,
    #[vmstate(name = "fcr_vmstate")]
    fcr: u8,
    #[vmstate(skip)]
    input: VecDeque<u8>,
    #[vmstate(skip)]
    output: Sink,
}

/// Where output goes, opened.
enum Sink {
    Discard,
    Stdout,
    File(File),
    Buffer(SerialBuffer),
}

impl Serial {
    /// A port after reset that writes to `output`.
    ///
    /// # Errors
    /// [`VmmError::SerialFile`] if its file cannot be opened.
    pub(crate) fn new(output: &SerialOutput) -> Result<Self, VmmError> {
        let output = match output {
            SerialOutput::Discard => Sink::Discard,
            SerialOutput::Stdout => Sink::Stdout,
            SerialOutput::Buffer(buffer) => Sink::Buffer(buffer.clone()),
            SerialOutput::File(path) => Sink::File(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(|source| VmmError::SerialFile { path: path.clone(), source })?,
            ),
        };
        Ok(Self {
            divider: DIVISOR_AFTER_RESET,
            rbr: 0,
            ier: 0,
            iir: INTERRUPT_NONE_PENDING,
            lcr: 0,
            mcr: 0,
            lsr: LINE_STATUS_SENT,
            msr: MODEM_STATUS_READY,
            scr: 0,
            fcr: 0,
            input: VecDeque::new(),
            output,
        })
    }

    /// Bytes from outside, for the guest to read; returns how many there was room for.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_MAX - self.input.len());
        self.input.extend(&bytes[..taken]);
        self.next_input();
        taken
    }

    /// The guest writes `value` to the port `COM1 + offset`.
    pub(crate) fn write(&mut self, offset: u16, value: u8) {
        match (offset, self.latched()) {
            (0, true) => self.divider = self.divider & 0xff00 | u16::from(value),
            (1, true) => self.divider = self.divider & 0x00ff | u16::from(value) << 8,
            (0, false) => self.send(value),
            (1, false) => self.ier = value & 0x0f,
            (2, _) => self.fcr = value,
            (3, _) => self.lcr = value,
            (4, _) => self.mcr = value & 0x1f,
            (7, _) => self.scr = value,
            _ => {}
        }
    }

    /// The guest reads the port `COM1 + offset`.
    pub(crate) fn read(&mut self, offset: u16) -> u8 {
        match (offset, self.latched()) {
            (0, true) => self.divider as u8,
            (1, true) => (self.divider >> 8) as u8,
            (0, false) => {
                self.lsr &= !LINE_STATUS_DATA_READY;
                let byte = self.rbr;
                self.next_input();
                byte
            }
            (1, false) => self.ier,
            (2, _) => self.iir,
            (3, _) => self.lcr,
            (4, _) => self.mcr,
            (5, _) => self.lsr,
            (6, _) => self.msr,
            (7, _) => self.scr,
            _ => 0xff,
        }
    }

    fn latched(&self) -> bool {
        self.lcr & LINE_CONTROL_DIVISOR_LATCH != 0
    }

    /// Puts the next byte of input into the receiver register, if that is free.
    fn next_input(&mut self) {
        if self.lsr & LINE_STATUS_DATA_READY == 0
            && let Some(byte) = self.input.pop_front()
        {
            self.rbr = byte;
            self.lsr |= LINE_STATUS_DATA_READY;
        }
    }

    fn send(&mut self, byte: u8) {
        // A terminal or disk that refuses a byte must not stop the guest: a real line would lose it, too.
        let _ = match &mut self.output {
            Sink::Discard => Ok(()),
            Sink::Stdout => std::io::stdout().write_all(&[byte]).and_then(|()| std::io::stdout().flush()),
            Sink::File(file) => file.write_all(&[byte]),
            Sink::Buffer(buffer) => {
                buffer.push(byte);
                Ok(())
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limosa_vmstate::{Device, SliceInput};

    fn serial() -> (Serial, SerialBuffer) {
        let buffer = SerialBuffer::default();
        (Serial::new(&SerialOutput::Buffer(buffer.clone())).expect("a buffer opens"), buffer)
    }

    #[test]
    fn what_the_guest_writes_comes_out_and_the_port_is_ready_again() {
        let (mut serial, buffer) = serial();
        for byte in *b"hi\n" {
            assert_eq!(serial.read(5) & LINE_STATUS_SENT, LINE_STATUS_SENT);
            serial.write(0, byte);
        }
        assert_eq!(buffer.contents(), b"hi\n");
    }

    #[test]
    fn the_divisor_latch_hides_data_and_interrupt_registers() {
        let (mut serial, buffer) = serial();
        serial.write(3, 0x83);
        serial.write(0, 0x34);
        serial.write(1, 0x12);
        assert_eq!((serial.read(0), serial.read(1)), (0x34, 0x12));
        serial.write(3, 0x03);
        assert_eq!(serial.read(1), 0);
        assert_eq!(buffer.contents(), b"");
    }

    #[test]
    fn input_is_read_byte_by_byte_in_order() {
        let (mut serial, _) = serial();
        assert_eq!(serial.receive(b"ab"), 2);
        assert_eq!((serial.read(5) & 1, serial.read(0)), (1, b'a'));
        assert_eq!((serial.read(5) & 1, serial.read(0)), (1, b'b'));
        assert_eq!(serial.read(5) & 1, 0);
    }

    #[test]
    fn registers_survive_save_and_load() {
        let (mut source, _) = serial();
        source.write(3, 0x03);
        source.write(7, 0x5a);
        source.receive(b"x");
        let saved = source.save().expect("it saves");
        let (mut target, _) = serial();
        target.load(3, &mut SliceInput::new(&saved.body)).expect("it loads");
        assert_eq!((target.read(3), target.read(7), target.read(0)), (0x03, 0x5a, b'x'));
    }
}
