//! See `src/ruleset.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aksnet_fuzz::run("ruleset", bytes));
