//! The built-in guest image: a tiny key-value server that speaks RESP2.
#![no_std]

/// The guest image: an ELF64 executable that boots by PVH.
#[cfg(feature = "embed")]
pub static IMAGE: &[u8] = include_bytes!(env!("LOCKSTEP_GUEST_IMAGE"));
