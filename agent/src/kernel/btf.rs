//! The little of the kernel's BTF that is needed: where members of structures lie.
//!
//! Format: Documentation/bpf/btf.rst. aya's own parser builds every type as an object, 30 MB of them; this
//! one keeps the position of each type and looks at the few that are asked for. The bytes come from the
//! kernel or a file: every position is checked, every walk is bounded, nothing here can panic.

use std::collections::HashMap;

/// Why a BTF blob cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The first bytes are not a BTF header of this host's byte order.
    #[error("it does not start with a BTF header of this host's byte order")]
    Header,
    /// A section or a type ends beyond the blob.
    #[error("it is cut off: type {0} ends beyond its section")]
    Truncated(u32),
    /// A kind that this format does not have.
    #[error("type {0} is of unknown kind {1}")]
    Kind(u32, u32),
}

const MAGIC: u16 = 0xeb9f;
const KIND_PTR: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_ENUM64: u32 = 19;
const DEPTH_MAX: u32 = 16;
/// Members looked at for one path; the largest structure of a kernel has some thousand.
const MEMBERS_MAX: u32 = 10_000;

/// A BTF blob, with the position of each of its types.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where type `n + 1` starts in `types`.
    positions: Vec<u32>,
    /// Ids of the named structures, enumerations and typedefs that were asked for.
    named: HashMap<&'a str, Vec<u32>>,
}

