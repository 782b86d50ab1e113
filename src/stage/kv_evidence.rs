//! What the records of the KV itself are held by: layers, chunks and the token prefixes of prompts.

use super::StageError;
use super::cached::{LOAD, STORE};
use super::engine_run::{EngineRun, read_ready};
use super::lines::read_lines;
use super::prompts::read_prompts;
use super::rounds::kv_file;
use crate::comparison::KvEvidence;
use crate::dataset::Prompt;
use crate::engine::{KvRecord, Ready, chunk_digests};
use crate::store::Artifact;

/// Reads what both passes of the arm with a cache showed of the KV.
pub(super) fn read_kv(run: &EngineRun<'_>, cached: &Artifact) -> Result<Option<KvEvidence>, StageError> {
    let read =
        |file| -> Result<Vec<KvRecord>, StageError> { read_lines(cached.path(&kv_file(file)))?.collect() };
    kv_evidence(run, &read_ready(cached)?, read_prompts(run.prompts)?, [read(STORE)?, read(LOAD)?])
}

/// Puts the records of a store and a load pass together with what they are held by; `None` where the engine was asked for none.
pub(super) fn kv_evidence(
    run: &EngineRun<'_>,
    ready: &Ready,
    prompts: impl Iterator<Item = Result<Prompt, StageError>>,
    [store, load]: [Vec<KvRecord>; 2],
) -> Result<Option<KvEvidence>, StageError> {
    let Some(digests) = &ready.digests else { return Ok(None) };
    let (chunk_tokens, ranks) = (run.bench.suite.lmcache.chunk_tokens, run.parallelism());
    let prefixes = prompts.map(|prompt| {
        let prompt = prompt?;
        Ok((prompt.question, chunk_digests(&prompt.token_ids, chunk_tokens)))
    });
    Ok(Some(KvEvidence {
        chunk_tokens,
        layers: digests.layers.clone(),
        shared_by_ranks: ranks.written_shards(run.model.kv_shape()?) < ranks.read_shards(),
        prefixes: prefixes.collect::<Result<_, StageError>>()?,
        store,
        load,
    }))
}
