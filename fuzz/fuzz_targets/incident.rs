//! See `galen_fuzz::incident`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::incident(bytes));
