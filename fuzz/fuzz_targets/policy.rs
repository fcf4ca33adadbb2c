//! See `galen_fuzz::policy_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::policy_file(bytes));
