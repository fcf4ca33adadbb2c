//! The rare words of the kernel side about itself (aya-log), read into this program's own log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

/// The ring that aya-log writes to.
pub(super) const DIAGNOSTICS_MAP: &str = "AYA_LOGS";
/// Its size. aya-log's own, 128 KiB, would be a tenth of the agent's memory for a few lines a year.
pub(super) const DIAGNOSTICS_BYTES: u32 = 4096;

/// Reads what the kernel side has to say.
pub struct Diagnostics(Option<EbpfLogger<Forward>>);

impl Diagnostics {
    /// Without the ring there is nothing to read, and that is all.
    pub(super) fn take(ebpf: &mut Ebpf) -> Self {
        match EbpfLogger::init_with_logger(ebpf, Forward) {
            Ok(logger) => Self(Some(logger)),
            Err(error) => {
                tracing::debug!("the kernel side's own log cannot be read: {error}");
                Self(None)
            }
        }
    }

    /// Of a program that an earlier process loaded. To find its ring takes CAP_SYS_ADMIN; without it there is
    /// nothing to read.
    pub(super) fn of_program(id: Option<u32>) -> Self {
        let logger = id.map(|id| EbpfLogger::init_from_id_with_logger(id, Forward));
        match logger {
            Some(Ok(logger)) => Self(Some(logger)),
            Some(Err(error)) => {
                tracing::debug!("the kernel side's own log cannot be read: {error}");
                Self(None)
            }
            None => Self(None),
        }
    }

    /// Hands on what was said since the last time.
    pub fn read(&mut self) {
        if let Some(logger) = &mut self.0 {
            logger.flush();
        }
    }
}

struct Forward;

impl Log for Forward {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let said = record.args();
        match record.level() {
            Level::Error => tracing::error!("kernel side: {said}"),
            Level::Warn => tracing::warn!("kernel side: {said}"),
            Level::Info => tracing::info!("kernel side: {said}"),
            Level::Debug | Level::Trace => tracing::debug!("kernel side: {said}"),
        }
    }

    fn flush(&self) {}
}
