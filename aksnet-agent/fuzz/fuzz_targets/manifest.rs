//! See `src/manifest.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aksnet_fuzz::run("manifest", bytes));
