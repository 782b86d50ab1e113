//! LMCache's second tier on disk, one file a shard. Main type: [`DiskTier`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::chunk_name::Shard;
use super::error::FaultError;

/// The folder that an LMCache server stores chunks in, and a copy of what it stored.
#[derive(Debug)]
pub struct DiskTier {
    folder: Utf8PathBuf,
    pristine: Utf8PathBuf,
    files: BTreeMap<Shard, String>,
    planted: BTreeSet<Shard>,
}

impl DiskTier {
    /// Makes the tier's two folders below an empty one.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn create(parent: &Utf8Path) -> Result<Self, FaultError> {
        let (folder, pristine) = (parent.join("tier"), parent.join("pristine"));
        for folder in [&folder, &pristine] {
            fs::create_dir(folder).map_err(|source| io_error(folder, source))?;
        }
        Ok(Self { folder, pristine, files: BTreeMap::new(), planted: BTreeSet::new() })
    }

    /// Where the server stores chunks.
    #[must_use]
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// Notes the files of these shards, and returns how many are not there yet or have not this size. A shard in more than
    /// one file, as of engines with other numbers of ranks, counts as not there.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn missing(&mut self, shards: &BTreeSet<Shard>, bytes: usize) -> Result<usize, FaultError> {
        let list = || -> io::Result<Vec<(String, u64)>> {
            let mut files = Vec::new();
            for entry in self.folder.read_dir_utf8()? {
                let entry = entry?;
                // A file that is being written disappears under its temporary name.
                let Ok(metadata) = entry.metadata() else { continue };
                files.push((entry.file_name().to_owned(), metadata.len()));
            }
            Ok(files)
        };
        let files = list().map_err(|source| io_error(&self.folder, source))?;
        let mut missing = 0;
        for shard in shards {
            let mut named = files.iter().filter(|(name, _)| shard.names_file(name));
            match (named.next(), named.next()) {
                (Some((name, length)), None) if *length == bytes as u64 => {
                    self.files.insert(shard.clone(), name.clone());
                }
                _ => missing += 1,
            }
        }
        Ok(missing)
    }

    /// How many of these shards have no file at the moment.
    #[must_use]
    pub fn absent(&self, shards: &BTreeSet<Shard>) -> usize {
        let files = shards.iter().filter_map(|shard| self.files.get(shard));
        files.filter(|name| !self.folder.join(name).exists()).count()
    }

    /// Copies what was stored of the shards that [`missing`](Self::missing) found, but for those that were copied before.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn keep_pristine(&self) -> Result<(), FaultError> {
        for name in self.files.values() {
            let (from, to) = (self.folder.join(name), self.pristine.join(name));
            if to.exists() {
                continue;
            }
            fs::copy(&from, &to).map_err(|source| io_error(&from, source))?;
        }
        Ok(())
    }

    /// A shard as it was stored.
    ///
    /// # Errors
    /// When it was not, or its copy cannot be read.
    pub fn pristine(&self, shard: &Shard) -> Result<Vec<u8>, FaultError> {
        let path = self.pristine.join(self.files.get(shard).map_or("unknown", String::as_str));
        fs::read(&path).map_err(|source| io_error(&path, source))
    }

    /// Puts something else in a shard's place: bytes, or no file. A reader finds the old file or the new one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn plant(&mut self, shard: &Shard, bytes: Option<&[u8]>) -> Result<(), FaultError> {
        self.planted.insert(shard.clone());
        self.put(shard, bytes)
    }

    /// Puts back what was stored, in every shard that was planted in since.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn restore(&mut self) -> Result<(), FaultError> {
        for shard in std::mem::take(&mut self.planted) {
            let bytes = self.pristine(&shard)?;
            self.put(&shard, Some(&bytes))?;
        }
        Ok(())
    }

    fn put(&self, shard: &Shard, bytes: Option<&[u8]>) -> Result<(), FaultError> {
        let path = self.folder.join(self.files.get(shard).map_or("unknown", String::as_str));
        let put = || -> io::Result<()> {
            let Some(bytes) = bytes else {
                return match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    outcome => outcome,
                };
            };
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(bytes)?;
            file.persist(&path)?;
            Ok(())
        };
        put().map_err(|source| io_error(&path, source))
    }
}

pub(super) fn io_error(path: &Utf8Path, source: io::Error) -> FaultError {
    FaultError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::ChunkName;

    fn tier() -> (tempfile::TempDir, DiskTier, Vec<Shard>) {
        let folder = tempfile::tempdir().unwrap();
        let tier = DiskTier::create(Utf8Path::from_path(folder.path()).unwrap()).unwrap();
        let chunks = ChunkName::of_prompt(&[1, 2, 3, 4], 2);
        let shards: Vec<Shard> = chunks.iter().flat_map(|chunk| Shard::of_chunk(chunk, 1)).collect();
        for (Shard { chunk, .. }, byte) in shards.iter().zip([7, 8]) {
            fs::write(tier.folder().join(format!("m@0x01000100@0@{chunk}.data")), [byte; 4]).unwrap();
        }
        (folder, tier, shards)
    }

    #[test]
    fn what_was_planted_is_put_back_byte_for_byte() {
        let (_folder, mut tier, chunks) = tier();
        assert_eq!(tier.missing(&chunks.iter().cloned().collect(), 4).unwrap(), 0);
        tier.keep_pristine().unwrap();
        tier.plant(&chunks[0], Some(&[1])).unwrap();
        tier.plant(&chunks[1], None).unwrap();
        assert_eq!(tier.missing(&chunks.iter().cloned().collect(), 4).unwrap(), 2);
        tier.restore().unwrap();
        assert_eq!(tier.missing(&chunks.iter().cloned().collect(), 4).unwrap(), 0);
        let stored =
            fs::read(tier.folder().join(format!("m@0x01000100@0@{}.data", chunks[1].chunk))).unwrap();
        assert_eq!(stored, [8; 4]);
    }

    #[test]
    fn a_shard_in_two_files_or_of_another_size_counts_as_missing() {
        let (_folder, mut tier, chunks) = tier();
        let wanted: BTreeSet<Shard> = chunks.iter().cloned().collect();
        assert_eq!(tier.missing(&wanted, 5).unwrap(), 2);
        fs::write(tier.folder().join(format!("m@0x02000200@0@{}.data", chunks[0].chunk)), [7; 4]).unwrap();
        assert_eq!(tier.missing(&wanted, 4).unwrap(), 1);
    }

    #[test]
    fn each_rank_has_a_shard_of_its_own() {
        let (_folder, mut tier, chunks) = tier();
        let both: BTreeSet<Shard> = Shard::of_chunk(&chunks[0].chunk, 2).collect();
        assert_eq!(tier.missing(&both, 4).unwrap(), 1);
        fs::write(tier.folder().join(format!("m@0x02010201@0@{}.data", chunks[0].chunk)), [9; 4]).unwrap();
        assert_eq!(tier.missing(&both, 4).unwrap(), 0);
        tier.keep_pristine().unwrap();
        let stored: Vec<Vec<u8>> = both.iter().map(|shard| tier.pristine(shard).unwrap()).collect();
        assert_eq!(stored, [[7; 4], [9; 4]]);
    }
}
