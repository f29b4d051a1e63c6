//! Feeds [`checkpoint::fuzz::stream`]; run with `cargo +nightly fuzz run stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checkpoint::fuzz::stream(bytes);
});
