//! What devices count. Plain relaxed counters: they tell an operator, nothing decides by them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Makes a struct of live counters and one of their values at a moment.
macro_rules! counters {
    ($(#[$live_doc:meta])* $live:ident, $(#[$counts_doc:meta])* $counts:ident: $($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        pub struct $live {
            $(pub(crate) $name: std::sync::atomic::AtomicU64,)+
        }

        $(#[$counts_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $counts {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl $live {
            /// The counters now.
            #[must_use]
            pub fn counts(&self) -> $counts {
                $counts { $($name: self.$name.load(std::sync::atomic::Ordering::Relaxed),)+ }
            }
        }
    };
}

pub(crate) use counters;

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
