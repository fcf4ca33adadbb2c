//! The galen binary: glue over the library.
fn main() {}
