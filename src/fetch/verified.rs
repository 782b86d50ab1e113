//! Which files have been read and had the right digest, so that gigabytes are not read again for each run. Main type:
//! [`Verified`].

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::cache::Bucket;
use crate::digest::{Digest, digest_file};
use crate::event::Events;
use crate::files::write_whole;

const SCHEMA: u32 = 1;
/// Bytes of a file whose reading is told of: it takes seconds.
const LONG_READ: u64 = 1 << 30;

/// The manifest of a cache folder. One that is missing or cannot be understood is an empty one.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    path: Utf8PathBuf,
    files: BTreeMap<Utf8PathBuf, Stamp>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    schema: u32,
    files: BTreeMap<Utf8PathBuf, Stamp>,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stamp {
    size: u64,
    modified_ns: i64,
    inode: u64,
    sha256: Digest,
}

/// The folder of everything that is fetched.
pub(super) fn fetched(cache: &Utf8Path) -> Utf8PathBuf {
    Bucket::Fetched.folder(cache)
}

impl Stamp {
    /// Of the file itself, if `path` is a link to it.
    fn of(path: &Utf8Path, sha256: Digest) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let modified_ns =
            metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Ok(Self { size: metadata.len(), modified_ns, inode: metadata.ino(), sha256 })
    }
}

impl Verified {
    /// Reads the manifest of a cache folder.
    #[must_use]
    pub fn read(cache: &Utf8Path) -> Self {
        let path = fetched(cache).join("verified.json");
        let files = match fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            Some(Manifest { schema: SCHEMA, files }) => files,
            _ => BTreeMap::new(),
        };
        Self { path, files }
    }

    /// Whether the file is there and has this digest. Where that is not known, as after a copy of the cache folder, a file of
    /// the right size (bytes) is read, which is told of one that takes long; so is one that is something else.
    pub fn recognises(
        &mut self,
        path: &Utf8Path,
        sha256: Digest,
        size: Option<u64>,
        events: &Events,
    ) -> bool {
        if self.holds(path, sha256) {
            return true;
        }
        let Some(found) = fs::metadata(path).ok().filter(std::fs::Metadata::is_file) else { return false };
        if size.is_none_or(|size| size == found.len()) {
            if found.len() >= LONG_READ {
                let gib = found.len() >> 30;
                events.warn(format!(
                    "reading {path} (above {gib} GiB): whether it is what is pinned is not known here yet"
                ));
            }
            match digest_file(path) {
                Ok((digest, _)) if digest == sha256 => {
                    if let Err(error) = self.note(path, sha256) {
                        tracing::debug!(%error, "that a file is what is pinned was not noted");
                    }
                    return true;
                }
                Ok(_) => {}
                Err(error) => {
                    events.warn(format!("failed to read {path}: {error}"));
                    return false;
                }
            }
        }
        events.warn(format!("{path} is not what is pinned"));
        false
    }

    /// Whether the file had this digest when it was last read, and has not been touched since.
    #[must_use]
    pub(super) fn holds(&self, path: &Utf8Path, sha256: Digest) -> bool {
        self.files.get(path).is_some_and(|stamp| Stamp::of(path, sha256).is_ok_and(|now| now == *stamp))
    }

    /// Whether the file has this digest; it is read if that is not known. A file that has it is noted.
    pub(super) fn check(&mut self, path: &Utf8Path, sha256: Digest) -> io::Result<bool> {
        if self.holds(path, sha256) {
            return Ok(true);
        }
        let matches = digest_file(path)?.0 == sha256;
        if matches {
            self.note(path, sha256)?;
        }
        Ok(matches)
    }

    /// Notes that a file has this digest, for later processes as well.
    pub(super) fn note(&mut self, path: &Utf8Path, sha256: Digest) -> io::Result<()> {
        self.files.insert(path.to_owned(), Stamp::of(path, sha256)?);
        let manifest = Manifest { schema: SCHEMA, files: self.files.clone() };
        write_whole(&self.path, &serde_json::to_vec_pretty(&manifest).expect("a manifest has a JSON form"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::digest_bytes;

    #[test]
    fn a_verified_file_is_not_read_again_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(folder.path()).unwrap();
        let file = cache.join("file");
        fs::write(&file, "good").unwrap();
        let digest = digest_bytes(b"good");
        assert!(Verified::read(cache).check(&file, digest).unwrap());

        let later = Verified::read(cache);
        assert!(later.holds(&file, digest));
        assert!(!later.holds(&file, digest_bytes(b"other")));

        fs::write(&file, "evil").unwrap();
        let mut later = Verified::read(cache);
        assert!(!later.holds(&file, digest), "same size, another time");
        assert!(!later.check(&file, digest).unwrap());
    }
}
