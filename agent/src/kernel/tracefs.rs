//! Formats of classic tracepoints, from tracefs (Documentation/trace/events.rst).

use std::path::{Path, PathBuf};

use crate::input;

/// Fields of one tracepoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Format {
    fields: Vec<Field>,
}

/// One field of a tracepoint's record.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: u64,
    size: u64,
}

impl Format {
    /// Reads the text of a `format` file. Lines that are not fields, or that are malformed, are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self { fields: text.lines().filter_map(parse_field).collect() }
    }

    /// Byte offset of a field of this size. `None` when there is none, or it is of another size: then what
    /// it holds is not what the kernel side would read.
    #[must_use]
    pub fn offset(&self, name: &str, size: u64) -> Option<u64> {
        self.fields.iter().find(|field| field.name == name && field.size == size).map(|field| field.offset)
    }
}

// `	field:unsigned long anon_rss;	offset:24;	size:8;	signed:0;`
fn parse_field(line: &str) -> Option<Field> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    let name = declaration.rsplit([' ', '*']).next()?.split('[').next()?;
    let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
    let size = parts.next()?.strip_prefix("size:")?.parse().ok()?;
    Some(Field { name: name.to_owned(), offset, size })
}

/// Where tracefs is mounted: the configured place, or one of the usual ones.
///
/// # Errors
/// A sentence: it is not mounted there, or may not be read.
pub fn find(configured: Option<&Path>) -> Result<PathBuf, String> {
    let usual = [Path::new("/sys/kernel/tracing"), Path::new("/sys/kernel/debug/tracing")];
    let candidates: &[&Path] = match &configured {
        Some(path) => &[*path],
        None => &usual,
    };
    let mut denied = None;
    for path in candidates {
        match std::fs::metadata(path.join("events")) {
            Ok(found) if found.is_dir() => return Ok(path.to_path_buf()),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                denied = denied.or(Some(path))
            }
            _ => {}
        }
    }
    Err(match denied {
        Some(path) => {
            format!("{} may not be read: run it as root, or with CAP_DAC_READ_SEARCH", path.display())
        }
        None => format!(
            "tracefs is not mounted at {}: `mount -t tracefs tracefs /sys/kernel/tracing` mounts it",
            candidates[0].display()
        ),
    })
}

/// The format of `category:name`. `None` when the kernel has no such tracepoint or it cannot be read.
#[must_use]
pub fn format(tracefs: &Path, category: &str, name: &str) -> Option<Format> {
    let path = tracefs.join("events").join(category).join(name).join("format");
    input::read_text(&path).ok().map(|text| Format::parse(&text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK_VICTIM: &str = "name: mark_victim\nID: 609\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:int pid;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:__data_loc char[] comm;\toffset:12;\tsize:4;\tsigned:0;\n\
        \tfield:const void * skaddr;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n\
        \tfield:broken\n";

    #[test]
    fn finds_fields_of_every_form_and_leaves_out_what_is_malformed() {
        let format = Format::parse(MARK_VICTIM);
        assert_eq!(format.offset("pid", 4), Some(8));
        assert_eq!(format.offset("comm", 4), Some(12));
        assert_eq!(format.offset("skaddr", 8), Some(16));
        assert_eq!(format.offset("saddr", 4), Some(32));
        assert_eq!(format.offset("pid", 8), None, "a field of another size is not the field");
        assert_eq!(format.offset("broken", 4), None);
    }

    proptest! {
        #[test]
        fn every_field_of_a_format_is_found_where_it_lies(
            fields in proptest::collection::btree_map("[a-z][a-z0-9_]{0,12}", (any::<u32>(), 1_u64..64), 1..12),
        ) {
            let lines = fields.iter().map(|(name, (offset, size))| {
                format!("\tfield:unsigned long {name};\toffset:{offset};\tsize:{size};\tsigned:0;\n")
            });
            let format = Format::parse(&lines.collect::<String>());
            for (name, (offset, size)) in &fields {
                prop_assert_eq!(format.offset(name, *size), Some(u64::from(*offset)));
                prop_assert_eq!(format.offset(name, size + 1), None);
            }
        }
    }
}