impl<'a> Btf<'a> {
    /// Finds all types in `data`, and remembers those called one of `names`.
    ///
    /// # Errors
    /// When the blob is not well-formed.
    pub fn parse(data: &'a [u8], names: &[&str]) -> Result<Self, BtfError> {
        let word = |at: usize| u32_at(data, at).ok_or(BtfError::Header);
        if data.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(BtfError::Header);
        }
        let section = |offset: usize, length: usize| -> Result<&'a [u8], BtfError> {
            let start = word(4)?.checked_add(word(offset)?).ok_or(BtfError::Header)? as usize;
            let end = start.checked_add(word(length)? as usize).ok_or(BtfError::Header)?;
            data.get(start..end).ok_or(BtfError::Truncated(0))
        };
        let mut btf = Self {
            types: section(8, 12)?,
            strings: section(16, 20)?,
            positions: Vec::new(),
            named: HashMap::new(),
        };
        btf.index(names)?;
        Ok(btf)
    }

    fn index(&mut self, names: &[&str]) -> Result<(), BtfError> {
        let mut at = 0_usize;
        while at < self.types.len() {
            let id = u32::try_from(self.positions.len() + 1).unwrap_or(u32::MAX);
            let info = u32_at(self.types, at + 4).ok_or(BtfError::Truncated(id))?;
            let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            let body = match kind {
                1 | 14 | 17 => 4,
                2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => return Err(BtfError::Kind(id, kind)),
            };
            if at + 12 + body > self.types.len() {
                return Err(BtfError::Truncated(id));
            }
            if matches!(kind, KIND_STRUCT | KIND_ENUM | KIND_TYPEDEF | KIND_ENUM64)
                && let Some(name) = self.one_of(names, u32_at(self.types, at).unwrap_or(0))
            {
                self.named.entry(name).or_default().push(id);
            }
            self.positions.push(u32::try_from(at).map_err(|_| BtfError::Truncated(id))?);
            at += 12 + body;
        }
        Ok(())
    }

    /// Byte offset of a member; `path` goes through named members with dots, and through anonymous
    /// structures and unions by itself. `None` when this kernel has no such member.
    #[must_use]
    pub fn member_offset(&self, structure: &str, path: &str) -> Option<u64> {
        let bits = self.member_bit(structure, path)?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Bit offset of a member, as [`Self::member_offset`], for those that are bitfields.
    #[must_use]
    pub fn member_bit(&self, structure: &str, path: &str) -> Option<u64> {
        let mut budget = MEMBERS_MAX;
        self.named.get(structure)?.iter().find_map(|id| {
            let mut id = *id;
            let mut bits = 0;
            for name in path.split('.') {
                let (offset, member_type) = self.member(id, name, DEPTH_MAX, &mut budget)?;
                bits += offset;
                id = member_type;
            }
            Some(bits)
        })
    }

    /// Value of an enumerator. `None` when this kernel has no such enumerator.
    #[must_use]
    pub fn enum_value(&self, enumeration: &str, enumerator: &str) -> Option<u64> {
        self.named.get(enumeration)?.iter().find_map(|id| {
            let (at, kind, count) = self.header(*id)?;
            let step = match kind {
                KIND_ENUM => 8,
                KIND_ENUM64 => 12,
                _ => return None,
            };
            (0..count).find_map(|n| {
                let entry = at + 12 + n * step;
                let found = self.is_name(u32_at(self.types, entry)?, enumerator);
                found.then(|| u32_at(self.types, entry + 4).map(u64::from))?
            })
        })
    }

    /// Whether argument `n` of a BTF tracepoint is a pointer, the first after the data pointer being 0.
    /// `None` when this kernel has no such tracepoint.
    #[must_use]
    pub fn tracepoint_argument_is_pointer(&self, tracepoint: &str, n: usize) -> Option<bool> {
        self.named.get(tracepoint)?.iter().find_map(|id| {
            let pointer = self.target(*id, KIND_TYPEDEF)?;
            let prototype = self.target(pointer, KIND_PTR)?;
            let (at, kind, count) = self.header(prototype)?;
            if kind != KIND_FUNC_PROTO || n + 1 >= count {
                return None;
            }
            let argument = u32_at(self.types, at + 12 + (n + 1) * 8 + 4)?;
            Some(self.header(argument)?.1 == KIND_PTR)
        })
    }

    fn target(&self, id: u32, expected: u32) -> Option<u32> {
        let (at, kind, _) = self.header(id)?;
        (kind == expected).then(|| u32_at(self.types, at + 8))?
    }

    /// Bit offset and type of a member of a structure or union, looked for in anonymous members too, as long as
    /// `budget` lasts: structures that contain each other many times would else be walked for ever.
    fn member(&self, id: u32, name: &str, depth: u32, budget: &mut u32) -> Option<(u64, u32)> {
        let (at, kind, count) = self.header(self.resolve(id)?)?;
        if depth == 0 || !matches!(kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let is_bitfield_form = u32_at(self.types, at + 4)? >> 31 != 0;
        (0..count).find_map(|n| {
            let entry = at + 12 + n * 12;
            let member_type = u32_at(self.types, entry + 4)?;
            let raw = u32_at(self.types, entry + 8)?;
            let offset = u64::from(if is_bitfield_form { raw & 0x00ff_ffff } else { raw });
            let found = u32_at(self.types, entry)?;
            *budget = budget.checked_sub(1)?;
            if self.is_name(found, name) {
                Some((offset, member_type))
            } else if self.is_name(found, "") {
                let (inner, inner_type) = self.member(member_type, name, depth - 1, budget)?;
                Some((offset + inner, inner_type))
            } else {
                None
            }
        })
    }

    /// Looks through typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH_MAX {
            let (at, kind, _) = self.header(id)?;
            if !matches!(kind, 8 | 9 | 10 | 11 | 18) {
                return Some(id);
            }
            id = u32_at(self.types, at + 8)?;
        }
        None
    }

    fn header(&self, id: u32) -> Option<(usize, u32, usize)> {
        let at = *self.positions.get(usize::try_from(id).ok()?.checked_sub(1)?)? as usize;
        let info = u32_at(self.types, at + 4)?;
        Some((at, (info >> 24) & 0x1f, (info & 0xffff) as usize))
    }

    /// The name at `offset` if it is one of `names`. Most differ in the first byte, so this is much quicker
    /// than finding the end of every name first.
    fn one_of(&self, names: &[&str], offset: u32) -> Option<&'a str> {
        let name = names.iter().find(|name| self.is_name(offset, name))?;
        std::str::from_utf8(self.strings.get(offset as usize..)?.get(..name.len())?).ok()
    }

    fn is_name(&self, offset: u32, name: &str) -> bool {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.starts_with(name.as_bytes()) && rest.get(name.len()) == Some(&0)
    }
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob with `struct outer { int a; union { int b; struct inner c; }; }` and an enumeration.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0c\0inner\0d\0kinds\0second\0";
        let name = |wanted: &str| {
            let wanted = format!("\0{wanted}\0");
            let at = strings.windows(wanted.len()).position(|w| w == wanted.as_bytes()).unwrap();
            u32::try_from(at + 1).unwrap()
        };
        let mut types = Vec::new();
        let mut put = |words: &[u32]| words.iter().for_each(|word| types.extend(word.to_ne_bytes()));
        put(&[0, 1 << 24, 4, 0x0100_0020]);
        put(&[name("inner"), (4 << 24) | 1, 8, name("d"), 1, 32]);
        put(&[0, (5 << 24) | 2, 8, name("b"), 1, 0, name("c"), 2, 0]);
        put(&[name("outer"), (4 << 24) | 2, 16, name("a"), 1, 0, 0, 3, 64]);
        put(&[name("kinds"), (6 << 24) | 1, 4, name("second"), 7]);
        blob(&types, strings)
    }

    fn blob(types: &[u8], strings: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        data.extend(MAGIC.to_ne_bytes());
        data.extend([1, 0]);
        let types_len = u32::try_from(types.len()).unwrap();
        for word in [24, 0, types_len, types_len, u32::try_from(strings.len()).unwrap()] {
            data.extend(u32::to_ne_bytes(word));
        }
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn finds_members_through_anonymous_unions_and_dots() {
        let data = sample();
        let btf = Btf::parse(&data, &["outer", "kinds"]).unwrap();
        assert_eq!(btf.member_offset("outer", "a"), Some(0));
        assert_eq!(btf.member_offset("outer", "b"), Some(8));
        assert_eq!(btf.member_offset("outer", "c.d"), Some(12));
        assert_eq!(btf.member_offset("outer", "missing"), None);
        assert_eq!(btf.member_offset("inner", "d"), None, "only names that were asked for are kept");
        assert_eq!(btf.enum_value("kinds", "second"), Some(7));
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_survived() {
        let data = sample();
        for length in 0..data.len() {
            assert!(Btf::parse(&data[..length], &["outer"]).is_err(), "{length} bytes");
        }
        for at in 0..data.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = data.clone();
                broken[at] = value;
                if let Ok(btf) = Btf::parse(&broken, &["outer", "kinds"]) {
                    let _ = btf.member_offset("outer", "c.d");
                    let _ = btf.enum_value("kinds", "second");
                    let _ = btf.tracepoint_argument_is_pointer("outer", 0);
                }
            }
        }
    }

    /// Each level contains the next one 1,000 times, without a name: 1,000^8 ways to look for a member.
    #[test]
    fn structures_within_structures_are_not_walked_for_ever() {
        const LEVELS: u32 = 8;
        const COPIES: u32 = 1000;
        let strings = b"\0outer\0";
        let mut types = Vec::new();
        for level in 1..=LEVELS {
            let name = u32::from(level == 1);
            let mut put = |words: &[u32]| words.iter().for_each(|word| types.extend(word.to_ne_bytes()));
            put(&[name, (4 << 24) | COPIES, 8]);
            (0..COPIES).for_each(|_| put(&[0, level % LEVELS + 1, u32::MAX]));
        }
        let data = blob(&types, strings);
        let btf = Btf::parse(&data, &["outer"]).unwrap();
        let started = std::time::Instant::now();
        assert_eq!(btf.member_offset("outer", "missing"), None);
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[test]
    fn reads_the_running_kernel() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::parse(&data, &["task_struct", "cgroup_subsys_id", "btf_trace_sys_enter"]).unwrap();
        assert!(btf.member_offset("task_struct", "comm").is_some());
        assert!(btf.enum_value("cgroup_subsys_id", "cpu_cgrp_id").is_some());
        assert_eq!(btf.tracepoint_argument_is_pointer("btf_trace_sys_enter", 0), Some(true));
        assert_eq!(btf.tracepoint_argument_is_pointer("btf_trace_sys_enter", 1), Some(false));
    }
}
