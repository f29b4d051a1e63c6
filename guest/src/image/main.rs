//! The freestanding guest image: boots by PVH, goes to ring 3 at once, and serves keys and values over TCP.
//!
//! Lives here: the order in which the machine is set up. The image runs in ring 3 because ring 0 is emulated, slowly and in part, on some
//! KVM back ends (see `boot`, `cpu`); the same file boots under our VMM, QEMU microvm and Firecracker. What can be tested without a
//! machine is in the library.
#![no_std]
#![no_main]

extern crate alloc;

mod apic;
mod blk;
mod boot;
mod clock;
mod connection;
mod cpu;
mod heap;
mod memory;
mod net;
mod region;
mod serial;
mod server;
mod smp;
mod start_info;
mod trap;
mod virtio;

use guest::layout::Layout;
use guest::parameters::Parameters;

/// First Rust code of every vCPU, in ring 3; vCPU 0 gets the address of the VMM's start info.
#[unsafe(no_mangle)]
extern "C" fn rust_entry(start_info: u64, index: u32) -> ! {
    if index != 0 {
        smp::worker(index as usize)
    }
    // SAFETY: the address is the VMM's, and low memory is as the VMM left it.
    let start = unsafe { start_info::read(start_info) };
    let parameters = Parameters::parse(start.line);
    let image_end = (&raw const boot::_image_end).addr() as u64;
    let Some(layout) = Layout::plan(&start.ram, image_end) else {
        panic!("less than 8 MiB of memory above the image: give the machine at least 64 MiB");
    };
    // SAFETY: the heap's range is the heap's alone in the layout.
    unsafe { heap::init(layout.heap) };
    region::init(&layout);
    apic::init();
    clock::init(0);
    smp::start(parameters.cpus as usize);
    let Some(net) = net::Net::find(&parameters) else {
        panic!("no network card with 256-entry queues: name one by virtio_mmio.device=SIZE@BASE:GSI (modern virtio-mmio)");
    };
    let disks = blk::find_all(&parameters);
    if !parameters.quiet {
        let [a, b, c, d] = parameters.ip;
        serial::print(format_args!("lockstep-guest: ready on {a}.{b}.{c}.{d}:6379, {} of {} vCPUs\n", smp::cpus(), parameters.cpus));
    }
    server::run(&parameters, &layout, net, disks)
}
