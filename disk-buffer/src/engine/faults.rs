//! Faults that tests have an engine meet: errors and short transfers, just before the system would be asked. Not here: faults of whole hosts (`types::fault`).

/// What is about to be asked of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A read of so many bytes at an offset.
    Read(u64, usize),
    /// A write of so many bytes at an offset.
    Write(u64, usize),
    /// A hole or zeros of so many bytes at an offset.
    Zero(u64, u64),
    /// Make the image durable.
    Sync,
    /// Write to the change log.
    LogWrite,
    /// Make the change log durable.
    LogSync,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// Nothing: the system is asked.
    Pass,
    /// The system is not asked; this is its error number.
    Fail(i32),
    /// The system is asked for no more than so many bytes (at least one).
    Short(usize),
}

/// Decides about each call. On the engine's thread.
pub trait Faults: Send + Sync {
    /// What becomes of this one.
    fn strike(&self, asked: Asked) -> Strike;
}

impl<F: Fn(Asked) -> Strike + Send + Sync> Faults for F {
    fn strike(&self, asked: Asked) -> Strike {
        self(asked)
    }
}
