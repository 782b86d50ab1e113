//! Environments, builds and tools that serve nobody any more. Main functions: [`unused`], [`remove_unused`].

use std::io;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::install::{self, builds};
use super::make::{self, absolute, environments};
use super::{EnvironmentError, beside};
use crate::cache::Bucket;
use crate::lock::FileLock;

/// The environments, the builds and the tools that did not serve for `unused_for`, sorted. An environment that is half made serves
/// nobody; a build that failed is there for its log and goes with the others.
///
/// # Errors
/// When the cache folder cannot be read.
pub fn unused(cache: &Utf8Path, unused_for: Duration) -> Result<Vec<Utf8PathBuf>, EnvironmentError> {
    let served = |folder: &Utf8Path| fs::metadata(folder.join(make::MARKER))?.modified();
    let mut unused = unused_in(&environments(cache), unused_for, served)?;
    // Whoever asks for a build or a tool takes its lock, and so writes the lock's file, even if it is there.
    let served = |folder: &Utf8Path| fs::metadata(folder.with_added_extension("lock"))?.modified();
    unused.extend(unused_in(&builds(cache), unused_for, served)?);
    unused.extend(unused_in(&Bucket::Tools.folder(&absolute(cache)), unused_for, served)?);
    Ok(unused)
}

fn unused_in(
    parent: &Utf8Path,
    unused_for: Duration,
    served: impl Fn(&Utf8Path) -> io::Result<SystemTime>,
) -> Result<Vec<Utf8PathBuf>, EnvironmentError> {
    let list = || -> io::Result<Vec<Utf8PathBuf>> {
        let mut unused = Vec::new();
        for entry in if parent.exists() { parent.read_dir_utf8()?.collect() } else { Vec::new() } {
            let folder = entry?.into_path();
            // A time to come, of a clock that was set back, says nothing of an age.
            let in_use = served(&folder).is_ok_and(|used| !used.elapsed().is_ok_and(|age| age >= unused_for));
            if folder.is_dir() && !in_use {
                unused.push(folder);
            }
        }
        unused.sort();
        Ok(unused)
    };
    list().map_err(|source| EnvironmentError::Io { folder: parent.to_owned(), source })
}

/// Removes what did not serve for `unused_for`, with the logs of how it was made, unless it is just being made; returns
/// the folders.
///
/// # Errors
/// When the cache folder cannot be read or written.
pub fn remove_unused(cache: &Utf8Path, unused_for: Duration) -> Result<Vec<Utf8PathBuf>, EnvironmentError> {
    let mut removed = Vec::new();
    for folder in unused(cache, unused_for)? {
        if remove(&folder)? {
            removed.push(folder);
        }
    }
    Ok(removed)
}

/// Removes an environment, a build or a tool with the log of how it was made, unless it is just being made; whether it was removed.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(folder: &Utf8Path) -> Result<bool, EnvironmentError> {
    let remove = || -> io::Result<bool> {
        let Ok(_lock) = FileLock::try_take(&folder.with_added_extension("lock"))? else {
            return Ok(false);
        };
        // Without its marker a folder that is removed by half is taken neither for an environment nor for a build.
        for file in [
            folder.join(make::MARKER),
            folder.join(install::MARKER),
            folder.join(beside::MARKER),
            folder.with_added_extension("log"),
            folder.with_added_extension("txt"),
        ] {
            if let Err(error) = fs::remove_file(file)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        Ok(true)
    };
    remove().map_err(|source| EnvironmentError::Io { folder: folder.to_owned(), source })
}
