//! See `galen_fuzz::memory`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::memory(bytes));
