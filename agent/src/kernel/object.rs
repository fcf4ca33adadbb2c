//! The kernel side, as `cargo xtask build` made it.

#[cfg(not(galen_ebpf_object))]
compile_error!(
    "the kernel side of Galen is not built: run `cargo xtask build`, which builds it first and then this crate"
);

/// The ELF object. Aligned, as its headers are read in place.
#[cfg(galen_ebpf_object)]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("GALEN_EBPF_OBJECT_PATH"));
#[cfg(not(galen_ebpf_object))]
pub(super) static OBJECT: &[u8] = &[];
