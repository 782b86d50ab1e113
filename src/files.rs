//! Files that are read and written as a whole.

use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use camino::Utf8Path;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::OFlags;

/// What people write by hand is far smaller.
pub(crate) const MOST_TEXT: u64 = 4 << 20;

/// A file's text of at most so many bytes: a device gives bytes without end, and a pipe that nobody writes to none for ever.
///
/// # Errors
/// When the file cannot be read, holds more, or no UTF-8, or is such a pipe.
pub(crate) fn read_text(path: impl AsRef<std::path::Path>, most: u64) -> io::Result<String> {
    let mut text = String::new();
    // Opening such a pipe would wait for a writer.
    let waiting = i32::try_from(OFlags::NONBLOCK.bits()).expect("flags are small");
    let file = fs::OpenOptions::new().read(true).custom_flags(waiting).open(path.as_ref())?;
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    let is_pipe = file.metadata()?.file_type().is_fifo();
    let read = file.take(most + 1).read_to_string(&mut text)?;
    if is_pipe && read == 0 {
        return Err(io::Error::other(format!("{} is a pipe that nobody writes to", path.as_ref().display())));
    }
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_pipe_that_nobody_writes_to_is_told_instead_of_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let told = read_text(&pipe, MOST_TEXT).unwrap_err().to_string();
        assert!(told.ends_with("pipe is a pipe that nobody writes to"), "{told}");
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"name = 1").unwrap();
        drop(writer);
        let place = format!("/proc/self/fd/{}", reader.as_raw_fd());
        assert_eq!(read_text(place, MOST_TEXT).unwrap(), "name = 1");
    }
}
