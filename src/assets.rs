//! What a suite's names stand for: datasets and models, inside the binary, fetched or on disk.
//!
//! Main types: [`Archive`], [`Model`], [`ModelFiles`]. Embedded models are written below the cache folder when an engine needs them.

mod folder;
mod weights;

use std::collections::BTreeMap;
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use include_dir::{Dir, include_dir};

use self::folder::{look_at, pack};
pub use self::weights::FileProblem;
use self::weights::{check_weights, is_pointer};
use crate::dataset::LeftOut;
use crate::digest::{Digest, digest_bytes, digest_file, digest_json};
use crate::engine::{Device, KvShape, Parallelism, ParallelismError};
use crate::fetch::{ArchivePin, ModelPin, Verified};
use crate::suite::{ModelSettings, Suite, nearest};

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
    /// Two folders of tables, where one is meant.
    #[error("choose between the tables in {first} and in {second}")]
    TwoLayouts {
        /// One of them.
        first: Utf8PathBuf,
        /// Another.
        second: Utf8PathBuf,
    },
    /// A folder in which nobody would look for a file.
    #[error("find questions in the folder {0}: too many files lie there to look at each")]
    TooManyFiles(Utf8PathBuf),
    /// More than any table has.
    #[error("read {0}: it is larger than any table of questions")]
    TooLarge(Utf8PathBuf),
    /// Something that cannot be read again and again.
    #[error("read {path}: it is {what}, no file")]
    NotAFile {
        /// Where.
        path: Utf8PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// A file where a model's folder is wanted.
    #[error("use {0} as a model: it is a file, and a model is a folder")]
    NoFolder(Utf8PathBuf),
    /// What changes another model is none itself.
    #[error("find a model in the folder {0}: it holds an adapter (LoRA) and no model")]
    Adapter(Utf8PathBuf),
    /// A file of a model is not whole.
    #[error("use {path}: {problem}")]
    File {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        problem: FileProblem,
    },
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
    #[error("read the KV cache's shape from {path}: {problem}")]
    Config {
        /// The file.
        path: String,
        /// In serde's words.
        problem: String,
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
            Self::TwoLayouts { .. } => "name the one that is meant with `--data`, or as the suite's `dataset`".to_owned(),
            Self::TooManyFiles(_) => {
                "name the folder that holds `dev`, `val` and `test` itself".to_owned()
            }
            Self::TooLarge(_) => "give each subject a table of its own, or move it out of that folder".to_owned(),
            Self::NotAFile { what: "a pipe", .. } => {
                "write it to a file first, which can be read more than once: `COMMAND > data.tar`".to_owned()
            }
            Self::NotAFile { .. } => "name a file, or move it out of that folder".to_owned(),
            Self::NoFolder(path) => format!(
                "name the folder that holds config.json, tokenizer.json and *.safetensors, as {} may be",
                path.parent().filter(|parent| *parent != "").unwrap_or(Utf8Path::new("."))
            ),
            Self::Adapter(_) => {
                "merge it into its base model (with peft: `model.merge_and_unload().save_pretrained(FOLDER)`), and name \
                 that folder"
                    .to_owned()
            }
            Self::File { path, problem } => problem.hint(path.parent().unwrap_or(path)),
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
            Self::Config { .. } => MODEL_FILES.to_owned(),
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
    /// A folder of `dev`, `val` and `test`, as the archive that it would be packed into, and what lies beside them.
    Folder(Vec<u8>, LeftOut),
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
        match look_at(Utf8Path::new(name))? {
            Some(found) if found.is_file() => return Ok(Self::File(name.into())),
            Some(_) => {
                let (packed, left_out) = pack(Utf8Path::new(name))?;
                return Ok(Self::Folder(packed, left_out));
            }
            None => {}
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
            Self::Folder(bytes, _) => Ok(digest_bytes(bytes)),
            Self::Pinned(_, digest) => Ok(*digest),
            Self::File(path) => {
                digest_file(path).map(|(digest, _)| digest).map_err(|source| io_error(path, source))
            }
        }
    }

    /// What lies beside a folder's tables and is no part of it.
    #[must_use]
    pub fn left_out(&self) -> LeftOut {
        match self {
            Self::Folder(_, left_out) => left_out.clone(),
            Self::Embedded(_) | Self::File(_) | Self::Pinned(..) => LeftOut::default(),
        }
    }

    /// Opens it for one pass.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(&self) -> Result<Box<dyn Read + Send>, AssetError> {
        Ok(match self {
            Self::Embedded(bytes) => Box::new(*bytes),
            Self::Folder(bytes, _) => Box::new(io::Cursor::new(bytes.clone())),
            Self::File(path) | Self::Pinned(path, _) => {
                Box::new(fs::File::open(path).map_err(|source| io_error(path, source))?)
            }
        })
    }
}

