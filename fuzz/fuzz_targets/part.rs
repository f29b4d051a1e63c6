//! Feeds [`checkpoint::fuzz::part`]; run with `cargo +nightly fuzz run part`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checkpoint::fuzz::part(bytes);
});
