//! Which cells of KV a reader was served that are not what its own engine computes. Main type: [`ServedCells`].

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::{ChunkDigests, KvRecord, LayerDigests};

/// Cells (a chunk in a layer on a rank) that a reader was served, by their digests, beside what its engine computes for the same
/// prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServedCells {
    /// Those that were served and digested, and that the engine computed afterwards; what was not held is not counted.
    pub served: u64,
    /// Those of them that hold other bytes.
    pub others: u64,
    /// The first of these: question, chunk (from 1), layer and rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
}

impl ServedCells {
    /// Holds what was served against what was computed. `layers` are each rank's, in the order of their digests; `None` where nothing
    /// that was served was digested in both.
    #[must_use]
    pub fn of(loaded: &[KvRecord], computed: &[KvRecord], layers: &[Vec<String>]) -> Option<Self> {
        let own: HashMap<_, &LayerDigests> = chunks(computed)
            .filter(|(_, chunk)| !chunk.served)
            .map(|(place, chunk)| (place, &chunk.first))
            .collect();
        let mut cells = Self { served: 0, others: 0, first: None };
        for (place, chunk) in chunks(loaded).filter(|(_, chunk)| chunk.served) {
            let Some(own) = own.get(&place) else { continue };
            for (layer, pair) in chunk.first.iter().zip(own.iter()).enumerate() {
                let (Some(served), Some(computed)) = pair else { continue };
                cells.served += 1;
                if served == computed {
                    continue;
                }
                cells.others += 1;
                let (question, chunk, rank) = place;
                let layer = usize::try_from(rank).ok().and_then(|rank| layers.get(rank)?.get(layer));
                let layer = layer.map_or("a layer without a name", String::as_str);
                cells
                    .first
                    .get_or_insert_with(|| format!("{question}, chunk {}, {layer}, rank {rank}", chunk + 1));
            }
        }
        (cells.served > 0).then_some(cells)
    }
}

fn chunks(records: &[KvRecord]) -> impl Iterator<Item = ((&QuestionId, u32, u32), &ChunkDigests)> {
    records.iter().flat_map(|record| {
        let (question, chunks) = match record {
            KvRecord::Request { question, chunks } => (Some(question), chunks.as_slice()),
            KvRecord::NotObserved { .. } => (None, &[][..]),
        };
        chunks.iter().filter_map(move |chunk| Some(((question?, chunk.chunk, chunk.rank), chunk)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Split;

    fn record(served: bool, chunks: &[(u32, &[u128])]) -> KvRecord {
        let question = QuestionId { subject: "towns".parse().unwrap(), split: Split::Test, row: 1 };
        let chunks = chunks.iter().map(|(chunk, digests)| ChunkDigests {
            rank: 0,
            chunk: *chunk,
            served,
            first: LayerDigests::new(digests.to_vec()),
            last: None,
            stored: None,
        });
        KvRecord::Request { question, chunks: chunks.collect() }
    }

    #[test]
    fn cells_that_another_computed_are_counted_and_the_first_is_named() {
        let layers = [vec!["layer.0".to_owned(), "layer.1".to_owned()]];
        let computed = [record(false, &[(0, &[1, 2]), (1, &[3, 4])])];
        let of = |loaded: KvRecord| ServedCells::of(&[loaded], &computed, &layers);
        let cells = of(record(true, &[(0, &[1, 2]), (1, &[3, 9])])).unwrap();
        assert_eq!((cells.served, cells.others), (4, 1));
        assert_eq!(cells.first.unwrap(), "towns/test/1, chunk 2, layer.1, rank 0");
        assert_eq!(
            of(record(true, &[(0, &[1, 2])])).unwrap(),
            ServedCells { served: 2, others: 0, first: None }
        );
        // A cell of which no digest was taken, a chunk that nobody computed, and one that was not served say nothing.
        assert_eq!(of(record(true, &[(0, &[0, 2])])).unwrap().served, 1);
        assert_eq!(of(record(true, &[(7, &[1, 2])])), None);
        assert_eq!(of(record(false, &[(0, &[8, 9])])), None);
    }
}
