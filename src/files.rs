//! Files that are read and written as a whole.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;

use camino::Utf8Path;
use fs_err as fs;

/// What people write by hand is far smaller.
pub(crate) const MOST_TEXT: u64 = 4 << 20;

/// A file's text of at most so many bytes: a device gives bytes without end.
///
/// # Errors
/// When the file cannot be read, holds more, or no UTF-8.
pub(crate) fn read_text(path: impl AsRef<std::path::Path>, most: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(path.as_ref())?.take(most + 1).read_to_string(&mut text)?;
    if read as u64 > most {
        let path = path.as_ref().display();
        return Err(io::Error::other(format!(
            "{path} is larger than any such file, with more than {most} bytes"
        )));
    }
    Ok(text)
}

/// Writes a file so that a reader finds the old content or the new, never a part. Its folder is made if need be.
///
/// # Errors
/// When the folder or the file cannot be made or written.
pub(crate) fn write_whole(path: &Utf8Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != "").unwrap_or(Utf8Path::new("."));
    let readable = std::fs::Permissions::from_mode(0o666); // less what the umask takes
    fs::create_dir_all(folder)?;
    let mut draft = tempfile::Builder::new().permissions(readable).tempfile_in(folder)?;
    draft.write_all(content)?;
    draft.persist(path)?;
    Ok(())
}
