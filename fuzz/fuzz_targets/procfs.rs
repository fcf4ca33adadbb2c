//! See `galen_fuzz::procfs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::procfs(bytes));
