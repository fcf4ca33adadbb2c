//! The eBPF object without what neither the loader nor the kernel needs: the debugger's sections, which are most
//! of it, and the line numbers (`.BTF.ext`), which are half of the rest and would be copied to the kernel with
//! every program. The types of maps (`.BTF`) stay.

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};

/// What a debugger would read, and the relocations of it.
const DEBUG: [&[u8]; 4] = [b".debug_", b".rel.debug_", b".BTF.ext", b".rel.BTF.ext"];

/// The same object without them.
pub(crate) fn strip_debug(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the eBPF object is no ELF file")?;
    for section in &mut builder.sections {
        section.delete = DEBUG.iter().any(|prefix| section.name.as_slice().starts_with(prefix));
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections among those of symbols; here they have a table of their own.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("the eBPF object cannot be written without debug sections")?;
    Ok(stripped)
}
