//! What the records of the KV itself are held by: layers, chunks and the token prefixes of prompts.

use super::StageError;
use super::lines::read_lines;
use super::rounds::kv_file;
use crate::comparison::KvEvidence;
use crate::dataset::Prompt;
use crate::engine::{Ready, chunk_digests};
use crate::model::KvRecord;
use crate::store::Artifact;

/// Reads what a pass, whose observations are in this file, showed of the KV.
pub(super) fn read_records(arm: &Artifact, file: &str) -> Result<Vec<KvRecord>, StageError> {
    read_lines(arm.path(&kv_file(file)))?.collect()
}

/// `written_shards` and `read_shards` are those of a chunk. Puts the records of a store and a load pass together with what they are held by; `None` where the engine was asked for none.
pub(super) fn kv_evidence(
    [written_shards, read_shards]: [u32; 2],
    chunk_tokens: u32,
    ready: &Ready,
    prompts: impl Iterator<Item = Result<Prompt, StageError>>,
    [store, load]: [Result<Vec<KvRecord>, StageError>; 2],
) -> Result<Option<KvEvidence>, StageError> {
    let Some(digests) = &ready.digests else { return Ok(None) };
    let prefixes = prompts.map(|prompt| {
        let prompt = prompt?;
        Ok((prompt.question, chunk_digests(&prompt.token_ids, chunk_tokens)))
    });
    Ok(Some(KvEvidence {
        chunk_tokens,
        layers: digests.layers.clone(),
        shared_by_ranks: written_shards < read_shards,
        prefixes: prefixes.collect::<Result<_, StageError>>()?,
        store: store?,
        load: load?,
        baseline: Vec::new(),
        repeat: Vec::new(),
        looks: Vec::new(),
    }))
}
