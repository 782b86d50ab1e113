//! What a suite's names stand for: datasets and models, inside the binary, fetched or on disk.
//!
//! Main types: [`Archive`], [`Model`]. Embedded models are written below the cache folder when an engine needs them.

use std::collections::BTreeMap;
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use include_dir::{Dir, include_dir};

use crate::cache::Bucket;
use crate::digest::{Digest, digest_bytes, digest_file, digest_json};
use crate::engine::{Parallelism, ParallelismError};
use crate::fetch::{ArchivePin, ModelPin, Verified};
use crate::machine::Device;
use crate::model::{KvShape, UnknownKv};
use crate::suite::{ModelSettings, nearest};

static CANARY_ARCHIVE: &[u8] = include_bytes!("../data/canary.tar.xz");
static MODELS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/data/models");

/// Why a dataset or a model cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// There is no such thing.
    #[error("find {kind} {name:?}: it is neither a path that exists nor known by name ({})", embedded.join(", "))]
    Unknown {
        /// `dataset` or `model`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// What is embedded.
        embedded: Vec<String>,
    },
    /// It is pinned, and not here.
    #[error("find {kind} {name}: it has not been fetched, or was touched since")]
    NotFetched {
        /// `dataset` or `model`.
        kind: &'static str,
        /// What was asked for.
        name: String,
    },
    /// A folder is no dataset.
    #[error("find questions in the folder {0}: it holds no table of dev, val or test")]
    NoTables(Utf8PathBuf),
    /// A folder is no model that vLLM can load.
    #[error("find weights in the folder {0}: it holds no *.safetensors")]
    NoWeights(Utf8PathBuf),
    /// A file cannot be read or written.
    #[error("use {path}")]
    Io {
        /// The file or folder.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `config.json` is not a model's.
    #[error("read the KV cache's shape from {path}")]
    Config {
        /// The file.
        path: String,
        /// What of it is not understood.
        #[source]
        problem: UnknownKv,
    },
    /// A model cannot be spread as its suite wants it.
    #[error(transparent)]
    Parallelism(#[from] ParallelismError),
}

const MODEL_FILES: &str = "a model folder needs config.json, tokenizer.json and *.safetensors of one model";

/// Whether a name that is no path has the form OWNER/MODEL.
fn is_name_on_hub(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| !part.is_empty() && !part.starts_with('.'))
}

fn is_of_model(path: &Utf8Path) -> bool {
    path.file_name().is_some_and(|name| ["config.json", "tokenizer.json"].contains(&name))
}

impl AssetError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { kind, name, embedded } => match (nearest(name, embedded), *kind) {
                (Some(near), _) => format!("did you mean {near}?"),
                (None, "dataset") => {
                    "give `--data` the path of a .tar, .tar.xz, .tar.gz or folder in MMLU's layout".to_owned()
                }
                (None, _) if is_name_on_hub(name) => format!(
                    "if it is on the Hugging Face hub, pin it by its files: `hf download {name} --revision COMMIT \
                     --local-dir FOLDER`, and give that folder to the model's `source`",
                    name = name.split('@').next().unwrap_or(name)
                ),
                (None, _) => {
                    "give the model's `source` the path of a folder in Hugging Face's layout".to_owned()
                }
            },
            Self::NoTables(_) => {
                "it needs the folders `dev`, `val` and `test`, or these in its `data`, with a CSV file a subject"
                    .to_owned()
            }
            Self::NoWeights(folder) => format!(
                "get them with `hf download OWNER/MODEL --revision COMMIT --local-dir {folder}`, or name their \
                 format, if it is another, by vLLM's `load_format` in the model's `arguments`"
            ),
            Self::NotFetched { kind: "dataset", name } => format!("run `kv-correctness fetch --data {name}`"),
            Self::NotFetched { name, .. } => format!("run `kv-correctness fetch {name}`"),
            Self::Io { path, source } if source.kind() == io::ErrorKind::NotFound && is_of_model(path) => {
                MODEL_FILES.to_owned()
            }
            Self::Io { .. } => {
                "check that it exists and may be read, and that the disk is not full".to_owned()
            }
            Self::Config { problem: UnknownKv::NoModel(_), .. } => MODEL_FILES.to_owned(),
            Self::Config { problem: UnknownKv::Attention { .. }, .. } => {
                "take a model whose layers all have full attention, or all MLA: docs/suites.md says which are known".to_owned()
            }
            Self::Parallelism(error) => return error.hint(),
        })
    }
}

