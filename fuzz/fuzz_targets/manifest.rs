//! See `galen_fuzz::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::manifest(bytes));
