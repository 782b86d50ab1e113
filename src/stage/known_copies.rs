//! While passes with a cache go on: the digests of what engines computed, and the first cells that are no copies of it, so that
//! they can be looked at while they are still there. What is judged in the end is judged by `comparison`. Main type: [`KnownCopies`].

use std::collections::HashMap;

use crate::dataset::{Prompt, QuestionId};
use crate::digest::Digest;
use crate::engine::chunk_digests;
use crate::model::{ChunkDigests, KvRecord, LayerDigests};

/// A token prefix, and the first rank that keeps what is looked for, where ranks keep the same.
type ChunkIdentity = (Digest, u32);

/// The digests of computed chunks.
pub(super) struct KnownCopies {
    /// Whether served cells must be such copies; with loss of no known arithmetic they are none.
    holds: bool,
    chunk_tokens: u32,
    shared_by_ranks: bool,
    computed: HashMap<ChunkIdentity, Vec<LayerDigests>>,
}

/// A cell that is no copy, or did not stay as it was: the first one of its chunk.
pub(super) struct SuspectCell {
    pub(super) question: QuestionId,
    pub(super) chunk: u32,
    pub(super) rank: u32,
    /// By its name.
    pub(super) layer: String,
    /// Whether a cache served it.
    pub(super) served: bool,
    /// What it held when its request ended.
    pub(super) digest: u128,
    /// What it should have held.
    pub(super) copies: Vec<u128>,
}

impl KnownCopies {
    pub(super) fn new(chunk_tokens: u32, shared_by_ranks: bool, holds: bool) -> Self {
        Self { holds, chunk_tokens, shared_by_ranks, computed: HashMap::new() }
    }

    /// Takes in what one batch of prompts showed, and finds what in it is no copy of anything known, at most one cell a chunk.
    pub(super) fn take_in(
        &mut self,
        prompts: &[Prompt],
        records: &[KvRecord],
        layers: &[Vec<String>],
    ) -> Vec<SuspectCell> {
        let prefixes: HashMap<&QuestionId, Vec<Digest>> = prompts
            .iter()
            .map(|prompt| (&prompt.question, chunk_digests(&prompt.token_ids, self.chunk_tokens)))
            .collect();
        let all: Vec<(&QuestionId, &ChunkDigests, ChunkIdentity)> = chunks(records)
            .filter_map(|(question, chunk)| {
                let prefix = prefixes.get(question)?.get(usize::try_from(chunk.chunk).ok()?)?;
                Some((question, chunk, (*prefix, self.keeper(chunk.rank, layers))))
            })
            .collect();
        for (_, chunk, identity) in all.iter().filter(|(_, chunk, _)| !chunk.served) {
            let known = self.computed.entry(*identity).or_default();
            let stored = chunk.stored.as_ref().unwrap_or(&chunk.first);
            if !known.contains(stored) {
                known.push(stored.clone());
            }
        }
        all.into_iter()
            .filter_map(|(question, chunk, identity)| {
                let (place, digest, copies) = self.first_wrong(chunk, identity)?;
                let layer = layers.get(usize::try_from(chunk.rank).ok()?)?.get(place)?.clone();
                let (question, rank) = (question.clone(), chunk.rank);
                let served = chunk.served;
                Some(SuspectCell { question, chunk: chunk.chunk, rank, layer, served, digest, copies })
            })
            .collect()
    }

    /// The first rank that keeps what this one does.
    fn keeper(&self, rank: u32, layers: &[Vec<String>]) -> u32 {
        let own = usize::try_from(rank).ok().and_then(|rank| layers.get(rank));
        let first =
            self.shared_by_ranks.then(|| layers.iter().position(|other| Some(other) == own)).flatten();
        first.and_then(|first| u32::try_from(first).ok()).unwrap_or(rank)
    }

