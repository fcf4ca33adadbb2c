//! See `galen_fuzz::tracefs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::tracefs(bytes));
