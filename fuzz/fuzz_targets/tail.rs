//! Feeds [`checkpoint::fuzz::tail`]; run with `cargo +nightly fuzz run tail`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checkpoint::fuzz::tail(bytes);
});
