//! `galen validate`.
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `galen validate`.
#[derive(Clone, Debug, clap::Args)]
pub struct ValidateArgs {
    /// Files
    pub files: Vec<PathBuf>,
}

/// x
///
/// # Errors
/// never
pub fn run(_args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
