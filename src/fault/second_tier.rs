//! LMCache's second tier: a folder with one file a shard, or a Redis server with one value a shard. Main type:
//! [`PlantedTier`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::chunk_name::Shard;
use super::error::FaultError;
use crate::engine::{Redis, SecondTier};

/// What an LMCache server stores chunks in, and a copy of what it stored.
#[derive(Debug)]
pub struct PlantedTier {
    medium: Medium,
    pristine: Utf8PathBuf,
    files: BTreeMap<Shard, String>,
    planted: BTreeSet<Shard>,
}

impl PlantedTier {
    /// A tier on disk: makes its two folders below an empty one.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn on_disk(parent: &Utf8Path) -> Result<Self, FaultError> {
        let folder = parent.join("tier");
        fs::create_dir(&folder).map_err(|source| io_error(&folder, source))?;
        Self::new(Medium::Folder(folder), parent)
    }

    /// A tier in a Redis server; copies go below an empty folder.
    ///
    /// # Errors
    /// When the folder for copies cannot be made.
    pub fn in_redis(redis: Redis, parent: &Utf8Path) -> Result<Self, FaultError> {
        Self::new(Medium::Redis(Box::new(redis)), parent)
    }

    fn new(medium: Medium, parent: &Utf8Path) -> Result<Self, FaultError> {
        let pristine = parent.join("pristine");
        fs::create_dir(&pristine).map_err(|source| io_error(&pristine, source))?;
        Ok(Self { medium, pristine, files: BTreeMap::new(), planted: BTreeSet::new() })
    }

    /// What the server must be told of it.
    #[must_use]
    pub fn settings(&self) -> SecondTier {
        match &self.medium {
            Medium::Folder(folder) => SecondTier::Disk(folder.clone()),
            Medium::Redis(redis) => {
                SecondTier::Redis { host: redis.address().host.clone(), port: redis.address().port }
            }
        }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn place(&self) -> Utf8PathBuf {
        match &self.medium {
            Medium::Folder(folder) => folder.clone(),
            Medium::Redis(redis) => Utf8PathBuf::from(redis.address().to_string()),
        }
    }

    /// Notes the files of these shards, and returns how many are not there yet or have not this size. A shard in more than
    /// one file, as of engines with other numbers of ranks, counts as not there.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn missing(&mut self, shards: &BTreeSet<Shard>, bytes: usize) -> Result<usize, FaultError> {
        let files = self.medium.list()?;
        let mut missing = 0;
        for shard in shards {
            let mut named = files.iter().filter(|(name, _)| shard.is_in(name));
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
        files.filter(|name| !self.medium.has(name)).count()
    }

    /// Copies what was stored of the shards that [`missing`](Self::missing) found, but for those that were copied before.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn keep_pristine(&self) -> Result<(), FaultError> {
        for name in self.files.values() {
            let copy = self.pristine.join(copy_name(name));
            if copy.exists() {
                continue;
            }
            fs::write(&copy, self.medium.read(name)?).map_err(|source| io_error(&copy, source))?;
        }
        Ok(())
    }

    /// A shard as it was stored.
    ///
    /// # Errors
    /// When it was not, or its copy cannot be read.
    pub fn pristine(&self, shard: &Shard) -> Result<Vec<u8>, FaultError> {
        let path =
            self.pristine.join(self.files.get(shard).map_or("unknown".to_owned(), |name| copy_name(name)));
        fs::read(&path).map_err(|source| io_error(&path, source))
    }

    /// Puts something else in a shard's place: bytes, or nothing. A reader finds the old bytes or the new ones.
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
        self.medium.put(self.files.get(shard).map_or("unknown", String::as_str), bytes)
    }
}

/// The name of a copy: a value's name may hold a model's path.
fn copy_name(name: &str) -> String {
    name.replace('/', "-")
}

/// What holds the chunks.
#[derive(Debug)]
enum Medium {
    Folder(Utf8PathBuf),
    Redis(Box<Redis>),
}

