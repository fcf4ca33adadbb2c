//! See `galen_fuzz::yaml_tree`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| galen_fuzz::yaml_tree(bytes));
