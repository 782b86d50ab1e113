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

/// Puts the records of a store, a load and a cut pass together with what they are held by, of a carrier that loads whole chunks; `None`
/// where the engine was asked for none. `written_shards` and `read_shards` are those of a chunk.
pub(super) fn kv_evidence(
    [written_shards, read_shards]: [u32; 2],
    chunk_tokens: u32,
    ready: &Ready,
    prompts: impl Iterator<Item = Result<Prompt, StageError>>,
    [store, load, cut]: [Result<Vec<KvRecord>, StageError>; 3],
) -> Result<Option<KvEvidence>, StageError> {
    let Some(digests) = &ready.digests else { return Ok(None) };
    let prefixes = prompts.map(|prompt| {
        let prompt = prompt?;
        Ok((prompt.question, chunk_digests(&prompt.token_ids, chunk_tokens)))
    });
    Ok(Some(KvEvidence {
        chunk_tokens,
        layers: digests.layers.clone(),
        windows: digests.windows.clone(),
        block_tokens: ready.block_size,
        shared_by_ranks: written_shards < read_shards,
        loads_whole_chunks: true,
        prefixes: prefixes.collect::<Result<_, StageError>>()?,
        store: store?,
        load: load?,
        cut: cut?,
        baseline: Vec::new(),
        repeat: Vec::new(),
        looks: Vec::new(),
    }))
}