/// A dataset's archive.
#[derive(Debug, Clone)]
pub enum Archive {
    /// Inside the binary.
    Embedded(&'static [u8]),
    /// On disk.
    File(Utf8PathBuf),
    /// A folder of `dev`, `val` and `test`, as the archive that it would be packed into.
    Folder(Vec<u8>),
    /// Fetched, and known by digest.
    Pinned(Utf8PathBuf, Digest),
}

impl Archive {
    /// Finds a dataset by its embedded name, its pinned name or its path.
    ///
    /// # Errors
    /// When there is none, or it is pinned and not fetched into `cache`.
    pub fn find(name: &str, cache: &Utf8Path) -> Result<Self, AssetError> {
        if name == "canary" {
            return Ok(Self::Embedded(CANARY_ARCHIVE));
        }
        if let Some(pin) = ArchivePin::find(name) {
            let path = pin.path(cache);
            return if Verified::read(cache).holds(&path, pin.sha256) {
                Ok(Self::Pinned(path, pin.sha256))
            } else {
                Err(AssetError::NotFetched { kind: "dataset", name: name.to_owned() })
            };
        }
        if Utf8Path::new(name).is_file() {
            return Ok(Self::File(name.into()));
        }
        if Utf8Path::new(name).is_dir() {
            return pack(Utf8Path::new(name)).map(Self::Folder);
        }
        Err(AssetError::Unknown {
            kind: "dataset",
            name: name.to_owned(),
            embedded: std::iter::once("canary")
                .chain(ArchivePin::all().iter().map(|pin| pin.name.as_str()))
                .map(str::to_owned)
                .collect(),
        })
    }

    /// SHA-256 of the archive.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn digest(&self) -> Result<Digest, AssetError> {
        match self {
            Self::Embedded(bytes) => Ok(digest_bytes(bytes)),
            Self::Folder(bytes) => Ok(digest_bytes(bytes)),
            Self::Pinned(_, digest) => Ok(*digest),
            Self::File(path) => {
                digest_file(path).map(|(digest, _)| digest).map_err(|source| io_error(path, source))
            }
        }
    }

    /// Opens it for one pass.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(&self) -> Result<Box<dyn Read + Send>, AssetError> {
        Ok(match self {
            Self::Embedded(bytes) => Box::new(*bytes),
            Self::Folder(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Self::File(path) | Self::Pinned(path, _) => {
                Box::new(fs::File::open(path).map_err(|source| io_error(path, source))?)
            }
        })
    }
}

/// Packs the tables of `dev`, `val` and `test`, which lie in `folder` or in its `data`, so that only names and content
/// count.
fn pack(folder: &Utf8Path) -> Result<Vec<u8>, AssetError> {
    let below = folder.join("data");
    let folder = if below.is_dir() { below } else { folder.to_owned() };
    let mut archive = tar::Builder::new(Vec::new());
    let mut tables_found = false;
    for split in ["dev", "val", "test"] {
        let tables = folder.join(split);
        if !tables.is_dir() {
            continue; // the subjects that lack it are named when the archive is read
        }
        let entries = tables.read_dir_utf8().and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut paths: Vec<Utf8PathBuf> = entries
            .map_err(|source| io_error(&tables, source))?
            .iter()
            .map(|entry| entry.path().into())
            .collect();
        paths.retain(|path| path.extension() == Some("csv"));
        paths.sort();
        tables_found |= !paths.is_empty();
        for path in paths {
            let place = Utf8Path::new("data").join(split).join(path.file_name().unwrap_or_default());
            let mut add = || -> io::Result<()> {
                let content = fs::read(&path)?;
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                archive.append_data(&mut header, &place, content.as_slice())
            };
            add().map_err(|source| io_error(&path, source))?;
        }
    }
    if !tables_found {
        return Err(AssetError::NoTables(folder));
    }
    archive.into_inner().map_err(|source| io_error(&folder, source))
}

/// A model of a suite: its files, and what the suite says of it.
#[derive(Debug, Clone)]
pub struct Model {
    settings: ModelSettings,
    files: ModelFiles,
}

