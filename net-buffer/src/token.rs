//! The proof that opens the gate for good. Not here: who asks the arbiter.

use types::Generation;

/// Proof that the arbiter's record names no standby, so that no other node can ever activate from an older state (strike out, then ungate).
///
/// Neither `Clone` nor `Copy`: made once, where the arbiter's answer is known, and consumed by the opening it pays for.
#[derive(Debug, PartialEq, Eq)]
pub struct StruckOut {
    generation: Generation,
}

impl StruckOut {
    /// Made only after the arbiter has confirmed that this node holds `generation` and that no standby is recorded.
    #[must_use]
    pub fn attest(generation: Generation) -> StruckOut {
        StruckOut { generation }
    }

    /// The generation that this node holds according to the record.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }
}
