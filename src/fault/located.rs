//! Whether the rung `kv` names what was planted, at its own place and nothing else. Main type: [`Located`].

use std::collections::{BTreeMap, BTreeSet, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chunk_name::ChunkName;
use crate::comparison::{KvEvidence, Pass, WrongCell, WrongWhen};
use crate::dataset::{Prompt, QuestionId};
use crate::model::KvRecord;

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

/// Cells that a fault has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Whoever is served them reads what is wrong.
    pub certain: BTreeSet<PlantedCell>,
    /// Of chunks that several prompts begin with and that several requests stored, some of them rightly: which copy was kept is
    /// not known.
    pub possible: BTreeSet<PlantedCell>,
}

impl Changed {
    /// What prompts, given as the names of their chunks, read of cells that requests stored wrongly; `computed` are the chunks
    /// (a prompt and a place in it) that each request computed, and so stored.
    #[must_use]
    pub fn stored(
        wrongly: &BTreeSet<PlantedCell>,
        computed: &BTreeSet<(usize, usize)>,
        prompts: &[Vec<ChunkName>],
    ) -> Self {
        let mut holders: BTreeMap<&ChunkName, Vec<(usize, usize)>> = BTreeMap::new();
        for (prompt, chunks) in prompts.iter().enumerate() {
            for (chunk, name) in chunks.iter().enumerate() {
                holders.entry(name).or_default().push((prompt, chunk));
            }
        }
        let mut changed = Self::default();
        for &cell in wrongly {
            let Some(name) = prompts.get(cell.prompt).and_then(|chunks| chunks.get(cell.chunk)) else {
                continue;
            };
            let readers = &holders[name];
            let at = |&(prompt, chunk): &(usize, usize)| PlantedCell { prompt, chunk, ..cell };
            let is_wrong =
                |place: &&(usize, usize)| !computed.contains(place) || wrongly.contains(&at(place));
            let is_certain = readers.iter().filter(is_wrong).count() == readers.len();
            let cells = if is_certain { &mut changed.certain } else { &mut changed.possible };
            cells.extend(readers.iter().map(at));
        }
        changed
    }
}

/// What the rung `kv` says of the cells that a fault has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Located {
    /// Cells (a chunk of a prompt in a layer on a rank) that were changed and read: those of chunks that were served.
    pub planted: u64,
    /// Those that were changed and that no request was served.
    #[serde(default)]
    pub not_served: u64,
    /// Those of them that the rung names, at their place and with the right time.
    pub named: u64,
    /// Cells that it calls wrong besides.
    pub elsewhere: u64,
    /// The first that it does not name.
    pub missed: Vec<String>,
}

