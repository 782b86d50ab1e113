//! LMCache's memory tier: one segment of shared memory that server and engine map. Main type: [`MemoryTier`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::chunk_name::Shard;
use super::error::FaultError;
use super::second_tier::io_error;
use crate::machine::disk_space;

/// LMCache allocates shards at multiples of this many bytes.
const ALIGNMENT: usize = 4096;
/// Bytes by which a shard is first recognised.
const HEAD: usize = 64;

/// The segment, and where in it each shard was found.
#[derive(Debug)]
pub struct MemoryTier {
    path: Utf8PathBuf,
    offsets: BTreeMap<Shard, u64>,
    planted: BTreeSet<Shard>,
}

impl MemoryTier {
    /// Looks for shards by their content, which `pristine` gives. Where LMCache has made no segment, none is found.
    ///
    /// # Errors
    /// When the segment or a chunk cannot be read.
    pub fn search(
        path: Utf8PathBuf,
        shards: &BTreeSet<Shard>,
        pristine: impl Fn(&Shard) -> Result<Vec<u8>, FaultError>,
    ) -> Result<Self, FaultError> {
        let mut heads: BTreeMap<Vec<u8>, Vec<&Shard>> = BTreeMap::new();
        for shard in shards {
            heads.entry(pristine(shard)?[..HEAD].to_vec()).or_default().push(shard);
        }
        let mut tier = Self { path, offsets: BTreeMap::new(), planted: BTreeSet::new() };
        let file = match fs::File::open(&tier.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(tier),
            file => file.map_err(|source| io_error(&tier.path, source))?,
        };
        let length = file.metadata().map_err(|source| io_error(&tier.path, source))?.len();
        let mut window = vec![0; 256 * ALIGNMENT];
        for start in (0..length).step_by(window.len()) {
            let window =
                &mut window[..usize::try_from(length - start).unwrap_or(usize::MAX).min(256 * ALIGNMENT)];
            file.file().read_exact_at(window, start).map_err(|source| io_error(&tier.path, source))?;
            for (page, bytes) in window.chunks(ALIGNMENT).enumerate() {
                let Some(named) = bytes.get(..HEAD).and_then(|head| heads.get(head)) else { continue };
                let offset = start + (page * ALIGNMENT) as u64;
                for shard in named {
                    let wanted = pristine(shard)?;
                    let mut found = vec![0; wanted.len()];
                    if file.file().read_exact_at(&mut found, offset).is_ok() && found == wanted {
                        tier.offsets.insert((*shard).clone(), offset);
                    }
                }
            }
            if tier.offsets.len() == shards.len() {
                break;
            }
        }
        Ok(tier)
    }

    /// How many shards were found.
    #[must_use]
    pub fn found(&self) -> usize {
        self.offsets.len()
    }

    /// Writes other bytes over a shard. Only as many as it has: what lies behind is another's.
    ///
    /// # Errors
    /// When the segment cannot be written.
    pub fn plant(&mut self, shard: &Shard, bytes: &[u8]) -> Result<(), FaultError> {
        self.planted.insert(shard.clone());
        self.put(shard, bytes)
    }

    /// Writes back what was stored, over every shard that was planted in since.
    ///
    /// # Errors
    /// When the segment cannot be written.
    pub fn restore(
        &mut self,
        pristine: impl Fn(&Shard) -> Result<Vec<u8>, FaultError>,
    ) -> Result<(), FaultError> {
        for shard in std::mem::take(&mut self.planted) {
            self.put(&shard, &pristine(&shard)?)?;
        }
        Ok(())
    }

    fn put(&self, shard: &Shard, bytes: &[u8]) -> Result<(), FaultError> {
        let write = || -> io::Result<()> {
            let offset = self.offsets.get(shard).ok_or(io::ErrorKind::NotFound)?;
            let file = fs::OpenOptions::new().write(true).open(&self.path)?;
            file.file().write_all_at(bytes, *offset)
        };
        write().map_err(|source| io_error(&self.path, source))
    }
}

/// Where Linux keeps segments of shared memory.
const SEGMENTS: &str = "/dev/shm";

/// Whether there is room for a segment of so many bytes. A process that writes where there is none is killed, and in
/// containers there often is hardly any.
#[must_use]
pub fn segment_fits(bytes: u64) -> bool {
    disk_space(Utf8Path::new(SEGMENTS)).is_ok_and(|segments| segments.free >= bytes)
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;
    use crate::fault::ChunkName;

    #[test]
    fn shards_are_found_by_content_changed_in_place_and_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("pool");
        let chunks = ChunkName::of_prompt(&[1, 2, 3, 4, 5, 6], 2);
        let chunks: Vec<Shard> = chunks.iter().flat_map(|chunk| Shard::of_chunk(chunk, 1)).collect();
        let content = |chunk: &Shard| -> Vec<u8> {
            // The first two have the same head.
            let place = chunks.iter().position(|other| other == chunk).unwrap();
            let byte =
                |index| u8::try_from((index + if index < 100 { place / 2 } else { place }) % 256).unwrap();
            (0..6000).map(byte).collect()
        };
        let mut pool = vec![9; 1_200_000];
        for (chunk, offset) in chunks.iter().zip([4096 * 3, 4096 * 200, 4096 * 270]) {
            pool[offset..offset + 6000].copy_from_slice(&content(chunk));
        }
        fs::write(&path, &pool).unwrap();
        let wanted = chunks.iter().cloned().collect();
        let mut tier = MemoryTier::search(path.clone(), &wanted, |chunk| Ok(content(chunk))).unwrap();
        assert_eq!(tier.found(), 3);

        tier.plant(&chunks[1], &[1; 6000]).unwrap();
        let planted = fs::read(&path).unwrap();
        let (start, end) = (4096 * 200, 4096 * 200 + 6000);
        assert!(planted[start..end].iter().all(|byte| *byte == 1));
        assert_eq!((&planted[..start], &planted[end..]), (&pool[..start], &pool[end..]));
        tier.restore(|chunk| Ok(content(chunk))).unwrap();
        assert_eq!(fs::read(&path).unwrap(), pool);

        fs::remove_file(&path).unwrap();
        assert_eq!(MemoryTier::search(path, &wanted, |chunk| Ok(content(chunk))).unwrap().found(), 0);
    }
}
