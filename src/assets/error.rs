//! Why a dataset or a model cannot be had, and what gets it. Main types: [`AssetError`], [`FileProblem`].

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use crate::engine::ParallelismError;
use crate::model::UnknownKv;
use crate::suite::nearest;

/// The list of a model's shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const MODEL_FILES: &str = "a model folder needs config.json, tokenizer.json and *.safetensors of one model";

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
            Self::Config { problem: UnknownKv::NoModel(_), .. } => MODEL_FILES.to_owned(),
            Self::Config { problem: UnknownKv::Attention { .. }, .. } => {
                "take a model whose layers have full attention, a window beside it or LFM2's convolutions, or all MLA: docs/suites.md says which \
                 are known".to_owned()
            }
            Self::Parallelism(error) => return error.hint(),
        })
    }
}

/// What is wrong with a file of a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// It stands for the file.
    #[error("it is a pointer of Git LFS, not the file itself")]
    LfsPointer,
    /// A link that leads nowhere.
    #[error("it is a link to {0}, which is not there")]
    DanglingLink(String),
    /// It is not there.
    #[error("it is not there, and {0}")]
    Missing(String),
    /// Nothing is in it.
    #[error("it is empty")]
    Empty,
    /// It ends too early.
    #[error("it is cut off: {wanted} bytes by its header, {found} here")]
    CutOff {
        /// Bytes by the header.
        wanted: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Its header is none.
    #[error("it is no safetensors file: {0}")]
    NoHeader(String),
    /// It is something else than a file.
    #[error("it is {0}")]
    NotAFile(&'static str),
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It is larger than any of its kind.
    #[error("it is larger than any such file")]
    TooLarge,
    /// The list of shards is none.
    #[error("it is no list of shards: {0}")]
    NoIndex(String),
    /// A shard without what the list says.
    #[error("it lacks {0}, which {INDEX} says it holds")]
    LacksTensor(String),
}

impl FileProblem {
    /// What to do next, in the model's folder.
    pub(super) fn hint(&self, folder: &Utf8Path) -> String {
        let again = format!("get it again: `hf download OWNER/MODEL --revision COMMIT --local-dir {folder}`");
        match self {
            Self::LfsPointer => format!("run `git lfs pull` in {folder}, or {again}"),
            Self::DanglingLink(_) => {
                format!("copy the folder with `cp -rL`, which follows links, or {again}")
            }
            Self::NotAFile(_) => "put the file itself there".to_owned(),
            Self::Unreadable(_) => "see to it that this user may read it".to_owned(),
            Self::Missing(_)
            | Self::Empty
            | Self::TooLarge
            | Self::CutOff { .. }
            | Self::NoHeader(_)
            | Self::NoIndex(_)
            | Self::LacksTensor(_) => again,
        }
    }
}

pub(super) fn io_error(path: &Utf8Path, source: io::Error) -> AssetError {
    AssetError::Io { path: path.to_owned(), source }
}
