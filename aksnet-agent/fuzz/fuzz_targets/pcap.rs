//! See `src/pcap.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aksnet_fuzz::run("pcap", bytes));