/// A model's files, as far as they can be looked at without reading the weights.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    settings: ModelSettings,
    source: ModelSource,
    /// Of an embedded or a pinned model.
    known_digest: Option<Digest>,
}

/// A model's files, with their digest. Whatever can be asked of the files can be asked of it.
#[derive(Debug, Clone)]
pub struct Model {
    files: ModelFiles,
    digest: Digest,
}

impl std::ops::Deref for Model {
    type Target = ModelFiles;

    fn deref(&self) -> &ModelFiles {
        &self.files
    }
}

#[derive(Debug, Clone)]
enum ModelSource {
    Embedded(&'static Dir<'static>),
    Folder(Utf8PathBuf),
}

impl Model {
    /// Finds a model as [`ModelFiles::find`] does. The digest of its files is taken, or known.
    ///
    /// # Errors
    /// When there is none, it is pinned and not fetched into `cache`, or a file cannot be read.
    pub fn find(settings: &ModelSettings, cache: &Utf8Path) -> Result<Self, AssetError> {
        let files = ModelFiles::find(settings, cache)?;
        let digest = match files.known_digest {
            Some(digest) => digest,
            None => files.take_digest()?,
        };
        Ok(Self { files, digest })
    }

    /// The same model under another name, for a run of its own.
    #[must_use]
    pub fn renamed(&self, name: String) -> Self {
        let mut model = self.clone();
        model.files.settings.name = name;
        model
    }

    /// The same model with its files in this folder.
    #[must_use]
    pub fn moved_to(&self, folder: Utf8PathBuf) -> Self {
        let mut model = self.clone();
        model.files.source = ModelSource::Folder(folder);
        model
    }

    /// SHA-256 over the names and digests of its files; links in it are followed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The folder for vLLM; an embedded model is written below `cache` first, unless it is there.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn folder(&self, cache: &Utf8Path) -> Result<Utf8PathBuf, AssetError> {
        let embedded = match &self.files.source {
            ModelSource::Folder(folder) => {
                return folder.canonicalize_utf8().map_err(|source| io_error(folder, source));
            }
            ModelSource::Embedded(embedded) => embedded,
        };
        let models = cache.join("models");
        let folder = models.join(format!("{}-{}", self.files.settings.source, self.digest.short()));
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

impl ModelFiles {
    /// Finds a model by its embedded name, its pinned name or its folder.
    ///
    /// # Errors
    /// When there is none, or it is pinned and not fetched into `cache`.
    pub fn find(settings: &ModelSettings, cache: &Utf8Path) -> Result<Self, AssetError> {
        let name = &settings.source;
        let files = |source, known_digest| Self { settings: settings.clone(), source, known_digest };
        if let Some(folder) = MODELS.get_dir(name).filter(|_| !name.is_empty()) {
            let contents = folder.files().map(|file| (file_name(file.path()), digest_bytes(file.contents())));
            let digest = digest_json(&contents.collect::<BTreeMap<_, _>>());
            return Ok(files(ModelSource::Embedded(folder), Some(digest)));
        }
        if let Some(pin) = ModelPin::find(name) {
            if !pin.is_complete(cache, &Verified::read(cache)) {
                return Err(AssetError::NotFetched { kind: "model", name: name.clone() });
            }
            return Ok(files(ModelSource::Folder(pin.folder(cache)), Some(pin.digest())));
        }
        let folder = Utf8PathBuf::from(name);
        match look_at(&folder)? {
            Some(found) if found.is_dir() => Ok(files(ModelSource::Folder(folder), None)),
            Some(_) => Err(AssetError::NoFolder(folder)),
            None => {
                let embedded = MODELS.dirs().map(|folder| file_name(folder.path()));
                let embedded = embedded.chain(ModelPin::all().iter().map(|pin| pin.name.clone())).collect();
                Err(AssetError::Unknown { kind: "model", name: name.clone(), embedded })
            }
        }
    }

