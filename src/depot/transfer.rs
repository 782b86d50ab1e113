//! Single steps over an object store: a part up, a part down, a seal. Main type: [`Shelf`].

use std::collections::BTreeMap;
use std::io::{Read, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use futures_util::TryStreamExt;
use futures_util::stream::{FuturesOrdered, StreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use serde::{Deserialize, Serialize};

use super::error::Trouble;
use super::seal::{PART_BYTES, Seal, SealedFile};
use crate::digest::{Digest, DigestWriter, digest_bytes};
use crate::stage_name::StageName;

/// Parts under way at a time: enough to hide a round trip, and 24 MiB.
const PARTS_AT_A_TIME: usize = 3;
/// Looks at a part that does not agree with its name: the way, too, may have changed it.
const LOOKS: u32 = 2;
/// Tries to put a seal whose fate is not known.
const SEAL_TRIES: u32 = 3;

/// An object store, and where in it everything lies.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) store: Box<dyn ObjectStore>,
    pub(super) root: Path,
}

/// `reports/<run>/<name>.json`: a report's text and the digest of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    sha256: Digest,
    report: String,
}

/// How something is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Putting {
    /// Unless it is there.
    IfAbsent,
    /// In place of what is there, since that is wrong.
    Anew,
}

impl Shelf {
    fn part(&self, digest: Digest) -> Path {
        let name = digest.to_string();
        self.root.clone().join("parts").join(&name[..2]).join(name)
    }

    fn seal(&self, stage: StageName, key: Digest) -> Path {
        self.root.clone().join("artifacts").join(stage.as_str()).join(format!("{key}.json"))
    }

    fn report(&self, run: &str, name: &str) -> Path {
        self.root.clone().join("reports").join(run).join(format!("{name}.json"))
    }

