//! Whether the store pass computed the KV that the baseline computed. Main type: [`AsBaseline`].

use std::collections::{BTreeMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::{ChunkDigests, KvRecord};

use super::Outcome;
use super::criteria::NAMED_OFFENDERS;
use super::evidence::Case;
use super::kv_evidence::KvEvidence;
use super::noise_floor::NoiseFloor;

/// The KV that the store pass computed, held against the baseline's, cell by cell: storing must not disturb.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AsBaseline {
    /// What it amounts to: equal cells prove equality on any machine, and others are a failure only where the baseline's KV
    /// repeats itself and bits decide.
    pub outcome: Outcome,
    /// Cells of questions that the store pass was served nothing for.
    pub compared: u64,
    /// Those of them that differ.
    pub differing: u64,
    /// Cells of the baseline and its repeat.
    pub repeat_compared: u64,
    /// Those of them that differ: what this machine moves by itself.
    pub repeat_differing: u64,
    /// What was seen, in words.
    pub words: String,
    /// The first cells that differ, in the order of questions and chunks.
    pub first: Vec<CellName>,
}

/// Which cell of KV.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CellName {
    /// Whose prompt.
    pub question: QuestionId,
    /// Which chunk of it, from 0.
    pub chunk: u32,
    /// Which layer, by its name in vLLM.
    pub layer: String,
    /// On which rank.
    pub rank: u32,
}

impl CellName {
    /// `law/test/3, chunk 2, model.layers.4.self_attn.attn, rank 0`. Chunks are counted from 1 in words.
    #[must_use]
    pub fn words(&self) -> String {
        let Self { question, chunk, layer, rank } = self;
        format!("{question}, chunk {}, {layer}, rank {rank}", chunk + 1)
    }
}

/// How many cells of two passes are held against each other.
#[derive(Default)]
struct Pairs {
    compared: u64,
    differing: u64,
    first: Vec<CellName>,
}

/// Holds what the store pass computed against the baseline; `None` where the baseline's KV was not seen.
pub(super) fn compare_computed(
    cases: &[Case<'_>],
    evidence: Option<&KvEvidence>,
    noise: &NoiseFloor,
) -> Option<AsBaseline> {
    let evidence = evidence.filter(|evidence| !evidence.baseline.is_empty())?;
    let [store, baseline, repeat] =
        [&evidence.store, &evidence.baseline, &evidence.repeat].map(|records| by_question(records));
    let (mut stored, mut repeated) = (Pairs::default(), Pairs::default());
    let mut alike_outside = true;
    for case in cases {
        let question = &case.asked.id;
        let Some(reference) = baseline.get(question) else { continue };
        if let Some(repeat) = repeat.get(question) {
            repeated.add(evidence, question, reference, repeat);
        }
        // What was itself served a prefix computed the rest in other shapes.
        if case.store.observation.cached_tokens == 0
            && let Some(store) = store.get(question)
        {
            stored.add(evidence, question, reference, store);
            alike_outside &= case.store.observation.steps == case.baseline.observation.steps;
        }
    }
    // Every cell other and not one answer: the two engines keep the same numbers in another form.
    let other_form = stored.compared > 0 && stored.differing == stored.compared && alike_outside;
    let decides = noise.lets_bits_decide() && repeated.compared > 0 && repeated.differing == 0;
    let outcome = match stored.differing {
        0 if stored.compared > 0 => Outcome::Passed,
        1.. if decides && !other_form => Outcome::Failed,
        _ => Outcome::DoesNotApply,
    };
    let words = describe(&stored, &repeated, other_form, outcome);
    Some(AsBaseline {
        outcome,
        compared: stored.compared,
        differing: stored.differing,
        repeat_compared: repeated.compared,
        repeat_differing: repeated.differing,
        words,
        first: stored.first,
    })
}

/// Prompts whose store pass was served a prefix and that were stored otherwise than the baseline computes them, bit for bit, in any
/// cell: what computes the rest of a prompt alone may round otherwise, and another's prefix may have been computed so.
pub(super) fn stored_otherwise<'a>(
    cases: &'a [Case<'_>],
    evidence: Option<&KvEvidence>,
) -> HashSet<&'a QuestionId> {
    let Some(evidence) = evidence else { return HashSet::new() };
    let [store, baseline] = [&evidence.store, &evidence.baseline].map(|records| by_question(records));
    let is_otherwise = |question: &QuestionId| {
        let (Some(store), Some(baseline)) = (store.get(question), baseline.get(question)) else {
            return false;
        };
        store.iter().any(|chunk| {
            let mut alike =
                baseline.iter().filter(|one| (one.chunk, one.rank) == (chunk.chunk, chunk.rank)).peekable();
            alike.peek().is_some() && alike.all(|one| one.first != chunk.first)
        })
    };
    let served = cases.iter().filter(|case| case.store.observation.cached_tokens > 0);
    served.map(|case| &case.asked.id).filter(|question| is_otherwise(question)).collect()
}

impl Pairs {
    /// Takes in what two passes computed for one question. After a preemption a pass has a chunk more than once; any will do.
    fn add(
        &mut self,
        evidence: &KvEvidence,
        question: &QuestionId,
        reference: &[ChunkDigests],
        computed: &[ChunkDigests],
    ) {
        for chunk in computed.iter().filter(|chunk| !chunk.served) {
            let alike: Vec<&ChunkDigests> = reference
                .iter()
                .filter(|one| !one.served && (one.chunk, one.rank) == (chunk.chunk, chunk.rank))
                .collect();
            let layers = usize::try_from(chunk.rank).ok().and_then(|rank| evidence.layers.get(rank));
            let (Some(layers), false) = (layers, alike.is_empty()) else { continue };
            for (place, digest) in chunk.first.iter().enumerate() {
                let Some(digest) = digest else { continue };
                let known = || alike.iter().filter_map(|one| one.first.of_layer(place));
                if known().next().is_none() {
                    continue;
                }
                self.compared += 1;
                if known().any(|known| known == digest) {
                    continue;
                }
                self.differing += 1;
                if self.first.len() < NAMED_OFFENDERS
                    && let Some(layer) = layers.get(place)
                {
                    let (question, layer) = (question.clone(), layer.clone());
                    self.first.push(CellName { question, chunk: chunk.chunk, layer, rank: chunk.rank });
                }
            }
        }
    }
}

fn describe(stored: &Pairs, repeated: &Pairs, other_form: bool, outcome: Outcome) -> String {
    if stored.compared == 0 {
        return "The store pass computed no whole chunk in the baseline's shapes.".to_owned();
    }
    let seen = format!(
        "{} of {} cells that the store pass computed differ from the baseline's, {} of {} of its repeat.",
        stored.differing, stored.compared, repeated.differing, repeated.compared
    );
    let meaning = match outcome {
        Outcome::Passed => " Storing did not disturb.",
        Outcome::Failed => " The baseline's KV repeats itself bit for bit, so this is no noise.",
        Outcome::DoesNotApply if other_form => {
            " All of them do and no log-probability does, so the two engines keep the same KV in different forms."
        }
        Outcome::DoesNotApply => {
            " Which requests are computed together moves these bits, so they prove nothing here."
        }
    };
    format!("{seen}{meaning}")
}

fn by_question(records: &[KvRecord]) -> BTreeMap<&QuestionId, &[ChunkDigests]> {
    records
        .iter()
        .filter_map(|record| match record {
            KvRecord::Request { question, chunks } => Some((question, chunks.as_slice())),
            KvRecord::NotObserved { .. } => None,
        })
        .collect()
}
