//! The rungs of the write probe in the kernel's file layer; `ebpf/src/file_write_vfs.rs` says what each function
//! carries out.
//!
//! Of each pair the end first, as in the other rungs.

use super::ladder::{More, Rung};
use crate::config::Variant;

/// Members without which these programs cannot tell the truth, beside those of every write probe.
pub(super) const NEEDS: &[&str] = &["OFF_KIOCB_FILE", "OFF_FILE_FLAGS", "TYPED_CURRENT"];

/// By calls that are patched into the functions: they cost least, and miss nothing for want of room.
pub(super) const FENTRY: Rung = Rung {
    variant: Variant::Fentry,
    programs: &[
        ("file_write_fexit_write", &["vfs_write"]),
        ("file_write_fentry_write", &["vfs_write"]),
        ("file_write_fexit_writev", &["vfs_writev"]),
        ("file_write_fentry_writev", &["vfs_writev"]),
    ],
    hook: "vfs_write+vfs_writev",
    more: &[
        More {
            sees: "splice and sendfile",
            hook: "iter_file_splice_write",
            programs: &[
                ("file_write_fexit_splice", &["iter_file_splice_write"]),
                ("file_write_fentry_splice", &["iter_file_splice_write"]),
            ],
        },
        More {
            sees: "copy_file_range",
            hook: "vfs_copy_file_range",
            programs: &[
                ("file_write_fexit_copy", &["vfs_copy_file_range"]),
                ("file_write_fentry_copy", &["vfs_copy_file_range"]),
            ],
        },
        More {
            sees: "io_uring",
            hook: "io_write",
            programs: &[
                ("file_write_fentry_uring_poll", &["io_complete_rw_iopoll"]),
                ("file_write_fentry_uring_late", &["io_complete_rw"]),
                ("file_write_fentry_uring_end", &["kiocb_done"]),
                ("file_write_fexit_uring", &["io_write"]),
                ("file_write_fentry_uring", &["io_write"]),
            ],
        },
        More {
            sees: "io_submit",
            hook: "aio_write",
            programs: &[
                ("file_write_fentry_aio_end", &["aio_complete_rw"]),
                ("file_write_fexit_aio", &["aio_write"]),
                ("file_write_fentry_aio", &["aio_write"]),
            ],
        },
    ],
};

/// By breakpoints. The last rung, as the kernel keeps the return addresses of a fixed number of calls at once
/// (`maxactive`), and sees no end of those beyond.
pub(super) const KPROBE: Rung = Rung {
    variant: Variant::Kprobe,
    programs: &[
        ("file_write_kretprobe_write", &["vfs_write", "vfs_writev"]),
        ("file_write_kprobe_write", &["vfs_write", "vfs_writev"]),
    ],
    hook: "vfs_write+vfs_writev",
    more: &[
        More {
            sees: "splice and sendfile",
            hook: "iter_file_splice_write",
            programs: &[
                ("file_write_kretprobe_splice", &["iter_file_splice_write"]),
                ("file_write_kprobe_splice", &["iter_file_splice_write"]),
            ],
        },
        More {
            sees: "copy_file_range",
            hook: "vfs_copy_file_range",
            programs: &[
                ("file_write_kretprobe_copy", &["vfs_copy_file_range"]),
                ("file_write_kprobe_copy", &["vfs_copy_file_range"]),
            ],
        },
        More {
            sees: "io_uring",
            hook: "io_write",
            programs: &[
                ("file_write_kprobe_uring_late", &["io_complete_rw", "io_complete_rw_iopoll"]),
                ("file_write_kprobe_uring_end", &["kiocb_done"]),
                ("file_write_kretprobe_uring", &["io_write"]),
                ("file_write_kprobe_uring", &["io_write"]),
            ],
        },
        More {
            sees: "io_submit",
            hook: "aio_write",
            programs: &[
                ("file_write_kprobe_aio_end", &["aio_complete_rw"]),
                ("file_write_kretprobe_aio", &["aio_write"]),
                ("file_write_kprobe_aio", &["aio_write"]),
            ],
        },
    ],
};

#[cfg(test)]
mod tests {
    use aya::programs::{KProbe, Program};

    use super::*;
    use crate::config::Host;
    use crate::kernel::host::{Offers, may_load};
    use crate::kernel::object::OBJECT;

    /// Also where none could be attached: the verifier looks at them before.
    #[test]
    fn the_running_kernel_takes_every_kprobe_program() {
        let offers = Offers::look(&Host::default());
        if !may_load() || crate::kernel::layout::first_missing(&offers.settings, NEEDS).is_some() {
            return;
        }
        let mut loader = aya::EbpfLoader::new();
        loader.btf(None);
        for (name, value) in &offers.settings {
            loader.override_global(name, value, false);
        }
        let mut ebpf = loader.load(OBJECT).unwrap();
        let more = KPROBE.more.iter().flat_map(|more| more.programs);
        for (name, _) in KPROBE.programs.iter().chain(more) {
            let Some(Program::KProbe(program)) = ebpf.program_mut(name) else { panic!("no program {name}") };
            KProbe::load(program).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
    }
}
