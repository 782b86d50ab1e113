//! What the program prints and writes.

use std::io::{self, ErrorKind, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use crate::files;
use crate::progress::printable;
use crate::store::Durability;

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

    pub(super) fn hint(&self) -> String {
        let mend = match self {
            Self::Print(_) => "make room where it leads to, or send it elsewhere",
            Self::File { source, .. } if source.kind() == ErrorKind::StorageFull => {
                "make room there, or name another place"
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
    files::write_whole(path, text.as_bytes()).map_err(OutputError::at(path))
}

/// Prints data. A reader that has seen enough is no error.
pub(super) fn print(text: &str) -> Result<(), OutputError> {
    match io::stdout().lock().write_all(printable(text).as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(OutputError::Print),
    }
}
