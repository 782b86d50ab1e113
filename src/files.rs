//! Files that are written as a whole.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;

use camino::Utf8Path;
use fs_err as fs;

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
