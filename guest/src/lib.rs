//! The built-in guest: a tiny key-value server that speaks RESP2, as a freestanding image ([`IMAGE`]) and as the logic in it.
//!
//! Lives here: everything about the guest that needs no machine (protocol, store, commands, page stamps, memory layout, command line), so
//! that it is tested on the host. The image around it (boot, drivers, TCP/IP) is the binary in `src/image`, which only `build.rs` builds,
//! for the feature `embed`. Guards S4 and S5 as their measuring instrument: clients check what they were told, `CHECK` what memory holds.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod command;
pub mod dirtier;
pub mod disk;
mod disk_command;
pub mod layout;
pub mod machine;
pub mod parameters;
pub mod reply;
pub mod resp;
pub mod sector;
mod server_command;
pub mod stamp;
pub mod store;

pub use server_command::DEFAULT_REGION_PAGES;

/// The guest image: a static ELF64 executable that boots by PVH (QEMU microvm, Firecracker, our VMM).
#[cfg(feature = "embed")]
pub static IMAGE: &[u8] = include_bytes!(env!("LOCKSTEP_GUEST_IMAGE"));

#[cfg(all(test, feature = "embed"))]
mod tests {
    #[test]
    fn the_image_is_an_elf_with_a_pvh_entry() {
        let note = [4u32, 8, 18].map(u32::to_le_bytes).concat();
        assert_eq!(super::IMAGE.get(..5), Some(&b"\x7fELF\x02"[..]));
        assert!(super::IMAGE.windows(note.len() + 4).any(|bytes| bytes.starts_with(&note) && bytes.ends_with(b"Xen\0")));
    }
}
