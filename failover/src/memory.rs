//! An arbiter for a VM that has no other host: the record lives and dies with the process.
//!
//! Lives here: the record of a node that runs alone. It grants whatever it is asked, because there is nobody else to grant it to; a node that has a
//! standby must not use it (the program refuses a standby without an arbiter both can reach).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arbiter::{Arbiter, ArbiterError, Swap};
use crate::record::Record;

/// A record in memory.
///
/// A clone is another way to the same record.
#[derive(Clone, Debug, Default)]
pub struct MemoryArbiter(Arc<Mutex<Option<Record>>>);

impl MemoryArbiter {
    fn record(&self) -> MutexGuard<'_, Option<Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arbiter for MemoryArbiter {
    fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
        Ok(self.record().clone())
    }

    fn swap(&mut self, expect: Option<&Record>, new: &Record) -> Result<Swap, ArbiterError> {
        let mut record = self.record();
        if record.as_ref() != expect {
            return Ok(Swap::Lost(record.clone()));
        }
        *record = Some(new.clone());
        Ok(Swap::Done)
    }
}
