//! Both kinds of link, opened on loopback or in memory, for the tests. Not here: any assertion.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::time::Duration;

use transport::{Geometry, Piece, PrimaryLink, Region, RegionId, RegionRef, SlotId, Staging, StandbyLink, inproc, tcp};

/// Long enough for a loaded machine; nothing waits this long unless it fails.
pub const SOON: Duration = Duration::from_secs(10);

/// What the tests call "at once".
pub const NOW: Duration = Duration::ZERO;

pub const SLOT: u32 = 1 << 20;

pub struct Link {
    pub primary: PrimaryLink,
    pub standby: StandbyLink,
    pub staging: Arc<Staging>,
    /// Keeps listening for as long as the link is used.
    pub listener: Option<tcp::Listener>,
}

pub fn tcp(slots: u32) -> Link {
    let listener = tcp::Listener::bind("127.0.0.1:0").unwrap();
    let pending = tcp::connect(listener.local_addr(), SOON).unwrap();
    let accepted = listener.accept(SOON).unwrap().expect("a primary connected");
    let staging = Staging::new(Geometry { slots, slot_bytes: SLOT }).unwrap();
    let for_standby = Arc::clone(&staging);
    let standby = std::thread::spawn(move || accepted.open_data(for_standby).unwrap());
    let primary = pending.open_data(Geometry { slots, slot_bytes: SLOT }).unwrap();
    Link { primary, standby: standby.join().unwrap(), staging, listener: Some(listener) }
}

pub fn inproc(slots: u32) -> (Link, inproc::Faults) {
    let (pending, accepted, faults) = inproc::pair();
    let staging = Staging::new(Geometry { slots, slot_bytes: SLOT }).unwrap();
    let standby = accepted.open_data(Arc::clone(&staging)).unwrap();
    let primary = pending.open_data(Geometry { slots, slot_bytes: SLOT }).unwrap();
    (Link { primary, standby, staging, listener: None }, faults)
}

/// A registered region whose byte at `i` depends on `i` and `seed`.
pub fn pattern(link: &mut Link, len: usize, seed: u64) -> (RegionId, RegionRef) {
    let region = Region::new(len).unwrap();
    let id = link.primary.data.register(Arc::clone(&region)).unwrap();
    let mut bytes = region.claim(0..len).unwrap();
    let mut x = seed | 1;
    for word in bytes.chunks_mut(8) {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&x.to_le_bytes()[..word.len()]);
    }
    (id, bytes.freeze())
}

/// Posts one slot made of one piece and flushes it.
pub fn post(link: &mut Link, region: RegionId, offset: usize, len: u32, ticket: u64) -> SlotId {
    let slot = link.primary.data.acquire(SOON).unwrap().expect("a credit");
    let piece = Piece { region, offset, len: len as usize };
    link.primary.data.post_write(slot, 0, &[piece]).unwrap();
    link.primary.data.post_end(slot, len, ticket).unwrap();
    link.primary.data.flush().unwrap();
    slot
}
