//! Two ways to read kernel memory: through pointers that the verifier knows the type of, and through any.

use core::arch::asm;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

use crate::settings::get;

/// A way to read kernel memory at an address.
pub trait Reader {
    /// Reads a value; all zero bytes where there is no memory.
    ///
    /// # Safety
    /// Any bit pattern must be a valid `T`. For [`Direct`] the verifier must know `address` for a pointer
    /// with a type that has a member of this size there.
    unsafe fn read<T: Copy>(address: *const T) -> T;

    /// Reads the member at the offset that a setting holds.
    ///
    /// # Safety
    /// As for [`Reader::read`].
    #[inline(always)]
    unsafe fn member<T: Copy>(base: *const u8, offset: &u64) -> T {
        // SAFETY: passed on to the caller.
        unsafe { Self::read(base.add(get(offset) as usize).cast()) }
    }

    /// Reads the pointer at the offset that a setting holds.
    ///
    /// # Safety
    /// As for [`Reader::read`].
    #[inline(always)]
    unsafe fn pointer(base: *const u8, offset: &u64) -> *const u8 {
        // SAFETY: passed on to the caller.
        unsafe { Self::member(base, offset) }
    }
}

/// The value, which from here on the compiler knows nothing of: what follows is neither moved before this nor done
/// with another copy.
#[inline(always)]
pub fn opaque(value: usize) -> usize {
    let mut value = value;
    // SAFETY: a register is moved to itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
    value
}

/// A zero of which neither the compiler nor the verifier knows that it is one.
#[derive(Clone, Copy)]
pub struct Zero(u64);

impl Zero {
    /// The sign of a number that has none for the next centuries: nanoseconds since boot, or jiffies.
    #[inline(always)]
    pub fn sign_of(positive: u64) -> Self {
        Self(((positive as i64) >> 63) as u64)
    }

    /// The same value, of which from here on nothing is known.
    ///
    /// Where ways of different knowledge meet, this makes them one: the verifier walks what follows once, and not
    /// once for each constant and range that the value can have.
    #[inline(always)]
    pub fn hide(self, value: u64) -> u64 {
        let mut value = value;
        // SAFETY: registers only. Not written as an operator: the compiler sees through two of those.
        unsafe { asm!("{0} ^= {1}", inout(reg) value, in(reg) self.0, options(pure, nomem, nostack)) };
        value
    }

    /// As [`Zero::hide`].
    #[inline(always)]
    pub fn hide_u32(self, value: u32) -> u32 {
        self.hide(u64::from(value)) as u32
    }
}

/// Loads through BTF pointers: an instruction each, faults handled by the kernel.
pub struct Direct;

impl Reader for Direct {
    #[inline(always)]
    unsafe fn read<T: Copy>(address: *const T) -> T {
        // SAFETY: the verifier checks it; volatile keeps the compiler from merging loads across members.
        unsafe { core::ptr::read_volatile(address) }
    }
}

/// `bpf_probe_read_kernel`: a call each, any address. Also for the record of a classic tracepoint, which
/// the verifier lets no program load from at an offset that it did not see in the instruction itself.
pub struct Probe;

impl Reader for Probe {
    #[inline(always)]
    unsafe fn read<T: Copy>(address: *const T) -> T {
        // Without a look at what the helper returns: each look doubles the paths that verifiers before
        // Linux 6.12 walk, beyond what they allow.
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the address and fills all of the value, with zeros where it cannot read
        // (`bpf_probe_read_kernel_common` in kernel/trace/bpf_trace.c); zero is a valid T by this trait's
        // contract.
        unsafe {
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address.cast());
            value.assume_init()
        }
    }
}
