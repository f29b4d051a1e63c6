//! What a network card counts. Plain relaxed counters: they tell an operator, nothing decides by them.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// The live counters of one card, shared with whoever reports them.
        #[derive(Debug, Default)]
        pub struct NetMetrics {
            $(pub(crate) $name: AtomicU64,)+
        }

        /// The counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct NetCounts {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl NetMetrics {
            /// The counters now.
            #[must_use]
            pub fn counts(&self) -> NetCounts {
                NetCounts { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
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

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
