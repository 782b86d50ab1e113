//! The Python environment that vLLM and LMCache run in: made once per lock, found again at no cost, and identified by
//! what is installed.
//!
//! Owns which Python, which installer and which packages; leaves starting Python to the workers and the lock's
//! content to `nix/stacks`. Main types: [`EnvironmentRequest`], [`Environment`], [`EnvironmentIdentity`].
//!
//! Layout, under the cache folder:
//! ```text
//! environments/<id>/                   a virtual environment; <id> is the digest of lock, platform and wanted Python
//!   environment.json                   {"schema":1,"identity":…}; written last, so a folder without it is half-made
//!   requirements.txt                   the lock
//! environments/<id>.log, <id>.lock     the installer's output; held while the environment is made
//! tools/uv-<digest of its pin>/        an installer of our own, where none is on PATH
//! builds/                              LMCache or vLLM of other versions, on top of an environment: see `layer.rs`
//! tools/<name>-<digest of its pins>/   packages beside an environment; an empty file `complete` is written last
//! ```
//! Virtual environments hold absolute paths, so they are made in place rather than renamed.

mod beside;
mod build;
mod build_error;
mod error;
mod extension;
mod garbage;
mod identity;
mod install;
mod installer;
mod known_vllm;
mod layer;
mod lock_releases;
mod make;
mod python;
mod source;
mod stack;

pub use beside::install_beside;
pub use build::build_lmcache;
pub use build_error::BuildError;
pub use error::EnvironmentError;
pub use extension::{Extension, try_extension};
pub use garbage::{remove, remove_unused, unused};
pub use identity::{EnvironmentIdentity, Package};
pub use install::install_release;
pub use layer::{Layer, LayerKind};
pub use lock_releases::{Releases, lock_releases};
pub use make::{Environment, EnvironmentRequest};
pub use source::{Commit, SourceTree, first_parents, resolve_revision};
pub use stack::Stack;

#[cfg(test)]
mod tests;
