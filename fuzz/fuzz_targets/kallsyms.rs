//! See `galen_fuzz::kallsyms`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::kallsyms(bytes));
