//! What the program prints and writes, and how an error reads.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use anyhow::Context;
use camino::Utf8Path;
use fs_err as fs;

use super::report::ReadReportError;
use crate::bisect::LogError;
use crate::engine::environment::{BuildError, EnvironmentError};
use crate::fetch::FetchError;
use crate::report::JsonlError;
use crate::stage::StageError;
use crate::store::Durability;

/// Puts an artifact's files into a folder of the user's. Those of a store that ends with this run need not be copied,
/// unless the folder lies on another file system.
pub(super) fn export_folder(from: &Utf8Path, durability: Durability, to: &Utf8Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in from.read_dir_utf8()? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if durability == Durability::Lasting || fs::rename(entry.path(), &place).is_err() {
            fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

/// Writes a file so that no reader ever finds half of it.
pub(super) fn write_whole(path: &Utf8Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| *folder != "").unwrap_or(Utf8Path::new("."));
    let readable = std::fs::Permissions::from_mode(0o666); // less what the umask takes
    let mut draft = tempfile::Builder::new().permissions(readable).tempfile_in(folder)?;
    draft.write_all(text.as_bytes())?;
    draft.persist(path).with_context(|| format!("write {path}"))?;
    Ok(())
}

/// Prints data. A reader that has seen enough is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("write to standard output"),
    }
}

pub(super) fn report_error(error: &anyhow::Error) {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let hint = hint(error).map_or_else(String::new, |hint| format!("\n\nhint: {hint}"));
    let message = format!("failed to {}{hint}", causes.join(": "));
    tracing::error!("{message}");
    writeln!(std::io::stderr(), "error: {message}").ok();
}

fn hint(error: &anyhow::Error) -> Option<String> {
    use crate::{store::StoreError, suite::SuiteError};
    error.chain().find_map(|cause| {
        (cause.downcast_ref::<StageError>().and_then(StageError::hint))
            .or_else(|| cause.downcast_ref::<SuiteError>().and_then(SuiteError::hint))
            .or_else(|| cause.downcast_ref::<StoreError>().and_then(StoreError::hint))
            .or_else(|| cause.downcast_ref::<FetchError>().and_then(FetchError::hint))
            .or_else(|| cause.downcast_ref::<BuildError>().and_then(BuildError::hint))
            .or_else(|| cause.downcast_ref::<LogError>().map(LogError::hint))
            .or_else(|| cause.downcast_ref::<ReadReportError>().map(ReadReportError::hint))
            .or_else(|| cause.downcast_ref::<JsonlError>().and_then(JsonlError::hint))
            .or_else(|| cause.downcast_ref::<EnvironmentError>().and_then(EnvironmentError::hint))
    })
}
