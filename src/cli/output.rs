//! What the program prints and writes, and how an error reads.

use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::report::ReadReportError;
use crate::bisect::LogError;
use crate::engine::environment::{BuildError, EnvironmentError};
use crate::fetch::FetchError;
use crate::progress::printable;
use crate::report::JsonlError;
use crate::stage::StageError;
use crate::store::Durability;
use crate::thread::NoThread;

/// Why what was asked for could not be handed over; completes "failed to …".
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    #[error("write to standard output")]
    Print(#[source] io::Error),
    #[error("write {path}")]
    File { path: Utf8PathBuf, source: io::Error },
}

impl OutputError {
    /// For what could not be written at `path`.
    pub(super) fn at(path: &Utf8Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::File { path: path.to_owned(), source }
    }

    fn hint(&self) -> String {
        let mend = match self {
            Self::Print(_) => "make room where it leads to, or send it elsewhere",
            Self::File { source, .. } if source.kind() == ErrorKind::StorageFull => {
                "make room there, or name another place"
            }
            Self::File { source, .. } if source.kind() == ErrorKind::FileTooLarge => {
                "raise the limit on file sizes (`ulimit -f unlimited`)"
            }
            Self::File { .. } => "see to it that this place can be written, or name another",
        };
        format!("{mend}, and run the same command again: finished stages are kept")
    }
}

/// Puts an artifact's files into a folder of the user's. Those of a store that ends with this run need not be copied,
/// unless the folder lies on another file system.
pub(super) fn export_folder(
    from: &Utf8Path,
    durability: Durability,
    to: &Utf8Path,
) -> Result<(), OutputError> {
    let export = || -> io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in from.read_dir_utf8()? {
            let entry = entry?;
            let place = to.join(entry.file_name());
            if durability == Durability::Lasting || fs::rename(entry.path(), &place).is_err() {
                fs::copy(entry.path(), place)?;
            }
        }
        Ok(())
    };
    export().map_err(OutputError::at(to))
}

/// Writes a file so that no reader ever finds half of it. Its folder is made if need be.
pub(super) fn write_whole(path: &Utf8Path, text: &str) -> Result<(), OutputError> {
    let folder = path.parent().filter(|folder| *folder != "").unwrap_or(Utf8Path::new("."));
    let readable = std::fs::Permissions::from_mode(0o666); // less what the umask takes
    let write = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut draft = tempfile::Builder::new().permissions(readable).tempfile_in(folder)?;
        draft.write_all(text.as_bytes())?;
        draft.persist(path)?;
        Ok(())
    };
    write().map_err(OutputError::at(path))
}

/// Prints data. A reader that has seen enough is no error.
pub(super) fn print(text: &str) -> Result<(), OutputError> {
    match io::stdout().lock().write_all(printable(text).as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(OutputError::Print),
    }
}

pub(super) fn report_error(error: &anyhow::Error) {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let hint = hint(error).map_or_else(String::new, |hint| format!("\n\nhint: {hint}"));
    let message = format!("failed to {}{hint}", causes.join(": "));
    tracing::error!("{message}");
    writeln!(io::stderr(), "error: {}", printable(&message)).ok();
}

fn hint(error: &anyhow::Error) -> Option<String> {
    use crate::{store::StoreError, suite::SuiteError};
    error.chain().find_map(|cause| {
        (cause.downcast_ref::<StageError>().and_then(StageError::hint))
            .or_else(|| cause.downcast_ref::<SuiteError>().and_then(SuiteError::hint))
            .or_else(|| cause.downcast_ref::<StoreError>().and_then(StoreError::hint))
            .or_else(|| cause.downcast_ref::<FetchError>().and_then(FetchError::hint))
            .or_else(|| cause.downcast_ref::<BuildError>().and_then(BuildError::hint))
            .or_else(|| cause.downcast_ref::<OutputError>().map(OutputError::hint))
            .or_else(|| cause.downcast_ref::<LogError>().map(LogError::hint))
            .or_else(|| cause.downcast_ref::<ReadReportError>().map(ReadReportError::hint))
            .or_else(|| cause.downcast_ref::<JsonlError>().and_then(JsonlError::hint))
            .or_else(|| cause.downcast_ref::<NoThread>().map(NoThread::hint))
            .or_else(|| cause.downcast_ref::<EnvironmentError>().and_then(EnvironmentError::hint))
    })
}
