//! See `galen_fuzz::printed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::printed(bytes));
