//! See `galen_fuzz::mountinfo`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::mountinfo(bytes));
