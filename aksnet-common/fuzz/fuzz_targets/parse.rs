//! See `src/parse.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aksnet_common_fuzz::run("parse", bytes));
