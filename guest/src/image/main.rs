//! The freestanding guest image.
#![no_std]
#![no_main]
mod boot;
mod memory;
mod serial;

#[unsafe(no_mangle)]
extern "C" fn rust_entry(_start_info: u64, _cpu: u32) -> ! {
    serial::print(format_args!("hello\n"));
    loop {}
}
#[unsafe(no_mangle)]
extern "C" fn trap_entry() -> ! {
    serial::print(format_args!("trap\n"));
    loop {}
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    serial::print(format_args!("lockstep-guest: {info}\n"));
    loop {}
}
