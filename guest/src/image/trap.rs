//! The end of a guest that went wrong: says on the console what happened, then stops by a triple fault, so that the VMM sees a crash.

use core::panic::PanicInfo;

use crate::boot::TRAP_FRAME;
use crate::{cpu, serial};

/// Continued to by the exception stub, in ring 3, on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn trap_entry() -> ! {
    // SAFETY: the stub wrote the frame before it came here, and nothing goes on after it.
    let [vector, error, rip, rsp, cr2] = unsafe { (&raw const TRAP_FRAME).read_volatile() };
    serial::print(format_args!("lockstep-guest: exception {vector} error {error:#x} rip {rip:#x} rsp {rsp:#x} cr2 {cr2:#x}\n"));
    cpu::stop()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::print(format_args!("lockstep-guest: {info}\n"));
    cpu::stop()
}
