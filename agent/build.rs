//! Finds the object of the kernel side, which `cargo xtask build` makes before it builds this crate.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=GALEN_EBPF_OBJECT");
    println!("cargo:rustc-check-cfg=cfg(galen_ebpf_object)");
    // Without the object the build goes on to a compile_error! that names the command to run: the only way
    // to say it in one sentence, as whatever a build script prints is wrapped in cargo's own words.
    let Some(path) = std::env::var_os("GALEN_EBPF_OBJECT").map(PathBuf::from) else { return };
    println!("cargo:rerun-if-changed={}", path.display());
    if path.is_file() {
        println!("cargo:rustc-env=GALEN_EBPF_OBJECT_PATH={}", path.display());
        println!("cargo:rustc-cfg=galen_ebpf_object");
    }
}
