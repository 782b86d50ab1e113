//! Why LMCache or vLLM of another version is not to be had. Main type: [`BuildError`].

use std::io;

use camino::Utf8PathBuf;

use super::EnvironmentError;
use crate::digest::TreeError;

/// Why there is no layer; completes "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The build or the installation failed.
    #[error("build {what}: {line}")]
    Failed {
        /// What was to be had.
        what: String,
        /// The first relevant line of the output.
        line: String,
        /// All of the output.
        log: Utf8PathBuf,
    },
    /// A package with another binary interface.
    #[error("use {package}: it was compiled for torch {torch}, and the environment has {own}")]
    OtherTorch {
        /// What was to be had.
        package: String,
        /// The version of torch that it needs.
        torch: String,
        /// The version that there is.
        own: String,
    },
    /// The source is no source tree of LMCache.
    #[error("build from {path}: it has no setup.py and no pyproject.toml")]
    NoSource {
        /// The folder.
        path: Utf8PathBuf,
    },
    /// git was asked and did not do it.
    #[error("{what}: {said}")]
    Git {
        /// What was asked, in words.
        what: String,
        /// The last line that it said.
        said: String,
    },
    /// The source tree has something that cannot be digested.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The environment or its installer.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// A file or folder could not be read or written; the source names it.
    #[error("prepare {what}")]
    Io {
        /// What was to be had.
        what: String,
        /// What went wrong, and where.
        source: io::Error,
    },
}

impl BuildError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Failed { log, .. } => format!("the whole output is in {log}"),
            Self::OtherTorch { torch, .. } => {
                format!(
                    "make an environment with torch {torch} yourself and name it with KV_CORRECTNESS_ENV=DIR"
                )
            }
            Self::NoSource { .. } => {
                "name a git checkout of LMCache, or an unpacked source distribution".to_owned()
            }
            Self::Git { .. } => {
                "check the revision's name with `git log`; a shallow clone lacks most".to_owned()
            }
            Self::Tree(error) => return error.hint(),
            Self::Environment(error) => return error.hint(),
            Self::Io { .. } => {
                "check that the source and the cache folder can be read and written".to_owned()
            }
        })
    }
}