    /// An object's content; none where there is none.
    async fn get(&self, path: &Path, what: &str) -> Result<Option<Vec<u8>>, Trouble> {
        let answer = match self.store.get(path).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            answer => answer.map_err(|error| Trouble::of(what, &error))?,
        };
        if answer.meta.size > (PART_BYTES as u64).saturating_mul(2) {
            return Err(Trouble::Damaged(format!("{what}: it has {} bytes", answer.meta.size)));
        }
        let bytes = answer.bytes().await.map_err(|error| Trouble::of(what, &error))?;
        Ok(Some(bytes.into()))
    }

    /// The seal of a key; none where there is none.
    pub(super) async fn read_seal(&self, stage: StageName, key: Digest) -> Result<Option<Seal>, Trouble> {
        let mut problem = String::new();
        for _ in 0..LOOKS {
            let bytes = self.get(&self.seal(stage, key), "looking up an artifact").await?;
            match bytes.map(|bytes| Seal::read(&bytes, key)).transpose() {
                Ok(seal) => return Ok(seal),
                Err(seen) => problem = seen,
            }
        }
        Err(Trouble::Damaged(format!("the seal of {stage}/{}: {problem}", key.short())))
    }

    /// Puts a seal. False where there is one already, which stays.
    pub(super) async fn put_seal(&self, seal: &Seal, putting: Putting) -> Result<bool, Trouble> {
        let path = self.seal(seal.key.stage(), seal.key.digest());
        self.put_small(&path, seal.to_json(), putting).await
    }

    /// Puts the report of a part of a run.
    pub(super) async fn put_report(&self, run: &str, name: &str, json: String) -> Result<(), Trouble> {
        let envelope = Envelope { sha256: digest_bytes(json.as_bytes()), report: json };
        let bytes = serde_json::to_vec(&envelope).expect("texts have a JSON form");
        self.put_small(&self.report(run, name), bytes, Putting::Anew).await.map(drop)
    }

    /// All reports of a run, by name.
    pub(super) async fn reports(&self, run: &str) -> Result<BTreeMap<String, String>, Trouble> {
        let mut reports = BTreeMap::new();
        for object in self.list(&["reports", run]).await? {
            let name = object.location.filename().unwrap_or_default().trim_end_matches(".json").to_owned();
            if let Some(json) = self.get_report(&object.location, &name).await? {
                reports.insert(name, json);
            }
        }
        Ok(reports)
    }

    async fn get_report(&self, path: &Path, name: &str) -> Result<Option<String>, Trouble> {
        for _ in 0..LOOKS {
            let Some(bytes) = self.get(path, "bringing a report").await? else { return Ok(None) };
            match serde_json::from_slice::<Envelope>(&bytes) {
                Ok(Envelope { sha256, report }) if digest_bytes(report.as_bytes()) == sha256 => {
                    return Ok(Some(report));
                }
                Ok(_) | Err(_) => {}
            }
        }
        Err(Trouble::Damaged(format!("the report {name} is not as it was put there")))
    }

    async fn put_small(&self, path: &Path, bytes: Vec<u8>, putting: Putting) -> Result<bool, Trouble> {
        let failed = |error: &Error| Trouble::of("putting an object", error);
        let mut tries = 0;
        loop {
            tries += 1;
            let mode = match putting {
                Putting::IfAbsent => PutMode::Create,
                Putting::Anew => PutMode::Overwrite,
            };
            match self.store.put_opts(path, PutPayload::from(bytes.clone()), mode.into()).await {
                Ok(_) => return Ok(true),
                // Also where an answer was lost and the next try met the first one's object.
                Err(Error::AlreadyExists { .. }) => return Ok(false),
                Err(Error::NotImplemented { .. }) => {
                    // A store without conditions: two who put at the same time put the same.
                    return match self.store.head(path).await {
                        Ok(_) => Ok(false),
                        Err(Error::NotFound { .. }) => {
                            let put = self.store.put(path, PutPayload::from(bytes)).await;
                            put.map(|_| true).map_err(|error| failed(&error))
                        }
                        Err(error) => Err(failed(&error)),
                    };
                }
                Err(error) => match failed(&error) {
                    Trouble::Failing(_) if tries < SEAL_TRIES => {}
                    trouble => return Err(trouble),
                },
            }
        }
    }

    async fn put_part(&self, digest: Digest, bytes: Vec<u8>, putting: Putting) -> Result<(), Trouble> {
        let path = self.part(digest);
        if putting == Putting::IfAbsent
            && self.store.head(&path).await.is_ok_and(|object| object.size == bytes.len() as u64)
        {
            return Ok(());
        }
        let put = self.store.put(&path, PutPayload::from(bytes)).await;
        put.map(drop).map_err(|error| Trouble::of("putting a part", &error))
    }

    async fn get_part(&self, digest: Digest, size: usize) -> Result<Vec<u8>, Trouble> {
        let path = self.part(digest);
        let mut problem = String::new();
        for _ in 0..LOOKS {
            problem = match self.get(&path, "bringing a part").await {
                Ok(Some(bytes)) if bytes.len() == size && digest_bytes(&bytes) == digest => return Ok(bytes),
                Ok(Some(bytes)) if bytes.len() == size => "holds other bytes than its name says".to_owned(),
                Ok(Some(bytes)) => format!("has {} bytes instead of {size}", bytes.len()),
                Ok(None) => "is not there".to_owned(),
                Err(Trouble::Damaged(seen)) => seen,
                Err(other) => return Err(other),
            };
        }
        Err(Trouble::Damaged(format!("the part {} {problem}", digest.short())))
    }

    /// Writes an artifact's files below a folder, a few parts at a time, each part and each file held against its digest.
    pub(super) async fn bring(&self, seal: &Seal, folder: &Utf8Path) -> Result<(), Trouble> {
        for (name, file) in seal.files() {
            let here = |error: std::io::Error| Trouble::Failing(format!("writing what comes: {error}"));
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(here)?;
            let mut writer = DigestWriter::new(fs::File::create(&path).map_err(here)?);
            let parts =
                futures_util::stream::iter(file.parts().map(|(digest, size)| self.get_part(digest, size)));
            let mut parts = parts.buffered(PARTS_AT_A_TIME);
            while let Some(bytes) = parts.try_next().await? {
                writer.write_all(&bytes).map_err(here)?;
            }
            let (_, sha256, size) = writer.finish();
            if (sha256, size) != (file.sha256(), file.size()) {
                return Err(Trouble::Damaged(format!(
                    "the file {name} has another content than its seal says"
                )));
            }
        }
        Ok(())
    }

    /// Puts a file's parts, a few at a time.
    pub(super) async fn put_file(
        &self,
        path: &Utf8Path,
        putting: Putting,
    ) -> Result<(u64, Vec<Digest>), Trouble> {
        let here = |error: std::io::Error| Trouble::Failing(format!("reading what goes up: {error}"));
        let mut file = fs::File::open(path).map_err(here)?;
        let (mut size, mut parts, mut under_way) = (0, Vec::new(), FuturesOrdered::new());
        loop {
            let mut bytes = Vec::with_capacity(PART_BYTES);
            Read::by_ref(&mut file).take(PART_BYTES as u64).read_to_end(&mut bytes).map_err(here)?;
            if bytes.is_empty() {
                break;
            }
            bytes.shrink_to_fit();
            size += bytes.len() as u64;
            let digest = digest_bytes(&bytes);
            parts.push(digest);
            under_way.push_back(self.put_part(digest, bytes, putting));
            if under_way.len() >= PARTS_AT_A_TIME {
                under_way.try_next().await?;
            }
        }
        while under_way.try_next().await?.is_some() {}
        Ok((size, parts))
    }

    /// Puts all files of an artifact.
    pub(super) async fn put_files(
        &self,
        files: impl IntoIterator<Item = (Utf8PathBuf, Utf8PathBuf, Digest)>,
        putting: Putting,
    ) -> Result<BTreeMap<Utf8PathBuf, SealedFile>, Trouble> {
        let mut sealed = BTreeMap::new();
        for (name, path, sha256) in files {
            let (size, parts) = self.put_file(&path, putting).await?;
            sealed.insert(name, SealedFile::of(size, sha256, parts));
        }
        Ok(sealed)
    }

    /// The objects below a folder, sorted by name.
    pub(super) async fn list(&self, below: &[&str]) -> Result<Vec<ObjectMeta>, Trouble> {
        let folder = below.iter().fold(self.root.clone(), |path, step| path.join(*step));
        let listed: Result<Vec<ObjectMeta>, Error> = self.store.list(Some(&folder)).try_collect().await;
        let mut listed = listed.map_err(|error| Trouble::of("listing what is there", &error))?;
        listed.sort_by(|one, other| one.location.cmp(&other.location));
        Ok(listed)
    }

    /// Removes objects; those that are gone already are no failure.
    pub(super) async fn remove(&self, paths: Vec<Path>) -> Result<(), Trouble> {
        let paths = futures_util::stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut removed = self.store.delete_stream(paths);
        while let Some(outcome) = removed.next().await {
            match outcome {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(Trouble::of("removing an object", &error)),
            }
        }
        Ok(())
    }
}