/// A model's files, whatever a suite says of them.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The name or path that they were found by, for messages.
    name: String,
    source: ModelSource,
    digest: Digest,
}

#[derive(Debug, Clone)]
enum ModelSource {
    Embedded(&'static Dir<'static>),
    Folder(Utf8PathBuf),
}

impl Model {
    /// Finds a model by its embedded name, its pinned name or its folder. The digest of its files is taken, or known.
    ///
    /// # Errors
    /// When there is none, it is pinned and not fetched into `cache`, or a file cannot be read.
    pub fn find(settings: &ModelSettings, cache: &Utf8Path) -> Result<Self, AssetError> {
        let files = ModelFiles::find(&settings.source, cache)?;
        Ok(Self { settings: settings.clone(), files })
    }

    /// The same files with other settings.
    #[must_use]
    pub fn with_settings(&self, settings: ModelSettings) -> Self {
        Self { settings, files: self.files.clone() }
    }

    /// The suite's settings for it.
    #[must_use]
    pub fn settings(&self) -> &ModelSettings {
        &self.settings
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// SHA-256 over the names and digests of its files.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.files.digest
    }

    /// Fails where the suite spreads it in a way that cannot be. GPUs are counted elsewhere.
    ///
    /// # Errors
    /// When heads, layers, processors or packages do not suffice, or its `config.json` cannot be read.
    pub fn check_parallelism(&self, device: &Device, has_ray: bool) -> Result<(), AssetError> {
        let text = String::from_utf8_lossy(&self.files.read("config.json")?).into_owned();
        Ok(Parallelism::check(&self.settings, &text, self.files.kv_shape()?, device, has_ray)?)
    }
}

impl ModelFiles {
    fn find(name: &str, cache: &Utf8Path) -> Result<Self, AssetError> {
        let name = name.to_owned();
        if let Some(folder) = MODELS.get_dir(&name) {
            let files = folder.files().map(|file| (file_name(file.path()), digest_bytes(file.contents())));
            let digest = digest_json(&files.collect::<BTreeMap<_, _>>());
            return Ok(Self { name, source: ModelSource::Embedded(folder), digest });
        }
        if let Some(pin) = ModelPin::find(&name) {
            if !pin.is_complete(cache, &Verified::read(cache)) {
                return Err(AssetError::NotFetched { kind: "model", name });
            }
            return Ok(Self { name, source: ModelSource::Folder(pin.folder(cache)), digest: pin.digest() });
        }
        let folder = Utf8PathBuf::from(&name);
        if !folder.is_dir() {
            let embedded = MODELS.dirs().map(|folder| file_name(folder.path()));
            let embedded = embedded.chain(ModelPin::all().iter().map(|pin| pin.name.clone())).collect();
            return Err(AssetError::Unknown { kind: "model", name, embedded });
        }
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(|source| io_error(&folder, source))? {
            let entry = entry.map_err(|source| io_error(&folder, source))?;
            let path = folder.join(entry.file_name().to_string_lossy().as_ref());
            if path.is_file() {
                let (digest, _) = digest_file(&path).map_err(|source| io_error(&path, source))?;
                files.insert(entry.file_name().to_string_lossy().into_owned(), digest);
            }
        }
        let digest = digest_json(&files);
        Ok(Self { name, source: ModelSource::Folder(folder), digest })
    }

    /// The same files in this folder.
    #[must_use]
    pub fn moved_to(&self, folder: Utf8PathBuf) -> Self {
        Self { source: ModelSource::Folder(folder), ..self.clone() }
    }

