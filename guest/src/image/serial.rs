//! The console: a 16550 at 0x3f8, written from ring 3 through the TSS I/O bitmap; and the few other ports the image touches.
//!
//! Output only, a line at boot and on fatal errors: a port write costs tens of microseconds on some hosts.

use core::fmt;

/// The first serial port's data register.
const COM1: u16 = 0x3f8;
/// Line status register: bit 5 says the transmitter is free.
const COM1_STATUS: u16 = COM1 + 5;
/// Polls of the line status before a byte is dropped: a port that never gets free must not hang the guest.
const MOST_POLLS: u32 = 1000;

/// Writes a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: ports 0-0x7ff are open to ring 3; the callers name the serial port and the i8042 reset line, which do not touch memory.
    unsafe { core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes 16 bits to an I/O port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as in `out8`; the caller names the power management port.
    unsafe { core::arch::asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as in `out8`.
    unsafe { core::arch::asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            for _ in 0..MOST_POLLS {
                if in8(COM1_STATUS) & 0x20 != 0 {
                    break;
                }
            }
            out8(COM1, byte);
        }
        Ok(())
    }
}

/// Prints on the console.
pub fn print(text: fmt::Arguments<'_>) {
    let _ = fmt::Write::write_fmt(&mut Console, text);
}
