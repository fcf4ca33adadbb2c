//! The galen binary: glue over the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    galen_agent::memory::configure();
    galen_agent::limits::survive_file_size();
    galen_agent::scheduling::ask_for_short_slices();
    galen_agent::cli::main()
}
