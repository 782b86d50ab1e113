//! Why there is no environment. Main type: [`EnvironmentError`].

use std::io;

use camino::Utf8PathBuf;

use super::Stack;
use super::known_vllm::KNOWN_VLLM;
use crate::lock::LockError;

/// Why there is no environment; completes "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The locks hold packages for one platform only.
    #[error(
        "make the Python environment: the {stack} stack is pinned for x86_64 linux, and this is {platform}"
    )]
    Platform {
        /// The stack that was wanted.
        stack: Stack,
        /// What this machine is.
        platform: String,
    },
    /// No fitting Python runs.
    #[error("find Python {wanted}: {}", tried(found))]
    NoPython {
        /// The versions that serve, in words.
        wanted: String,
        /// What was found instead: an executable and what is wrong with it, a line each.
        found: Vec<String>,
    },
    /// There is neither a uv nor a way to install one.
    #[error(
        "install uv, which makes the Python environment, with {python}: its output is in {log} and ends with\n{last_lines}"
    )]
    NoInstaller {
        /// The Python that was tried.
        python: Utf8PathBuf,
        /// All that it said.
        log: Utf8PathBuf,
        /// The last that it said.
        last_lines: String,
    },
    /// The disk is too full.
    #[error(
        "make the Python environment in {folder}: it needs {needed_gib:.1} GiB and the disk has {free_gib:.1} GiB left"
    )]
    DiskSpace {
        /// Where it was to be made.
        folder: Utf8PathBuf,
        /// Space that it needs, in GiB.
        needed_gib: f64,
        /// Space that there is, in GiB.
        free_gib: f64,
    },
    /// A step of the installation failed.
    #[error("{step}: {outcome}; its output is in {log} and ends with\n{last_lines}")]
    Step {
        /// What was to be done.
        step: &'static str,
        /// How the installer ended.
        outcome: String,
        /// All that it said.
        log: Utf8PathBuf,
        /// The last that it said.
        last_lines: String,
    },
    /// An environment lacks what every run needs.
    #[error("use the environment {folder}: {package} is not installed in it")]
    Incomplete {
        /// The environment.
        folder: Utf8PathBuf,
        /// What is missing.
        package: &'static str,
    },
    /// An environment holds a package whose files can change unseen.
    #[error(
        "use the environment {folder}: {package} is an editable install, so a change of it would go unseen"
    )]
    Editable {
        /// The environment.
        folder: Utf8PathBuf,
        /// The package.
        package: String,
    },
    /// What is named as an environment holds no Python packages.
    #[error("use {folder} as a Python environment")]
    NoEnvironment {
        /// The folder.
        folder: Utf8PathBuf,
        /// What is missing.
        source: io::Error,
    },
    /// The environments with and without LMCache differ in more than LMCache.
    #[error(
        "compare the environment {folder} with {baseline}: it holds {package} {}, and the one without LMCache {}",
        versions.0, versions.1
    )]
    Disagreement {
        /// The environment with LMCache.
        folder: Utf8PathBuf,
        /// The one without.
        baseline: Utf8PathBuf,
        /// The package that differs.
        package: &'static str,
        /// Its versions, with and without LMCache.
        versions: (String, String),
    },
    /// The worker was never seen to work in this vLLM.
    #[error(
        "observe vLLM {version}: the worker was seen in releases from {} to {}, and what it reaches into may be another in this one",
        release(*KNOWN_VLLM.start()),
        release(*KNOWN_VLLM.end())
    )]
    UnknownVllm {
        /// The version.
        version: String,
    },
    /// Another process makes the same environment.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file or folder could not be read or written; the source names it.
    #[error("prepare the Python environment {folder}")]
    Io {
        /// The environment.
        folder: Utf8PathBuf,
        /// What went wrong, and where.
        source: io::Error,
    },
}

impl EnvironmentError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let own = "name an environment of your own with KV_CORRECTNESS_ENV=DIR";
        Some(match self {
            Self::Platform { .. } => format!("{own} (vLLM and LMCache installed in it)"),
            Self::NoPython { .. } => {
                "install one (on Debian: `apt-get install python3 python3-venv`), or name one \
                 with KV_CORRECTNESS_PYTHON=/path/to/python3"
                    .to_owned()
            }
            Self::NoInstaller { .. } => format!(
                "when the package index was not reached, mend that (PIP_INDEX_URL names another); when venv or pip is \
                 missing, install it (on Debian: `apt-get install python3-venv`); or put a uv on PATH; or {own}"
            ),
            Self::DiskSpace { .. } => {
                "free some space, or name a folder on another disk with --cache DIR".to_owned()
            }
            Self::Step { log, .. } => format!(
                "read {log}; when the package index was not reached, mend that (UV_DEFAULT_INDEX names another) and \
                 run the same command again; or {own}"
            ),
            Self::Incomplete { package, .. } => {
                format!("install {package} there, or leave KV_CORRECTNESS_ENV unset")
            }
            Self::NoEnvironment { .. } => {
                "name the folder of a virtual environment, which holds bin/python and lib/, or leave KV_CORRECTNESS_ENV unset"
                    .to_owned()
            }
            Self::Disagreement { package, .. } => {
                format!("install the same {package} in both, or leave KV_CORRECTNESS_ENV_BASELINE unset")
            }
            Self::UnknownVllm { .. } => {
                "use one of these, as in the environment that `kv-correctness env` makes, or a newer kv-correctness; with \
                 KV_CORRECTNESS_ANY_VLLM=1 it is tried all the same"
                    .to_owned()
            }
            Self::Editable { package, .. } => format!("install {package} there without --editable"),
            Self::Lock(error) => return error.hint(),
            Self::Io { folder, .. } => {
                format!("check that {folder} can be read and written, or pass another --cache DIR")
            }
        })
    }
}

fn release((first, second): (u64, u64)) -> String {
    format!("{first}.{second}")
}

fn tried(found: &[String]) -> String {
    if found.is_empty() { "there is none on PATH".to_owned() } else { found.join("; ") }
}
