//! Errnos by name. Pure; must not guess a name for a number that has none outside the kernel.

use serde::Serialize;

/// An errno by its number; printed by its name, or as the number where it has none here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub u32);

impl Errno {
    /// The symbolic name (include/uapi/asm-generic/errno.h), or `other` for 0, which stands for errors whose
    /// errno was not kept.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "a table of the kernel's names")]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0.cast_signed() {
            // What the kernel counts where it has no room for one more errno.
            0 => "other",
            libc::EPERM => "EPERM",
            libc::ENOENT => "ENOENT",
            libc::ESRCH => "ESRCH",
            libc::EINTR => "EINTR",
            libc::EIO => "EIO",
            libc::ENXIO => "ENXIO",
            libc::E2BIG => "E2BIG",
            libc::ENOEXEC => "ENOEXEC",
            libc::EBADF => "EBADF",
            libc::ECHILD => "ECHILD",
            libc::EAGAIN => "EAGAIN",
            libc::ENOMEM => "ENOMEM",
            libc::EACCES => "EACCES",
            libc::EFAULT => "EFAULT",
            libc::ENOTBLK => "ENOTBLK",
            libc::EBUSY => "EBUSY",
            libc::EEXIST => "EEXIST",
            libc::EXDEV => "EXDEV",
            libc::ENODEV => "ENODEV",
            libc::ENOTDIR => "ENOTDIR",
            libc::EISDIR => "EISDIR",
            libc::EINVAL => "EINVAL",
            libc::ENFILE => "ENFILE",
            libc::EMFILE => "EMFILE",
            libc::ENOTTY => "ENOTTY",
            libc::ETXTBSY => "ETXTBSY",
            libc::EFBIG => "EFBIG",
            libc::ENOSPC => "ENOSPC",
            libc::ESPIPE => "ESPIPE",
            libc::EROFS => "EROFS",
            libc::EMLINK => "EMLINK",
            libc::EPIPE => "EPIPE",
            libc::EDOM => "EDOM",
            libc::ERANGE => "ERANGE",
            libc::EDEADLK => "EDEADLK",
            libc::ENAMETOOLONG => "ENAMETOOLONG",
            libc::ENOLCK => "ENOLCK",
            libc::ENOSYS => "ENOSYS",
            libc::ENOTEMPTY => "ENOTEMPTY",
            libc::ELOOP => "ELOOP",
            libc::ENOMSG => "ENOMSG",
            libc::EIDRM => "EIDRM",
            libc::ECHRNG => "ECHRNG",
            libc::EL2NSYNC => "EL2NSYNC",
            libc::EL3HLT => "EL3HLT",
            libc::EL3RST => "EL3RST",
            libc::ELNRNG => "ELNRNG",
            libc::EUNATCH => "EUNATCH",
            libc::ENOCSI => "ENOCSI",
            libc::EL2HLT => "EL2HLT",
            libc::EBADE => "EBADE",
            libc::EBADR => "EBADR",
            libc::EXFULL => "EXFULL",
            libc::ENOANO => "ENOANO",
            libc::EBADRQC => "EBADRQC",
            libc::EBADSLT => "EBADSLT",
            libc::EBFONT => "EBFONT",
            libc::ENOSTR => "ENOSTR",
            libc::ENODATA => "ENODATA",
            libc::ETIME => "ETIME",
            libc::ENOSR => "ENOSR",
            libc::ENONET => "ENONET",
            libc::ENOPKG => "ENOPKG",
            libc::EREMOTE => "EREMOTE",
            libc::ENOLINK => "ENOLINK",
            libc::EADV => "EADV",
            libc::ESRMNT => "ESRMNT",
            libc::ECOMM => "ECOMM",
            libc::EPROTO => "EPROTO",
            libc::EMULTIHOP => "EMULTIHOP",
            libc::EDOTDOT => "EDOTDOT",
            libc::EBADMSG => "EBADMSG",
            libc::EOVERFLOW => "EOVERFLOW",
            libc::ENOTUNIQ => "ENOTUNIQ",
            libc::EBADFD => "EBADFD",
            libc::EREMCHG => "EREMCHG",
            libc::ELIBACC => "ELIBACC",
            libc::ELIBBAD => "ELIBBAD",
            libc::ELIBSCN => "ELIBSCN",
            libc::ELIBMAX => "ELIBMAX",
            libc::ELIBEXEC => "ELIBEXEC",
            libc::EILSEQ => "EILSEQ",
            libc::ERESTART => "ERESTART",
            libc::ESTRPIPE => "ESTRPIPE",
            libc::EUSERS => "EUSERS",
            libc::ENOTSOCK => "ENOTSOCK",
            libc::EDESTADDRREQ => "EDESTADDRREQ",
            libc::EMSGSIZE => "EMSGSIZE",
            libc::EPROTOTYPE => "EPROTOTYPE",
            libc::ENOPROTOOPT => "ENOPROTOOPT",
            libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
            libc::ESOCKTNOSUPPORT => "ESOCKTNOSUPPORT",
            libc::EOPNOTSUPP => "EOPNOTSUPP",
            libc::EPFNOSUPPORT => "EPFNOSUPPORT",
            libc::EAFNOSUPPORT => "EAFNOSUPPORT",
            libc::EADDRINUSE => "EADDRINUSE",
            libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
            libc::ENETDOWN => "ENETDOWN",
            libc::ENETUNREACH => "ENETUNREACH",
            libc::ENETRESET => "ENETRESET",
            libc::ECONNABORTED => "ECONNABORTED",
            libc::ECONNRESET => "ECONNRESET",
            libc::ENOBUFS => "ENOBUFS",
            libc::EISCONN => "EISCONN",
            libc::ENOTCONN => "ENOTCONN",
            libc::ESHUTDOWN => "ESHUTDOWN",
            libc::ETOOMANYREFS => "ETOOMANYREFS",
            libc::ETIMEDOUT => "ETIMEDOUT",
            libc::ECONNREFUSED => "ECONNREFUSED",
            libc::EHOSTDOWN => "EHOSTDOWN",
            libc::EHOSTUNREACH => "EHOSTUNREACH",
            libc::EALREADY => "EALREADY",
            libc::EINPROGRESS => "EINPROGRESS",
            libc::ESTALE => "ESTALE",
            libc::EUCLEAN => "EUCLEAN",
            libc::ENOTNAM => "ENOTNAM",
            libc::ENAVAIL => "ENAVAIL",
            libc::EISNAM => "EISNAM",
            libc::EREMOTEIO => "EREMOTEIO",
            libc::EDQUOT => "EDQUOT",
            libc::ENOMEDIUM => "ENOMEDIUM",
            libc::EMEDIUMTYPE => "EMEDIUMTYPE",
            libc::ECANCELED => "ECANCELED",
            libc::ENOKEY => "ENOKEY",
            libc::EKEYEXPIRED => "EKEYEXPIRED",
            libc::EKEYREVOKED => "EKEYREVOKED",
            libc::EKEYREJECTED => "EKEYREJECTED",
            libc::EOWNERDEAD => "EOWNERDEAD",
            libc::ENOTRECOVERABLE => "ENOTRECOVERABLE",
            libc::ERFKILL => "ERFKILL",
            _ => return None,
        })
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            // ERESTARTSYS and its kin never reach user space by name; the number is all there is.
            None => write!(f, "E{}", self.0),
        }
    }
}

impl Serialize for Errno {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn what_writes_and_connects_return_has_a_name() {
        for (errno, name) in
            [(117, "EUCLEAN"), (74, "EBADMSG"), (105, "ENOBUFS"), (71, "EPROTO"), (6, "ENXIO"), (0, "other")]
        {
            assert_eq!(Errno(errno).to_string(), name);
        }
        assert_eq!(Errno(512).to_string(), "E512", "ERESTARTSYS has no name outside the kernel");
    }
}
