//! See `galen_fuzz::kmsg`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::kmsg(bytes));
