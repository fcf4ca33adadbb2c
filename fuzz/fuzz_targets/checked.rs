//! See `galen_fuzz::checked`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::checked(bytes));
