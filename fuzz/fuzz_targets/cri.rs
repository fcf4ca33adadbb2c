//! See `galen_fuzz::cri`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::cri(bytes));
