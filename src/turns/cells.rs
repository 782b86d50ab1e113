//! Whether what turns were served is what engines computed. Main function: [`trace_turns`].

use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::model::ChunkDigests;

/// The KV of one turn, as an engine with a cache showed it.
#[derive(Debug, Clone)]
pub struct ToldKv {
    /// For each whole chunk of prompt and answer: of its tokens and all before them.
    pub prefixes: Vec<Digest>,
    /// Whole chunks of the prompt alone.
    pub chunks_of_prompt: usize,
    /// What was digested.
    pub chunks: Vec<ChunkDigests>,
    /// Whole chunks that the cache served.
    pub served_chunks: u32,
}

/// Cells (a chunk in a layer on a rank) of one turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cells {
    /// That were served.
    pub served: u64,
    /// Of these, such as hold what an engine computed while it generated an answer.
    pub generated: u64,
    /// That were served and are no copy of what an engine computed for the same tokens.
    pub wrong: u64,
    /// That were served and have no digest, or whose tokens nobody was seen to compute.
    pub unseen: u64,
    /// The first wrong one.
    pub first_wrong: Option<String>,
}

/// Holds every served cell of turns, in the order in which they were asked, against those that engines computed for the same tokens in any of
/// them. `layers` are the names of each rank's layers; with `shared_by_ranks` each rank may be served what another computed.
#[must_use]
pub fn trace_turns(turns: &[ToldKv], layers: &[Vec<String>], shared_by_ranks: bool) -> Vec<Cells> {
    let place = |chunk: &ChunkDigests| usize::try_from(chunk.chunk).unwrap_or(usize::MAX);
    let identity = |turn: &ToldKv, chunk: &ChunkDigests, layer: usize| {
        let prefix = *turn.prefixes.get(place(chunk))?;
        Some((prefix, layer, if shared_by_ranks { 0 } else { chunk.rank }))
    };
    let mut computed: HashMap<_, HashSet<u128>> = HashMap::new();
    // Of chunks that an answer completed.
    let mut of_answers: HashSet<u128> = HashSet::new();
    for turn in turns {
        for chunk in turn.chunks.iter().filter(|chunk| !chunk.served) {
            if place(chunk) >= turn.chunks_of_prompt {
                of_answers.extend(chunk.first.iter().flatten());
            }
            for (layer, digest) in chunk.first.iter().enumerate() {
                if let (Some(identity), Some(digest)) = (identity(turn, chunk, layer), digest) {
                    computed.entry(identity).or_default().insert(digest);
                }
            }
        }
    }
    let trace = |turn: &ToldKv| {
        let mut cells = Cells::default();
        let mut seen = HashSet::new();
        for chunk in turn.chunks.iter().filter(|chunk| chunk.served) {
            seen.insert((chunk.chunk, chunk.rank));
            let names = usize::try_from(chunk.rank).ok().and_then(|rank| layers.get(rank));
            let last = chunk.last.as_ref().unwrap_or(&chunk.first);
            for (layer, name) in names.into_iter().flatten().enumerate() {
                let known = identity(turn, chunk, layer).and_then(|identity| computed.get(&identity));
                let digests = [&chunk.first, last].map(|digests| digests.of_layer(layer));
                let (Some(known), [Some(first), Some(last)]) = (known, digests) else {
                    cells.unseen += 1;
                    continue;
                };
                cells.served += 1;
                cells.generated += u64::from(of_answers.contains(&first));
                if !known.contains(&first) || !known.contains(&last) {
                    cells.wrong += 1;
                    let wrong = || format!("chunk {}, {name}, rank {}", chunk.chunk + 1, chunk.rank);
                    cells.first_wrong.get_or_insert_with(wrong);
                }
            }
        }
        for rank in 0..u32::try_from(layers.len()).unwrap_or(u32::MAX) {
            let missing = (0..turn.served_chunks).filter(|chunk| !seen.contains(&(*chunk, rank)));
            cells.unseen += missing.count() as u64;
        }
        cells
    };
    turns.iter().map(trace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::digest_bytes;
    use crate::model::LayerDigests;

    /// The chunk of this number, of a layer and a rank, with one digest or another at its end.
    fn chunk(chunk: u32, served: bool, [first, last]: [u128; 2]) -> ChunkDigests {
        let of = |digest| LayerDigests::new(vec![digest]);
        ChunkDigests {
            rank: 0,
            chunk,
            served,
            first: of(first),
            last: (first != last).then(|| of(last)),
            stored: None,
        }
    }

    fn turn(texts: &[&str], chunks_of_prompt: usize, chunks: Vec<ChunkDigests>) -> ToldKv {
        let served = chunks.iter().filter(|chunk| chunk.served).count();
        let prefixes = texts.iter().map(|text| digest_bytes(text.as_bytes())).collect();
        ToldKv { prefixes, chunks_of_prompt, chunks, served_chunks: u32::try_from(served).unwrap() }
    }

    fn trace(turns: &[ToldKv]) -> Vec<Cells> {
        trace_turns(turns, &[vec!["one".to_owned()]], false)
    }

    #[test]
    fn what_an_answer_computed_is_served_in_the_next_turn_and_told_apart() {
        let first = turn(&["a", "ab"], 1, vec![chunk(0, false, [7, 7]), chunk(1, false, [8, 8])]);
        let served = |digest| vec![chunk(0, true, [7, 7]), chunk(1, true, [digest, digest])];
        let right = &trace(&[first.clone(), turn(&["a", "ab", "abc"], 2, served(8))])[1];
        assert_eq!((right.served, right.generated, right.wrong, right.unseen), (2, 1, 0, 0));
        let wrong = &trace(&[first.clone(), turn(&["a", "ab", "abc"], 2, served(7))])[1];
        assert_eq!((wrong.wrong, wrong.first_wrong.as_deref()), (1, Some("chunk 2, one, rank 0")));
        // Right when read, wrong at the end.
        let changed = vec![chunk(0, true, [7, 9])];
        assert_eq!(trace(&[first, turn(&["a"], 1, changed)])[1].wrong, 1);
    }

    #[test]
    fn what_was_served_and_not_seen_is_counted() {
        let first = turn(&["a"], 1, vec![chunk(0, false, [7, 7])]);
        // Of other tokens than anybody computed; without a digest; without a record.
        assert_eq!(trace(&[first.clone(), turn(&["b"], 1, vec![chunk(0, true, [7, 7])])])[1].unseen, 1);
        assert_eq!(trace(&[first.clone(), turn(&["a"], 1, vec![chunk(0, true, [0, 0])])])[1].unseen, 1);
        let without = ToldKv { chunks: Vec::new(), ..turn(&["a"], 1, vec![chunk(0, true, [7, 7])]) };
        assert_eq!(trace(&[first, without])[1].unseen, 1);
    }
}
