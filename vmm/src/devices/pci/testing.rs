//! Stands in for KVM in tests: a router and doorbells that remember, and can refuse.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use vmm_sys_util::eventfd::EventFd;

use super::{Doorbells, MsiMessage, MsiRouter};
use crate::devices::lock;

#[derive(Default)]
pub(crate) struct FakeKvm {
    pub(crate) routes: Mutex<BTreeMap<u32, MsiMessage>>,
    pub(crate) route_calls: AtomicUsize,
    pub(crate) doorbells: Mutex<BTreeMap<u64, EventFd>>,
    pub(crate) refuse: AtomicBool,
}

impl FakeKvm {
    fn allowed(&self) -> io::Result<()> {
        if self.refuse.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    }

    /// The addresses of all doorbells.
    pub(crate) fn addresses(&self) -> Vec<u64> {
        lock(&self.doorbells).keys().copied().collect()
    }
}

impl MsiRouter for FakeKvm {
    fn route(&self, changes: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        self.route_calls.fetch_add(1, Ordering::SeqCst);
        self.allowed()?;
        let mut routes = lock(&self.routes);
        for (gsi, message) in changes {
            match message {
                Some(message) => routes.insert(*gsi, *message),
                None => routes.remove(gsi),
            };
        }
        Ok(())
    }
}

impl Doorbells for FakeKvm {
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.allowed()?;
        let before = lock(&self.doorbells).insert(address, event.try_clone()?);
        assert!(before.is_none(), "two doorbells at {address:#x}");
        Ok(())
    }

    fn remove(&self, address: u64, _event: &EventFd) {
        assert!(lock(&self.doorbells).remove(&address).is_some(), "no doorbell at {address:#x}");
    }
}
