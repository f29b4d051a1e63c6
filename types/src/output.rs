//! What the outside can see of a guest: network frames and console bytes, as they travel from a device through the buffer to the world.

use serde::{Deserialize, Serialize};

/// Where a piece of output leaves the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OutputPort {
    /// Network port by its index in the machine's configuration; the bytes are one Ethernet frame.
    Net(u8),
    /// The serial console; the bytes are console bytes in order.
    Console,
}

/// One piece of output, held until the epoch that produced it commits (S1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Where it leaves.
    pub port: OutputPort,
    /// The frame or the console bytes.
    pub bytes: Vec<u8>,
}
