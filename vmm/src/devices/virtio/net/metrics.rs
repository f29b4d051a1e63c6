//! What a network card counts.

pub(crate) use crate::devices::virtio::counters::add;
use crate::devices::virtio::counters::counters;

counters! {
    /// The live counters of one card, shared with whoever reports them.
    NetMetrics,
    /// The counters at one moment.
    NetCounts:
    /// Frames the guest sent that the sink took.
    tx_frames,
    /// Bytes in them.
    tx_bytes,
    /// Frames shorter than an Ethernet header, dropped.
    tx_runts,
    /// Times the sink was full and the guest's frame stayed in its ring.
    tx_sink_full,
    /// Frames given to the guest.
    rx_frames,
    /// Bytes in them.
    rx_bytes,
    /// Frames from the network that no buffer of the guest could hold, dropped.
    rx_dropped,
    /// Failed reads of the TAP.
    rx_errors,
    /// Stale frames discarded before a start.
    rx_stale,
    /// Hostile or broken rings met; each needs a reset by the driver.
    ring_errors,
    /// Wake-ups while no driver was running, such as kicks before DRIVER_OK.
    early_kicks,
    /// Interrupts raised.
    interrupts,
}
