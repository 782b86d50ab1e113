//! Which LMCache and vLLM: those of the environment, or others on top of it.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;

use crate::engine::environment::{
    BuildError, Environment, Layer, LayerKind, SourceTree, Stack, build_lmcache, install_release,
};
use crate::event::Events;
use crate::thread::on_thread;

/// LMCache and vLLM instead of the environment's own.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct StackArguments {
    /// Build LMCache from this git checkout or unpacked source distribution
    #[arg(long, value_name = "PATH", conflicts_with = "lmcache_version")]
    pub(super) lmcache_src: Option<Utf8PathBuf>,
    /// Build this revision of the checkout that --lmcache-src names, instead of what lies in it
    #[arg(long, value_name = "REV", requires = "lmcache_src")]
    pub(super) lmcache_rev: Option<String>,
    /// Use this release of LMCache
    #[arg(long, value_name = "X")]
    pub(super) lmcache_version: Option<String>,
    /// Use this release of vLLM, if it was compiled for the environment's torch
    #[arg(long, value_name = "X")]
    pub(super) vllm_version: Option<String>,
}

/// An LMCache or a vLLM that takes the place of the environment's own.
#[derive(Debug, Clone)]
pub(super) enum Replacement {
    /// LMCache built from a folder, or from a revision of it.
    LmcacheSource { folder: Utf8PathBuf, revision: Option<String> },
    /// A release.
    Release { kind: LayerKind, version: String },
}

impl Replacement {
    fn is_of_vllm(&self) -> bool {
        matches!(self, Self::Release { kind: LayerKind::Vllm, .. })
    }
}

impl StackArguments {
    pub(super) fn replacements(&self) -> Vec<Replacement> {
        let release = |kind| move |version: &String| Replacement::Release { kind, version: version.clone() };
        let source = self.lmcache_src.as_ref().map(|folder| Replacement::LmcacheSource {
            folder: folder.clone(),
            revision: self.lmcache_rev.clone(),
        });
        let vllm = self.vllm_version.as_ref().map(release(LayerKind::Vllm));
        let lmcache = self.lmcache_version.as_ref().map(release(LayerKind::Lmcache));
        // LMCache is built beside the base environment, so that another vLLM does not build it again.
        lmcache.into_iter().chain(source).chain(vllm).collect()
    }
}

/// Builds or installs replacements, on a thread of its own, and puts them on top of an environment, whose vLLM is then one that the worker
/// knows.
pub(super) async fn replace(
    environment: &Environment,
    replacements: Vec<Replacement>,
    stack: Stack,
    cache: &Utf8Path,
    events: &Events,
) -> anyhow::Result<Result<Environment, BuildError>> {
    let (environment, cache, events) = (environment.clone(), cache.to_owned(), events.clone());
    let work = move || {
        if !replacements.iter().any(Replacement::is_of_vllm) {
            environment.identity().require_known_vllm()?;
        }
        let layered = replacements.into_iter().try_fold(environment, |environment, replacement| {
            let layer = provide(&environment, &replacement, stack, &cache, &events)?;
            Ok::<_, BuildError>(environment.with_layer(&layer))
        })?;
        layered.identity().require_known_vllm()?;
        Ok(layered)
    };
    on_thread(work).await.context("build LMCache")
}

fn provide(
    environment: &Environment,
    replacement: &Replacement,
    stack: Stack,
    cache: &Utf8Path,
    events: &Events,
) -> Result<Layer, BuildError> {
    match replacement {
        Replacement::Release { kind, version } => install_release(environment, *kind, version, cache, events),
        Replacement::LmcacheSource { folder, revision } => {
            let source = match revision {
                Some(revision) => SourceTree::of_revision(folder, revision)?,
                None => SourceTree::of_folder(folder)?,
            };
            if source.dirty {
                events.warn(format!("{folder} is dirty: what is tested is no commit"));
            }
            build_lmcache(environment, &source, stack, cache, events)
        }
    }
}
