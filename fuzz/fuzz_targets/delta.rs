//! Feeds [`checkpoint::fuzz::delta`]; run with `cargo +nightly fuzz run delta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checkpoint::fuzz::delta(bytes);
});
