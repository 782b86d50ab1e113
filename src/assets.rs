//! What a suite's names stand for: datasets and models, inside the binary, fetched or on disk.
//!
//! Main types: [`Archive`], [`Model`], [`ModelFiles`]. Embedded models are written below the cache folder when an engine needs them.

mod error;
mod folder;
mod weights;

use std::collections::BTreeMap;
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use include_dir::{Dir, include_dir};

use self::error::io_error;
pub use self::error::{AssetError, FileProblem};
use self::folder::{look_at, pack};
pub(crate) use self::weights::weight_shapes;
use self::weights::{check_weights, read_small};
use crate::cache::Bucket;
use crate::dataset::LeftOut;
use crate::digest::{Digest, digest_bytes, digest_file, digest_json};
use crate::engine::Parallelism;
use crate::event::Events;
use crate::fetch::{ArchivePin, ModelPin, Verified};
use crate::machine::Device;
use crate::model::{KvGroups, KvShape, KvState};
use crate::suite::{ModelSettings, Suite};

/// What a suite calls the embedded questions.
pub const CANARY: &str = "canary";
static CANARY_ARCHIVE: &[u8] = include_bytes!("../data/canary.tar.xz");
static MODELS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/data/models");

/// Whether a dataset or a model is embedded or pinned under this name, whatever lies in a folder of that name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let is_model = !name.is_empty() && (MODELS.get_dir(name).is_some() || ModelPin::find(name).is_some());
    is_model || name == CANARY || ArchivePin::find(name).is_some()
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
        if name == CANARY {
            return Ok(Self::Embedded(CANARY_ARCHIVE));
        }
        if let Some(pin) = ArchivePin::find(name) {
            return if pin.is_complete(cache, &mut Verified::read(cache), &Events::ignored()) {
                Ok(Self::Pinned(pin.path(cache), pin.sha256))
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
            embedded: std::iter::once(CANARY)
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

/// A model of a suite: its files, and what the suite says of it.
#[derive(Debug, Clone)]
pub struct Model {
    settings: ModelSettings,
    files: ModelFiles,
    digest: Digest,
}

/// A model's files, whatever a suite says of them, as far as they can be looked at without reading the weights.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The name or path that they were found by, for messages.
    name: String,
    source: ModelSource,
}

#[derive(Debug, Clone)]
enum ModelSource {
    Embedded(&'static Dir<'static>, Digest),
    Pinned(Utf8PathBuf, Digest),
    Folder(Utf8PathBuf),
}

impl Model {
    /// Finds a model as [`ModelFiles::find`] does. The digest of its files is taken, or known.
    ///
    /// # Errors
    /// When there is none, it is pinned and not fetched into `cache`, or a file cannot be read.
    pub fn find(settings: &ModelSettings, cache: &Utf8Path) -> Result<Self, AssetError> {
        let files = ModelFiles::find(&settings.source, cache)?;
        let digest = files.take_digest()?;
        Ok(Self { settings: settings.clone(), files, digest })
    }

    /// The same files with other settings.
    #[must_use]
    pub fn with_settings(&self, settings: ModelSettings) -> Self {
        Self { settings, ..self.clone() }
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

    /// SHA-256 over the names and digests of its files; links are followed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// As [`ModelFiles::check_parallelism`].
    ///
    /// # Errors
    /// As there.
    pub fn check_parallelism(&self, device: &Device, has_ray: bool) -> Result<(), AssetError> {
        self.files.check_parallelism(&self.settings, device, has_ray)
    }
}

impl ModelFiles {
    /// Finds a model's files by its embedded name, its pinned name or its folder.
    ///
    /// # Errors
    /// When there is none, or it is pinned and not fetched into `cache`.
    pub fn find(name: &str, cache: &Utf8Path) -> Result<Self, AssetError> {
        let files = |source| Self { name: name.to_owned(), source };
        if let Some(folder) = MODELS.get_dir(name).filter(|_| !name.is_empty()) {
            let contents = folder.files().map(|file| (file_name(file.path()), digest_bytes(file.contents())));
            let digest = digest_json(&contents.collect::<BTreeMap<_, _>>());
            return Ok(files(ModelSource::Embedded(folder, digest)));
        }
        if let Some(pin) = ModelPin::find(name) {
            if !pin.is_complete(cache, &mut Verified::read(cache), &Events::ignored()) {
                return Err(AssetError::NotFetched { kind: "model", name: name.to_owned() });
            }
            return Ok(files(ModelSource::Pinned(pin.folder(cache), pin.digest())));
        }
        let folder = Utf8PathBuf::from(name);
        match look_at(&folder)? {
            Some(found) if found.is_dir() => Ok(files(ModelSource::Folder(folder))),
            Some(_) => Err(AssetError::NoFolder(folder)),
            None => {
                let embedded = MODELS.dirs().map(|folder| file_name(folder.path()));
                let embedded = embedded.chain(ModelPin::all().iter().map(|pin| pin.name.clone())).collect();
                Err(AssetError::Unknown { kind: "model", name: name.to_owned(), embedded })
            }
        }
    }

    fn take_digest(&self) -> Result<Digest, AssetError> {
        let folder = match &self.source {
            ModelSource::Embedded(_, digest) | ModelSource::Pinned(_, digest) => return Ok(*digest),
            ModelSource::Folder(folder) => folder,
        };
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
            let entry = entry.map_err(|source| io_error(folder, source))?;
            let path = entry.path();
            if path.is_file() {
                let shown = Utf8PathBuf::from(path.to_string_lossy().into_owned());
                let (digest, _) = digest_file(&path).map_err(|source| io_error(&shown, source))?;
                files.insert(entry.file_name().to_string_lossy().into_owned(), digest);
            }
        }
        Ok(digest_json(&files))
    }

    /// The same files in this folder.
    #[must_use]
    pub fn moved_to(&self, folder: Utf8PathBuf) -> Self {
        Self { source: ModelSource::Folder(folder), ..self.clone() }
    }

    /// The bytes of one of the small files.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, AssetError> {
        match &self.source {
            ModelSource::Embedded(folder, _) => {
                folder.get_file(folder.path().join(name)).map(|file| file.contents().to_vec()).ok_or_else(
                    || io_error(&Utf8Path::new(&self.name).join(name), io::ErrorKind::NotFound.into()),
                )
            }
            ModelSource::Pinned(folder, _) | ModelSource::Folder(folder) => {
                let path = folder.join(name);
                // A link that leads nowhere is there, and is told as what it is.
                if let Err(source) = std::fs::symlink_metadata(&path) {
                    let adapter = name == "config.json" && folder.join("adapter_config.json").is_file();
                    let missing = io_error(&path, source);
                    return Err(if adapter { AssetError::Adapter(folder.clone()) } else { missing });
                }
                read_small(&path).map_err(|problem| AssetError::File { path, problem })
            }
        }
    }

    /// Fails where vLLM would find no whole weights in the folder. Under a `load_format` that is not safetensors, weights
    /// have other names, and are not looked at.
    ///
    /// # Errors
    /// When the folder cannot be read, or holds no `*.safetensors`, or not all, or one that is not whole.
    pub fn check_weights(&self, suite: &Suite, settings: &ModelSettings) -> Result<(), AssetError> {
        let (ModelSource::Pinned(folder, _) | ModelSource::Folder(folder)) = &self.source else {
            return Ok(());
        };
        let tables = [&settings.cpu_arguments, &settings.arguments, &suite.engine.arguments];
        let format = tables.into_iter().find_map(|arguments| arguments.get("load_format"));
        match format.and_then(serde_json::Value::as_str).map(str::to_lowercase).as_deref() {
            None | Some("auto" | "hf" | "safetensors" | "fastsafetensors" | "runai_streamer") => {
                check_weights(folder)
            }
            Some(_) => Ok(()),
        }
    }

    /// Fails where a suite spreads the model in a way that cannot be. GPUs are counted elsewhere.
    ///
    /// # Errors
    /// When heads, layers, processors or packages do not suffice, or `config.json` cannot be read.
    pub fn check_parallelism(
        &self,
        settings: &ModelSettings,
        device: &Device,
        has_ray: bool,
    ) -> Result<(), AssetError> {
        let text = String::from_utf8_lossy(&self.read("config.json")?).into_owned();
        Ok(Parallelism::check(settings, &text, self.kv_shape()?, device, has_ray)?)
    }

    /// Whether some of the model's layers see a window alone, so that its engines run without vLLM's hybrid KV cache
    /// manager. A configuration that cannot be read is told by [`ModelFiles::kv_shape`].
    #[must_use]
    pub fn need_whole_windows(&self) -> bool {
        let text = self.read("config.json").unwrap_or_default();
        KvGroups::from_config(&String::from_utf8_lossy(&text)).is_ok_and(|groups| groups.need_whole_windows())
    }

    /// How many tokens those of the model's layers see that see a window, each width once; none where all layers are alike.
    #[must_use]
    pub fn windows(&self) -> Vec<u64> {
        let text = self.read("config.json").unwrap_or_default();
        let groups = KvGroups::from_config(&String::from_utf8_lossy(&text));
        groups.map_or_else(|_| Vec::new(), |groups| groups.windows())
    }

    /// What those of the model's layers keep that keep a state beside others with attention; `None` where there are none.
    #[must_use]
    pub fn state(&self) -> Option<KvState> {
        let text = self.read("config.json").unwrap_or_default();
        KvState::from_config(&String::from_utf8_lossy(&text))
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
        let (embedded, digest) = match &self.source {
            ModelSource::Pinned(folder, _) | ModelSource::Folder(folder) => {
                return folder.canonicalize_utf8().map_err(|source| io_error(folder, source));
            }
            ModelSource::Embedded(embedded, digest) => (embedded, digest),
        };
        let models = Bucket::Models.folder(cache);
        let folder = models.join(format!("{}-{}", self.name, digest.short()));
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

#[cfg(test)]
mod tests {
    use super::*;

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