    fn take_digest(&self) -> Result<Digest, AssetError> {
        let ModelSource::Folder(folder) = &self.source else { return Ok(digest_bytes(&[])) };
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
            let entry = entry.map_err(|source| io_error(folder, source))?;
            let path = folder.join(entry.file_name().to_string_lossy().as_ref());
            if path.is_file() {
                let (digest, _) = digest_file(&path).map_err(|source| io_error(&path, source))?;
                files.insert(entry.file_name().to_string_lossy().into_owned(), digest);
            }
        }
        Ok(digest_json(&files))
    }

    /// The suite's settings for it.
    #[must_use]
    pub fn settings(&self) -> &ModelSettings {
        &self.settings
    }

    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The bytes of one of its small files.
    ///
    /// # Errors
    /// When it has no such file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, AssetError> {
        match &self.source {
            ModelSource::Embedded(folder) => folder
                .get_file(folder.path().join(name))
                .map(|file| file.contents().to_vec())
                .ok_or_else(|| {
                    io_error(&Utf8Path::new(&self.settings.source).join(name), io::ErrorKind::NotFound.into())
                }),
            ModelSource::Folder(folder) => {
                let path = folder.join(name);
                match fs::read(&path) {
                    Ok(content) if is_pointer(&content) => {
                        Err(AssetError::File { path, problem: FileProblem::LfsPointer })
                    }
                    Err(_) if name == "config.json" && folder.join("adapter_config.json").is_file() => {
                        Err(AssetError::Adapter(folder.clone()))
                    }
                    content => content.map_err(|source| io_error(&path, source)),
                }
            }
        }
    }

    /// Fails where vLLM would find no whole weights in its folder. Under a `load_format` that is not safetensors, weights
    /// have other names, and are not looked at.
    ///
    /// # Errors
    /// When the folder cannot be read, or holds no `*.safetensors`, or not all, or one that is not whole.
    pub fn check_weights(&self, suite: &Suite) -> Result<(), AssetError> {
        let ModelSource::Folder(folder) = &self.source else { return Ok(()) };
        let settings = &self.settings;
        let tables = [&settings.cpu_arguments, &settings.arguments, &suite.engine.arguments];
        let format = tables.into_iter().find_map(|arguments| arguments.get("load_format"));
        match format.and_then(serde_json::Value::as_str).map(str::to_lowercase).as_deref() {
            None | Some("auto" | "hf" | "safetensors" | "fastsafetensors" | "runai_streamer") => {
                check_weights(folder)
            }
            Some(_) => Ok(()),
        }
    }

    /// The shape of its KV cache.
    ///
    /// # Errors
    /// When its `config.json` is missing or not a model's.
    pub fn kv_shape(&self) -> Result<KvShape, AssetError> {
        let text = String::from_utf8_lossy(&self.read("config.json")?).into_owned();
        KvShape::from_config(&text).map_err(|error| AssetError::Config {
            path: format!("{}/config.json", self.settings.source),
            problem: error.to_string(),
        })
    }

    /// Fails where the suite spreads it in a way that cannot be. GPUs are counted elsewhere.
    ///
    /// # Errors
    /// When heads, layers, processors or packages do not suffice, or its `config.json` cannot be read.
    pub fn check_parallelism(&self, device: &Device, has_ray: bool) -> Result<(), AssetError> {
        let text = String::from_utf8_lossy(&self.read("config.json")?).into_owned();
        Ok(Parallelism::check(&self.settings, &text, self.kv_shape()?, device, has_ray)?)
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