impl Located {
    /// Holds what was changed in these prompts against the wrong cells that were found, which must be wrong at that time.
    #[must_use]
    pub fn of(
        changed: &Changed,
        prompts: &[Prompt],
        kv: &KvEvidence,
        (wrong, when): (&[WrongCell], WrongWhen),
    ) -> Self {
        let (expected, not_served) = readings(&changed.certain, prompts, kv, when);
        let (possible, _) = readings(&changed.possible, prompts, kv, when);
        let found: BTreeSet<String> = wrong.iter().map(name).collect();
        Self {
            planted: expected.len() as u64,
            not_served,
            named: expected.intersection(&found).count() as u64,
            elsewhere: found.difference(&expected).filter(|cell| !possible.contains(*cell)).count() as u64,
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
        self.not_served += other.not_served;
        self.named += other.named;
        self.elsewhere += other.elsewhere;
        self.missed.extend(other.missed);
        self.missed.truncate(LISTED);
        self
    }
}

/// The names of the cells that are read of changed ones, and how many are not, since another computed them or nobody did.
fn readings(
    changed: &BTreeSet<PlantedCell>,
    prompts: &[Prompt],
    kv: &KvEvidence,
    when: WrongWhen,
) -> (BTreeSet<String>, u64) {
    let served = served_chunks(kv);
    let (mut names, mut not_served) = (BTreeSet::new(), 0);
    for cell in changed {
        let Some(Prompt { question, .. }) = prompts.get(cell.prompt) else { continue };
        let chunk = count(cell.chunk);
        // Ranks with the same KV all read the one shard.
        let readers = if kv.shared_by_ranks { 0..count(kv.layers.len()) } else { cell.rank..cell.rank + 1 };
        for rank in readers {
            let layers = usize::try_from(rank).ok().and_then(|rank| kv.layers.get(rank));
            let Some(layer) = layers.and_then(|layers| layers.get(cell.layer)).cloned() else { continue };
            if served.as_ref().is_some_and(|served| !served.contains(&(question, chunk, rank))) {
                not_served += 1;
                continue;
            }
            let (question, pass, looks_like) = (question.clone(), Pass::Load, None);
            names.insert(name(&WrongCell {
                question,
                pass,
                chunk,
                layer,
                window: None,
                rank,
                when,
                looks_like,
            }));
        }
    }
    (names, not_served)
}

/// The chunks that the load pass was served, each rank's apart; `None` where digests are missing, so that nobody can tell.
fn served_chunks(kv: &KvEvidence) -> Option<HashSet<(&QuestionId, u32, u32)>> {
    let mut served = HashSet::new();
    for record in &kv.load {
        let KvRecord::Request { question, chunks } = record else { return None };
        let of_cache = chunks.iter().filter(|chunk| chunk.served);
        served.extend(of_cache.map(|chunk| (question, chunk.chunk, chunk.rank)));
    }
    Some(served)
}

/// A wrong cell in words, without what it looks like and what its layer keeps.
fn name(cell: &WrongCell) -> String {
    WrongCell { looks_like: None, window: None, ..cell.clone() }.words()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Split;
    use crate::model::{ChunkDigests, LayerDigests};

    fn question(row: u32) -> QuestionId {
        QuestionId { subject: "law".parse().unwrap(), split: Split::Test, row }
    }

    fn wrong(row: u32, chunk: u32, layer: &str, rank: u32) -> WrongCell {
        let (layer, looks_like) = (layer.to_owned(), Some("zeros".to_owned()));
        let (pass, when) = (Pass::Load, WrongWhen::Throughout);
        WrongCell { question: question(row), pass, chunk, layer, window: None, rank, when, looks_like }
    }

    /// Bits are planted in the second prompt's chunk 1, layer 0, and in the first one's chunk 0, layer 1; perhaps also in its
    /// chunk 1. All of these are served.
    fn planted(shared_by_ranks: bool) -> (Changed, Vec<Prompt>, KvEvidence) {
        let prompts =
            [5, 6].map(|row| Prompt { question: question(row), examples: 0, token_ids: Vec::new() });
        let layers = vec![vec!["one".to_owned(), "two".to_owned()]; 2];
        let (prefixes, store) = (BTreeMap::new(), Vec::new());
        let load = [5, 6].map(|row| served(row, &[0, 1])).to_vec();
        let (baseline, repeat, looks) = (Vec::new(), Vec::new(), Vec::new());
        let kv = KvEvidence {
            chunk_tokens: 4,
            layers,
            windows: Vec::new(),
            block_tokens: 4,
            shared_by_ranks,
            loads_whole_chunks: true,
            prefixes,
            store,
            load,
            cut: Vec::new(),
            baseline,
            repeat,
            looks,
        };
        let certain = BTreeSet::from([cell(1, 1, 0), cell(0, 0, 1)]);
        let possible = BTreeSet::from([cell(0, 1, 1)]);
        (Changed { certain, possible }, prompts.to_vec(), kv)
    }

    fn located(wrong: &[WrongCell], when: WrongWhen, shared_by_ranks: bool) -> Located {
        let (changed, prompts, kv) = planted(shared_by_ranks);
        Located::of(&changed, &prompts, &kv, (wrong, when))
    }

    fn cell(prompt: usize, chunk: usize, layer: usize) -> PlantedCell {
        PlantedCell { prompt, chunk, layer, rank: 0 }
    }

    /// Both ranks are served these chunks of a prompt, and compute the one behind them.
    fn served(row: u32, chunks: &[u32]) -> KvRecord {
        let digests = LayerDigests::try_from("0".repeat(64)).unwrap();
        let of = |rank: u32, chunk: u32, served| {
            let (first, last, stored) = (digests.clone(), None, None);
            ChunkDigests { rank, chunk, served, first, last, stored }
        };
        let of_rank = |rank| {
            let read = chunks.iter().map(move |chunk| (*chunk, true));
            read.chain([(9, false)]).map(move |(chunk, served)| of(rank, chunk, served)).collect::<Vec<_>>()
        };
        KvRecord::Request { question: question(row), chunks: [0, 1].map(of_rank).concat() }
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
    fn what_nobody_was_served_is_not_missed_and_what_may_be_wrong_is_not_elsewhere() {
        let one = [wrong(6, 1, "one", 0)];
        let (changed, prompts, kv) = planted(false);
        let of = |load: Vec<KvRecord>, wrong: &[WrongCell]| {
            let kv = KvEvidence { load, ..kv.clone() };
            Located::of(&changed, &prompts, &kv, (wrong, WrongWhen::Throughout))
        };
        let others = of(vec![served(5, &[1]), served(6, &[0, 1])], &one);
        assert_eq!((others.planted, others.not_served, others.named), (1, 1, 1));
        assert!(others.is_exact());
        // Without digests nobody knows what was served.
        let unseen = vec![KvRecord::NotObserved { reason: "a fault".to_owned() }];
        assert_eq!((of(unseen.clone(), &one).planted, of(unseen, &one).is_exact()), (2, false));
        let both = [one[0].clone(), wrong(5, 0, "two", 0), wrong(5, 1, "two", 0)];
        assert!(located(&both, WrongWhen::Throughout, false).is_exact(), "it may be wrong");
    }

    #[test]
    fn a_chunk_that_several_prompts_begin_with_is_wrong_for_all_if_every_copy_of_it_is() {
        let names = |tokens: &[u32]| ChunkName::of_prompt(tokens, 2);
        let prompts = [names(&[1, 2, 3, 4]), names(&[1, 2, 5, 6]), names(&[7, 8])];
        let stored = |wrongly: &[PlantedCell], computed: &[(usize, usize)]| {
            Changed::stored(&wrongly.iter().copied().collect(), &computed.iter().copied().collect(), &prompts)
        };
        let all = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)];
        let both = stored(&[cell(0, 0, 0), cell(1, 0, 0)], &all);
        assert_eq!(both.certain, BTreeSet::from([cell(0, 0, 0), cell(1, 0, 0)]));
        let first_alone = stored(&[cell(0, 0, 0), cell(2, 0, 1)], &all);
        assert_eq!(first_alone.certain, BTreeSet::from([cell(2, 0, 1)]));
        assert_eq!(first_alone.possible, BTreeSet::from([cell(0, 0, 0), cell(1, 0, 0)]));
        // The second one was served its first chunk by what the first one stored.
        let served = stored(&[cell(0, 0, 0)], &[(0, 0), (0, 1), (1, 1)]);
        assert_eq!(served.certain, BTreeSet::from([cell(0, 0, 0), cell(1, 0, 0)]));
        assert!(served.possible.is_empty());
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