    /// The place of the first layer whose cell is wrong, what it held in the end, and what it should have held.
    fn first_wrong(&self, chunk: &ChunkDigests, identity: ChunkIdentity) -> Option<(usize, u128, Vec<u128>)> {
        let known = self.computed.get(&identity)?;
        let last = chunk.last.as_ref().unwrap_or(&chunk.first);
        chunk.first.iter().zip(last.iter()).enumerate().find_map(|(place, (first, last))| {
            let (first, last) = (first?, last.or(first)?);
            let copies: Vec<u128> = known.iter().filter_map(|computed| computed.of_layer(place)).collect();
            let is_wrong = if chunk.served && self.holds {
                !copies.is_empty() && [first, last].iter().any(|digest| !copies.contains(digest))
            } else {
                first != last
            };
            is_wrong.then_some((place, last, copies))
        })
    }
}

fn chunks(records: &[KvRecord]) -> impl Iterator<Item = (&QuestionId, &ChunkDigests)> {
    records.iter().flat_map(|record| {
        let (question, chunks) = match record {
            KvRecord::Request { question, chunks } => (Some(question), chunks.as_slice()),
            KvRecord::NotObserved { .. } => (None, [].as_slice()),
        };
        chunks.iter().filter_map(move |chunk| Some((question?, chunk)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Split;

    fn prompt(row: u32) -> Prompt {
        let question = QuestionId { subject: "law".parse().unwrap(), split: Split::Test, row };
        Prompt { question, examples: 0, token_ids: (0..9).map(|token| token + row * 100).collect() }
    }

    fn record(row: u32, served: bool, rank: u32, first: [u128; 2], last: Option<[u128; 2]>) -> KvRecord {
        let digests = |all: [u128; 2]| LayerDigests::new(all.to_vec());
        let (first, last) = (digests(first), last.map(digests));
        let chunks = vec![ChunkDigests { rank, chunk: 1, served, first, last, stored: None }];
        KvRecord::Request { question: prompt(row).question, chunks }
    }

    /// Chunk, layer and what it should have held, of each suspect of these records.
    fn suspects(copies: &mut KnownCopies, row: u32, record: KvRecord) -> Vec<(u32, String, Vec<u128>)> {
        let layers = [["a", "b"].map(str::to_owned).to_vec(), ["a", "b"].map(str::to_owned).to_vec()];
        let found = copies.take_in(&[prompt(row)], &[record], &layers);
        found.into_iter().map(|cell| (cell.chunk, cell.layer, cell.copies)).collect()
    }

    #[test]
    fn what_is_no_copy_of_anything_computed_is_suspect_in_its_first_layer() {
        let mut copies = KnownCopies::new(4, false, true);
        assert_eq!(suspects(&mut copies, 1, record(1, false, 0, [5, 6], None)), []);
        assert_eq!(suspects(&mut copies, 1, record(1, true, 0, [5, 6], None)), []);
        let wrong = suspects(&mut copies, 1, record(1, true, 0, [5, 7], None));
        assert_eq!(wrong, [(1, "b".to_owned(), vec![6])]);
        let late = suspects(&mut copies, 1, record(1, true, 0, [4, 6], Some([5, 6])));
        assert_eq!(late, [(1, "a".to_owned(), vec![5])]);
        // Nothing is known of these.
        assert_eq!(suspects(&mut copies, 2, record(2, true, 0, [5, 7], None)), []);
        assert_eq!(suspects(&mut copies, 1, record(1, true, 1, [5, 7], None)), []);
    }

    #[test]
    fn what_was_computed_and_did_not_stay_is_suspect() {
        let mut copies = KnownCopies::new(4, false, true);
        let changed = suspects(&mut copies, 1, record(1, false, 0, [5, 6], Some([5, 9])));
        assert_eq!(changed, [(1, "b".to_owned(), vec![6])]);
    }

    #[test]
    fn ranks_that_keep_the_same_may_be_served_each_others_copies() {
        let mut copies = KnownCopies::new(4, true, true);
        suspects(&mut copies, 1, record(1, false, 0, [5, 6], None));
        assert_eq!(suspects(&mut copies, 1, record(1, true, 1, [5, 6], None)), []);
        assert_eq!(suspects(&mut copies, 1, record(1, true, 1, [5, 7], None)).len(), 1);
    }
}
