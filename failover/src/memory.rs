//! An arbiter for a VM that has no other host: the record lives and dies with the process.
//!
//! Lives here: the record of a node that runs alone. It grants whatever it is asked, because there is nobody else to grant it to; a node that has a
//! standby must not use it (the program refuses a standby without an arbiter both can reach).

use crate::arbiter::{Arbiter, ArbiterError, Swap};
use crate::record::Record;

/// A record in memory.
#[derive(Debug, Default)]
pub struct MemoryArbiter(Option<Record>);

impl Arbiter for MemoryArbiter {
    fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
        Ok(self.0.clone())
    }

    fn swap(&mut self, expect: Option<&Record>, new: &Record) -> Result<Swap, ArbiterError> {
        if self.0.as_ref() != expect {
            return Ok(Swap::Lost(self.0.clone()));
        }
        self.0 = Some(new.clone());
        Ok(Swap::Done)
    }
}