    /// SHA-256 over the names and digests of the files; links are followed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The bytes of one of the small files.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, AssetError> {
        match &self.source {
            ModelSource::Embedded(folder) => {
                folder.get_file(folder.path().join(name)).map(|file| file.contents().to_vec()).ok_or_else(
                    || io_error(&Utf8Path::new(&self.name).join(name), io::ErrorKind::NotFound.into()),
                )
            }
            ModelSource::Folder(folder) => {
                let path = folder.join(name);
                fs::read(&path).map_err(|source| io_error(&path, source))
            }
        }
    }

    /// Fails where vLLM would find no weights in the folder.
    ///
    /// # Errors
    /// When the folder cannot be read or holds no `*.safetensors`.
    pub fn check_weights(&self) -> Result<(), AssetError> {
        let ModelSource::Folder(folder) = &self.source else { return Ok(()) };
        let mut entries = folder.read_dir_utf8().map_err(|source| io_error(folder, source))?.flatten();
        let is_weights = |path: &Utf8Path| path.extension() == Some("safetensors") && path.is_file();
        if entries.any(|entry| is_weights(entry.path())) {
            Ok(())
        } else {
            Err(AssetError::NoWeights(folder.clone()))
        }
    }

    /// The shape of the model's KV cache.
    ///
    /// # Errors
    /// When its `config.json` is missing or not a model's.
    pub fn kv_shape(&self) -> Result<KvShape, AssetError> {
        let text = String::from_utf8_lossy(&self.read("config.json")?).into_owned();
        KvShape::from_config(&text).map_err(|error| AssetError::Config {
            path: format!("{}/config.json", self.name),
            problem: error,
        })
    }

    /// The folder for vLLM; an embedded model is written below `cache` first, unless it is there.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn folder(&self, cache: &Utf8Path) -> Result<Utf8PathBuf, AssetError> {
        let embedded = match &self.source {
            ModelSource::Folder(folder) => {
                return folder.canonicalize_utf8().map_err(|source| io_error(folder, source));
            }
            ModelSource::Embedded(embedded) => embedded,
        };
        let models = Bucket::Models.folder(cache);
        let folder = models.join(format!("{}-{}", self.name, self.digest.short()));
        let write = || -> io::Result<()> {
            if folder.exists() {
                return Ok(());
            }
            fs::create_dir_all(&models)?;
            let draft = tempfile::tempdir_in(&models)?;
            for file in embedded.files() {
                fs::write(draft.path().join(file_name(file.path())), file.contents())?;
            }
            match fs::rename(draft.path(), &folder) {
                Err(_) if folder.exists() => Ok(()), // another run was faster
                outcome => outcome,
            }
        };
        write().map_err(|source| io_error(&folder, source))?;
        Ok(folder)
    }
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn io_error(path: &Utf8Path, source: io::Error) -> AssetError {
    AssetError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Suite;

    #[test]
    fn what_is_pinned_and_not_fetched_is_refused_with_the_command_that_fetches_it() {
        let cache = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(cache.path()).unwrap();
        let suite = Suite::load("smollm2").unwrap();
        let model = Model::find(&suite.models[0], cache).unwrap_err();
        assert_eq!(model.hint().unwrap(), "run `kv-correctness fetch smollm2-135m-instruct`");
        let dataset = Archive::find(&suite.dataset, cache).unwrap_err();
        assert_eq!(dataset.hint().unwrap(), "run `kv-correctness fetch --data mmlu`");
    }

    #[test]
    fn a_model_whose_attention_is_not_known_is_refused_by_name_and_never_called_dense() {
        let cache = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(cache.path()).unwrap();
        let settings = Suite::load("canary").unwrap().models.remove(0);
        let windowed = r#"{"model_type":"mistral","num_hidden_layers":32,"num_attention_heads":32,"hidden_size":4096,"sliding_window":4096}"#;
        fs::write(cache.join("config.json"), windowed).unwrap();
        let model = Model::find(&ModelSettings { source: cache.to_string(), ..settings }, cache).unwrap();
        let error = model.files().kv_shape().unwrap_err();
        let cause = std::error::Error::source(&error).unwrap();
        insta::assert_snapshot!(cause, @"its attention is not known: mistral has 32 layers of a sliding window of 4096 tokens");
        assert!(error.hint().unwrap().contains("docs/suites.md"));
    }

    #[test]
    fn a_fetched_model_has_the_digest_that_its_folder_would_have() {
        let cache = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(cache.path()).unwrap();
        let mut settings = Suite::load("canary").unwrap().models.remove(0);
        let folder = cache.join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        settings.source = folder.into_string();
        let found = Model::find(&settings, cache).unwrap().digest();
        let mut pin = ModelPin::all()[0].clone();
        pin.files.truncate(1);
        pin.files[0].sha256 = digest_bytes(b"{}");
        assert_eq!(pin.files[0].name, "config.json");
        assert_eq!(pin.digest(), found);
    }
}