impl Medium {
    /// Names and lengths of what is there.
    fn list(&self) -> Result<Vec<(String, u64)>, FaultError> {
        match self {
            Self::Folder(folder) => list_files(folder).map_err(|source| io_error(folder, source)),
            Self::Redis(redis) => {
                let lengths = || -> Result<_, redis::RedisError> {
                    redis.names()?.into_iter().map(|name| Ok((name.clone(), redis.length(&name)?))).collect()
                };
                lengths().map_err(FaultError::Redis)
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).exists(),
            Self::Redis(redis) => redis.length(name).is_ok_and(|length| length > 0),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, FaultError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                fs::read(&path).map_err(|source| io_error(&path, source))
            }
            Self::Redis(redis) => redis.get(name).map_err(FaultError::Redis),
        }
    }

    fn put(&self, name: &str, bytes: Option<&[u8]>) -> Result<(), FaultError> {
        match self {
            Self::Folder(folder) => {
                put_file(folder, name, bytes).map_err(|source| io_error(&folder.join(name), source))
            }
            Self::Redis(redis) => redis.put(name, bytes).map_err(FaultError::Redis),
        }
    }
}

fn list_files(folder: &Utf8Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        // A file that is being written disappears under its temporary name.
        let Ok(metadata) = entry.metadata() else { continue };
        files.push((entry.file_name().to_owned(), metadata.len()));
    }
    Ok(files)
}

fn put_file(folder: &Utf8Path, name: &str, bytes: Option<&[u8]>) -> io::Result<()> {
    let path = folder.join(name);
    let Some(bytes) = bytes else {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        };
    };
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(&path)?;
    Ok(())
}

pub(super) fn io_error(path: &Utf8Path, source: io::Error) -> FaultError {
    FaultError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::ChunkName;

    fn tier() -> (tempfile::TempDir, PlantedTier, Vec<Shard>) {
        let folder = tempfile::tempdir().unwrap();
        let tier = PlantedTier::on_disk(Utf8Path::from_path(folder.path()).unwrap()).unwrap();
        let chunks = ChunkName::of_prompt(&[1, 2, 3, 4], 2);
        let shards: Vec<Shard> = chunks.iter().flat_map(|chunk| Shard::of_chunk(chunk, 1)).collect();
        for (Shard { chunk, .. }, byte) in shards.iter().zip([7, 8]) {
            fs::write(tier.place().join(format!("m@0x01000100@0@{chunk}.data")), [byte; 4]).unwrap();
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
        let stored = fs::read(tier.place().join(format!("m@0x01000100@0@{}.data", chunks[1].chunk))).unwrap();
        assert_eq!(stored, [8; 4]);
    }

    #[test]
    fn a_shard_in_two_files_or_of_another_size_counts_as_missing() {
        let (_folder, mut tier, chunks) = tier();
        let wanted: BTreeSet<Shard> = chunks.iter().cloned().collect();
        assert_eq!(tier.missing(&wanted, 5).unwrap(), 2);
        fs::write(tier.place().join(format!("m@0x02000200@0@{}.data", chunks[0].chunk)), [7; 4]).unwrap();
        assert_eq!(tier.missing(&wanted, 4).unwrap(), 1);
    }

    #[test]
    fn each_rank_has_a_shard_of_its_own() {
        let (_folder, mut tier, chunks) = tier();
        let both: BTreeSet<Shard> = Shard::of_chunk(&chunks[0].chunk, 2).collect();
        assert_eq!(tier.missing(&both, 4).unwrap(), 1);
        fs::write(tier.place().join(format!("m@0x02010201@0@{}.data", chunks[0].chunk)), [9; 4]).unwrap();
        assert_eq!(tier.missing(&both, 4).unwrap(), 0);
        tier.keep_pristine().unwrap();
        let stored: Vec<Vec<u8>> = both.iter().map(|shard| tier.pristine(shard).unwrap()).collect();
        assert_eq!(stored, [[7; 4], [9; 4]]);
    }
}
