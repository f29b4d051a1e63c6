//! What a disk counts.

use crate::devices::virtio::counters::counters;

counters! {
    /// The live counters of one disk, shared with whoever reports them.
    BlkMetrics,
    /// The counters at one moment.
    BlkCounts:
    /// Reads that succeeded.
    reads,
    /// Bytes in them.
    read_bytes,
    /// Writes that succeeded.
    writes,
    /// Bytes in them.
    write_bytes,
    /// Flushes that succeeded.
    flushes,
    /// Discards that succeeded.
    discards,
    /// Writes of zeroes that succeeded.
    write_zeroes,
    /// Requests for the serial number.
    get_ids,
    /// Requests that the disk answered with an error.
    disk_errors,
    /// Requests refused before they reached the disk: beyond its end, of odd length, writes to a read-only disk, of unknown type.
    refused,
    /// Times the sink was full, or too much was in flight, and a request stayed in the guest's ring.
    held_up,
    /// Requests carried out anew after a restore.
    repeated,
    /// Answers to requests of a driver that was reset in the meantime, dropped.
    late_answers,
    /// Hostile or broken rings met; each needs a reset by the driver.
    ring_errors,
    /// Wake-ups while no driver was running, such as kicks before DRIVER_OK.
    early_kicks,
    /// Interrupts raised.
    interrupts,
}
