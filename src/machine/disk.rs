//! Space on disks.

use std::io;

use camino::Utf8Path;

/// Space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// What an ordinary user may still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The space where a folder is, or will be: its nearest ancestor that is there is asked.
///
/// # Errors
/// When the file system does not tell.
pub fn disk_space(folder: &Utf8Path) -> io::Result<DiskSpace> {
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Utf8Path::new("."));
    let disk = rustix::fs::statvfs(there.as_std_path())?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok(DiskSpace { free: bytes(disk.f_bavail), total: bytes(disk.f_blocks) })
}
