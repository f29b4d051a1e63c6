//! Feeds [`checkpoint::fuzz::message`]; run with `cargo +nightly fuzz run message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checkpoint::fuzz::message(bytes);
});
