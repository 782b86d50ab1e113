//! The environments of an atlas: made, used and removed. Main type: [`Environments`].

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};

use super::atlas_arguments::AtlasRunArguments;
use super::prepare::stack;
use super::stack::{Replacement, replace};
use super::untestable::why_unbuildable;
use crate::atlas::{Description, Pair};
use crate::engine::environment::{
    Environment, EnvironmentError, EnvironmentRequest, LayerKind, Releases, lock_releases, remove,
};
use crate::pipeline::Bench;
use crate::thread::on_thread;

/// Where the locks lie, in the atlas's folder; and a list of the environments that were made of them, which an atlas that goes on removes.
const LOCKS: &str = "packages";

/// Environments, each of one vLLM; every LMCache lies on top.
pub(super) struct Environments<'a> {
    description: &'a Description,
    locks: Utf8PathBuf,
    /// What an environment is asked for with, but for its lock.
    request: EnvironmentRequest,
    /// How many may be kept.
    at_most: usize,
    /// Those that are there, the one that served last behind the others.
    kept: Vec<Utf8PathBuf>,
    /// Where environments lie that others have made, one for each pair: then none is made here.
    prepared: Option<&'a Utf8Path>,
}

impl<'a> Environments<'a> {
    /// Those of an atlas; what an earlier run of it has left is known.
    pub(super) fn of(
        description: &'a Description,
        arguments: &'a AtlasRunArguments,
        bench: &Bench,
    ) -> anyhow::Result<Self> {
        let stack = stack(&bench.request.device);
        let mut request = EnvironmentRequest::from_variables(stack, bench.desk.cache.clone());
        (request.given, request.given_baseline) = (None, None);
        let (locks, disk_gib) = (arguments.out.join(LOCKS), arguments.disk_gib);
        let mut kept = Vec::new();
        let files =
            if locks.exists() { locks.read_dir_utf8()?.collect::<Result<_, _>>()? } else { Vec::new() };
        for file in files.iter().filter(|file| file.path().extension() == Some("txt")) {
            let lock = Some(fs_err::read_to_string(file.path())?);
            let of_lock = EnvironmentRequest { lock, ..request.clone() };
            kept.extend(of_lock.find()?.map(|environment| environment.folder().to_owned()));
        }
        let at_most = usize::try_from((disk_gib.get() << 30) / stack.disk_bytes())?.max(1);
        let prepared = arguments.environments.as_deref();
        Ok(Self { description, locks, request, at_most, kept, prepared })
    }

    /// The environment of a pair; or why its releases cannot be installed together.
    pub(super) async fn provide(
        &mut self,
        bench: &Bench,
        pair: &Pair,
    ) -> anyhow::Result<Result<Environment, String>> {
        if let Some(folder) = self.prepared {
            return self.prepared_for(pair, folder);
        }
        let (cache, events) = (&bench.desk.cache, &bench.desk.events);
        let request = match self.lock(bench, pair).await? {
            Ok(lock) => EnvironmentRequest { lock: Some(lock), ..self.request.clone() },
            Err(reason) => return Ok(Err(reason)),
        };
        let there = request.find()?.map(|environment| environment.folder().to_owned());
        self.kept.retain(|folder| there.as_ref() != Some(folder));
        while self.kept.len() >= self.at_most {
            remove(&self.kept.remove(0))?;
        }
        let (stack, events_there) = (request.stack, events.clone());
        let base = on_thread(move || request.provide(&events_there))
            .await
            .context("make the Python environment")??;
        self.kept.push(base.folder().to_owned());
        let layer = Replacement::Release { kind: LayerKind::Lmcache, version: pair.lmcache.clone() };
        match replace(&base, vec![layer], stack, cache, events).await? {
            Ok(environment) => Ok(Ok(environment)),
            Err(error) => match why_unbuildable(&error) {
                Some(_) => Ok(Err(format!("failed to {error}"))),
                None => Err(error.into()),
            },
        }
    }

    /// The environment that others have made of a pair; or that there is none.
    fn prepared_for(&self, pair: &Pair, folder: &Utf8Path) -> anyhow::Result<Result<Environment, String>> {
        let given = folder.join(pair.name());
        if !given.exists() {
            return Ok(Err(
                "failed to find an environment of this pair where they were said to be".to_owned()
            ));
        }
        let request = EnvironmentRequest { given: Some(given.clone()), ..self.request.clone() };
        let environment = request.find()?.context("an environment that is given is found")?;
        let identity = environment.identity();
        let held = (identity.vllm_version(), identity.version("lmcache"));
        anyhow::ensure!(
            held == (Some(&pair.vllm), Some(&pair.lmcache)),
            "use {given}: it holds vLLM {} and LMCache {}\n\nhint: a folder of `--environments` is named after what it holds",
            held.0.unwrap_or("in no release"),
            held.1.unwrap_or("in no release")
        );
        let torch = identity.version("torch").unwrap_or_default();
        let wanted = self.description.torch_of(&pair.vllm).unwrap_or_default();
        anyhow::ensure!(
            torch.split('+').next() == Some(wanted),
            "use {given}: it holds torch {torch}, and the atlas {} has vLLM {} with {wanted}\n\nhint: install that torch there",
            self.description.name,
            pair.vllm
        );
        if let Err(error) = identity.require_known_vllm() {
            return Ok(Err(format!("failed to {error}")));
        }
        Ok(Ok(environment))
    }

    /// The lock of a vLLM with the newest released LMCache that fits it; or why none does.
    async fn lock(&self, bench: &Bench, pair: &Pair) -> anyhow::Result<Result<String, String>> {
        let torch = self.description.torch_of(&pair.vllm).context("a pair is of releases that are named")?;
        let releases = |lmcache: &String| Releases {
            vllm: pair.vllm.clone(),
            lmcache: lmcache.clone(),
            torch: torch.to_owned(),
        };
        let candidates: Vec<Releases> = self.description.released_lmcache().map(releases).collect();
        let (request, locks, events) = (self.request.clone(), self.locks.clone(), bench.desk.events.clone());
        let work = move || -> Result<Result<String, String>, EnvironmentError> {
            let mut of_newest = None;
            for releases in &candidates {
                match lock_releases(&request, releases, &locks, &events)? {
                    Ok(lock) => return Ok(Ok(lock)),
                    Err(reason) => {
                        of_newest
                            .get_or_insert(format!("failed to find packages that fit one another: {reason}"));
                    }
                }
            }
            Ok(Err(of_newest.unwrap_or_default()))
        };
        Ok(on_thread(work).await??)
    }
}
