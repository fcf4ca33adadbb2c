//! See `galen_fuzz::cgroup`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::cgroup(bytes));
