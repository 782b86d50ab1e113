//! Whether the rung `kv` names what was planted, at its own place and nothing else. Main type: [`Located`].

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::{KvEvidence, Pass, WrongCell, WrongWhen};
use crate::dataset::Prompt;

/// How many cells that were not named a trial lists.
const LISTED: usize = 10;

/// A chunk of a prompt in a layer, as one rank stored it, that a fault has changed. All numbers are places, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlantedCell {
    /// Among the prompts that are asked.
    pub prompt: usize,
    /// In the prompt.
    pub chunk: usize,
    /// Among the layers.
    pub layer: usize,
    /// Among those that store.
    pub rank: u32,
}

/// What the rung `kv` says of the cells that a fault has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Located {
    /// Cells (a chunk of a prompt in a layer on a rank) that were changed and could be read.
    pub planted: u64,
    /// Those of them that the rung names, at their place and with the right time.
    pub named: u64,
    /// Cells that it calls wrong besides.
    pub elsewhere: u64,
    /// The first that it does not name.
    pub missed: Vec<String>,
}

impl Located {
    /// Holds what was planted in these prompts against the wrong cells that were found, which must be wrong at that time.
    #[must_use]
    pub fn of(
        planted: &BTreeSet<PlantedCell>,
        prompts: &[Prompt],
        kv: &KvEvidence,
        (wrong, when): (&[WrongCell], WrongWhen),
    ) -> Self {
        let expected: BTreeSet<String> = planted
            .iter()
            .flat_map(|cell| {
                // Ranks with the same KV all read the one shard.
                let readers =
                    if kv.shared_by_ranks { 0..count(kv.layers.len()) } else { cell.rank..cell.rank + 1 };
                readers.filter_map(|rank| {
                    let layers = kv.layers.get(usize::try_from(rank).ok()?)?;
                    Some(name(&WrongCell {
                        question: prompts.get(cell.prompt)?.question.clone(),
                        pass: Pass::Load,
                        chunk: count(cell.chunk),
                        layer: layers.get(cell.layer)?.clone(),
                        rank,
                        when,
                        looks_like: None,
                    }))
                })
            })
            .collect();
        let found: BTreeSet<String> = wrong.iter().map(name).collect();
        Self {
            planted: expected.len() as u64,
            named: expected.intersection(&found).count() as u64,
            elsewhere: found.difference(&expected).count() as u64,
            missed: expected.difference(&found).take(LISTED).cloned().collect(),
        }
    }

    /// Whether all of it is named and nothing else.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.named == self.planted && self.elsewhere == 0
    }

    /// Both together, of two passes.
    #[must_use]
    pub(super) fn plus(mut self, other: Self) -> Self {
        self.planted += other.planted;
        self.named += other.named;
        self.elsewhere += other.elsewhere;
        self.missed.extend(other.missed);
        self.missed.truncate(LISTED);
        self
    }
}

/// A wrong cell in words, without what it looks like.
fn name(cell: &WrongCell) -> String {
    WrongCell { looks_like: None, ..cell.clone() }.words()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::dataset::{QuestionId, Split};

    fn question(row: u32) -> QuestionId {
        QuestionId { subject: "law".parse().unwrap(), split: Split::Test, row }
    }

    fn wrong(row: u32, chunk: u32, layer: &str, rank: u32) -> WrongCell {
        let (layer, looks_like) = (layer.to_owned(), Some("zeros".to_owned()));
        let (pass, when) = (Pass::Load, WrongWhen::Throughout);
        WrongCell { question: question(row), pass, chunk, layer, rank, when, looks_like }
    }

    /// Bits are planted in the second prompt's chunk 1, layer 0, and in the first one's chunk 0, layer 1.
    fn located(wrong: &[WrongCell], when: WrongWhen, shared_by_ranks: bool) -> Located {
        let prompts =
            [5, 6].map(|row| Prompt { question: question(row), examples: 0, token_ids: Vec::new() });
        let layers = vec![vec!["one".to_owned(), "two".to_owned()]; 2];
        let (prefixes, store, load) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (baseline, repeat, looks) = (Vec::new(), Vec::new(), Vec::new());
        let kv = KvEvidence {
            chunk_tokens: 4,
            layers,
            shared_by_ranks,
            prefixes,
            store,
            load,
            baseline,
            repeat,
            looks,
        };
        let cell = |prompt, chunk, layer| PlantedCell { prompt, chunk, layer, rank: 0 };
        Located::of(&BTreeSet::from([cell(1, 1, 0), cell(0, 0, 1)]), &prompts, &kv, (wrong, when))
    }

    #[test]
    fn what_is_named_at_its_own_place_is_located_and_nothing_else_is() {
        let both = [wrong(6, 1, "one", 0), wrong(5, 0, "two", 0)];
        let exact = located(&both, WrongWhen::Throughout, false);
        assert_eq!((exact.planted, exact.named, exact.elsewhere, exact.is_exact()), (2, 2, 0, true));
        for neighbour in
            [wrong(6, 0, "one", 0), wrong(6, 1, "two", 0), wrong(5, 1, "one", 0), wrong(6, 1, "one", 1)]
        {
            let beside = located(&[both[1].clone(), neighbour], WrongWhen::Throughout, false);
            assert_eq!((beside.named, beside.elsewhere, beside.is_exact()), (1, 1, false));
            insta::allow_duplicates! {
                insta::assert_snapshot!(beside.missed.join(", "), @"law/test/6, load pass, chunk 2, one, rank 0: wrong when read and at the end");
            }
        }
        let too_many = [&both[..], &[wrong(6, 0, "one", 0)]].concat();
        assert!(!located(&too_many, WrongWhen::Throughout, false).is_exact());
    }

    #[test]
    fn a_cell_that_is_wrong_at_another_time_is_another() {
        let both = [wrong(6, 1, "one", 0), wrong(5, 0, "two", 0)];
        let late = located(&both, WrongWhen::WhenRead, false);
        assert_eq!((late.named, late.elsewhere), (0, 2));
    }

    #[test]
    fn ranks_with_the_same_kv_all_read_what_one_stored() {
        let all: Vec<WrongCell> =
            [0, 1].iter().flat_map(|rank| [wrong(6, 1, "one", *rank), wrong(5, 0, "two", *rank)]).collect();
        assert_eq!(located(&all, WrongWhen::Throughout, true).planted, 4);
        assert!(located(&all, WrongWhen::Throughout, true).is_exact());
        assert!(!located(&all[..2], WrongWhen::Throughout, true).is_exact());
    }
}
