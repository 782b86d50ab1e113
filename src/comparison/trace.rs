//! Traces each served cell to a computed one. Main functions: [`trace_origins`], [`trace_requests`].

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::dataset::QuestionId;
use crate::model::{ChunkDigests, KvRecord, Observation};

use super::copies::{Copies, Demand, chunks};
use super::criteria::NAMED_OFFENDERS;
use super::evidence::{AskedCut, Case, CutEvidence, Evidence, Fidelity, pair_arms};
use super::evidence_error::EvidenceError;
use super::kv_evidence::KvEvidence;
use super::provenance::{CellMap, Provenance, WrongCell, WrongWhen};
use super::second_look::SecondLook;
use super::{Outcome, Pass};

/// Requests whose cells are drawn.
const DRAWN: usize = 4;

/// Holds every served cell of these questions against what engines computed.
pub(super) fn trace_origins(
    cases: &[Case<'_>],
    cut: &CutEvidence,
    evidence: Option<&KvEvidence>,
    fidelity: Fidelity,
) -> Provenance {
    trace((cases, cut.asked()), evidence, fidelity, NAMED_OFFENDERS)
}

/// Names every wrong cell of all questions, where a comparison names the first few.
///
/// # Errors
/// When the arms do not hold the same questions and prompts.
pub fn find_wrong_cells(evidence: &Evidence) -> Result<Vec<WrongCell>, EvidenceError> {
    let cases = pair_arms(evidence)?;
    Ok(trace((&cases, evidence.cut.asked()), evidence.kv.as_ref(), evidence.fidelity, usize::MAX).first)
}

/// A request that no arms pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedRequest {
    /// What its records are named by.
    pub question: QuestionId,
    /// Length of its prompt, or of all its tokens where KV of its answer is digested, too.
    pub prompt_tokens: u32,
    /// Tokens that it was served, each time that it was taken up.
    pub served: Vec<u32>,
}

/// Holds every cell that these requests were served against what engines computed in any request of the evidence.
#[must_use]
pub fn trace_requests(evidence: &KvEvidence, fidelity: Fidelity, requests: &[ServedRequest]) -> Provenance {
    if let Some(unobserved) = unobserved(evidence) {
        return unobserved;
    }
    let demand = Demand::of(evidence, fidelity);
    let copies = Copies::of(evidence, (demand, NAMED_OFFENDERS));
    let mut of_request: HashMap<&QuestionId, Vec<&ChunkDigests>> = HashMap::new();
    for (question, chunk) in chunks(&evidence.store).chain(chunks(&evidence.load)) {
        of_request.entry(question).or_default().push(chunk);
    }
    let mut traced = Provenance::without_evidence(String::new());
    let ranks = u32::try_from(evidence.layers.len()).unwrap_or(u32::MAX);
    for request in requests {
        let seen = of_request.remove(&request.question).unwrap_or_default();
        let mut whole = 0;
        for &served in &request.served {
            let of_prompt = served.min(request.prompt_tokens) / evidence.chunk_tokens;
            whole += u64::from(of_prompt);
            traced.uncovered_tokens += u64::from(served - of_prompt * evidence.chunk_tokens);
        }
        for rank in 0..ranks {
            let digested = seen.iter().filter(|chunk| chunk.served && chunk.rank == rank).count() as u64;
            traced.missing += whole.saturating_sub(digested);
        }
        let most_served = request.served.iter().copied().max().unwrap_or(0);
        trace_request(&mut traced, &copies, (Pass::Load, &request.question, most_served), seen, demand);
    }
    traced.unheld_layers = if traced.served > 0 { copies.unheld_layers() } else { 0 };
    traced.outcome = outcome(&traced, demand);
    traced.words = describe(&traced, demand);
    traced
}

/// What there is to say where the KV was not seen.
fn unobserved(evidence: &KvEvidence) -> Option<Provenance> {
    let reason =
        evidence.passes().into_iter().flat_map(|(_, records)| records).find_map(|record| match record {
            KvRecord::NotObserved { reason } => Some(reason),
            KvRecord::Request { .. } => None,
        })?;
    Some(Provenance::without_evidence(format!("The KV itself could not be observed: {reason}.")))
}

fn trace(
    (cases, cuts): (&[Case<'_>], &[AskedCut]),
    evidence: Option<&KvEvidence>,
    fidelity: Fidelity,
    named: usize,
) -> Provenance {
    let Some(evidence) = evidence else { return Provenance::not_observed() };
    if let Some(unobserved) = unobserved(evidence) {
        return unobserved;
    }
    let demand = Demand::of(evidence, fidelity);
    let copies = Copies::of(evidence, (demand, named));
    let mut traced = Provenance::without_evidence(String::new());
    for (pass, records) in evidence.passes() {
        let mut of_question: HashMap<&QuestionId, &[ChunkDigests]> = HashMap::new();
        for record in records {
            if let KvRecord::Request { question, chunks } = record {
                of_question.insert(question, chunks);
            }
        }
        let observations: Vec<&Observation> = match pass {
            Pass::Store => cases.iter().map(|case| &case.store.observation).collect(),
            Pass::Load => cases.iter().map(|case| &case.load.observation).collect(),
            Pass::Cut => cuts.iter().map(|cut| &cut.observation).collect(),
        };
        let served_before = traced.served;
        for observation in observations {
            let question = &observation.question;
            let chunks = of_question.get(question).copied().unwrap_or_default();
            let mut served = observation.cached_tokens / evidence.chunk_tokens;
            let mut chunks: Vec<&ChunkDigests> = chunks.iter().collect();
            if is_completed_again(observation, evidence) {
                if evidence.loads_whole_chunks {
                    served += 1;
                } else {
                    chunks.retain(|chunk| chunk.chunk != served);
                    traced.left_out += 1;
                }
            }
            let covered = u64::from(served) * u64::from(evidence.chunk_tokens);
            traced.uncovered_tokens += u64::from(observation.cached_tokens).saturating_sub(covered);
            count_missing(&mut traced, evidence, &chunks, served);
            // Of a request that was taken up again a chunk may have left its window since.
            let most_served =
                observation.served_again.iter().copied().fold(observation.cached_tokens, u32::max);
            trace_request(&mut traced, &copies, (pass, question, most_served), chunks, demand);
        }
        if pass == Pass::Cut {
            traced.served_to_cuts = traced.served - served_before;
        }
    }
    traced.unheld_layers = if traced.served > 0 { copies.unheld_layers() } else { 0 };
    traced.outcome = outcome(&traced, demand);
    traced.words = describe(&traced, demand);
    traced
}

/// Whether all of a prompt was served, and of its last chunk the last token alone is computed again.
fn is_completed_again(observation: &Observation, evidence: &KvEvidence) -> bool {
    observation.cached_tokens + 1 == observation.prompt_tokens
        && observation.prompt_tokens.is_multiple_of(evidence.chunk_tokens)
}

/// Counts those of a request's first chunks, so many were served, that have no digest.
fn count_missing(traced: &mut Provenance, evidence: &KvEvidence, chunks: &[&ChunkDigests], served: u32) {
    let seen: HashSet<(u32, u32)> =
        chunks.iter().filter(|chunk| chunk.served).map(|chunk| (chunk.rank, chunk.chunk)).collect();
    let ranks = u32::try_from(evidence.layers.len()).unwrap_or(u32::MAX);
    for rank in 0..ranks {
        traced.missing += (0..served).filter(|chunk| !seen.contains(&(rank, *chunk))).count() as u64;
    }
}

fn trace_request(
    traced: &mut Provenance,
    copies: &Copies<'_>,
    (pass, question, most_served): (Pass, &QuestionId, u32),
    mut in_order: Vec<&ChunkDigests>,
    demand: Demand,
) {
    let mut maps: BTreeMap<u32, BTreeMap<u32, String>> = BTreeMap::new();
    in_order.sort_by_key(|chunk| (chunk.chunk, chunk.rank));
    let wrong_before = all_wrong(traced);
    for chunk in in_order {
        let last = chunk.last.as_ref().unwrap_or(&chunk.first);
        let (mut row, wrong_so_far) = (String::new(), all_wrong(traced));
        for ((layer, first), (_, last)) in
            copies.named(chunk, &chunk.first).into_iter().zip(copies.named(chunk, last))
        {
            let window = copies.evidence.window(chunk.rank, layer);
            let when = if first.is_none()
                && window.is_some_and(|window| !copies.evidence.keeps(window, chunk.chunk, most_served))
            {
                Cell::OutsideWindow
            } else if chunk.served {
                let known =
                    copies.identity(question, chunk, layer).and_then(|id| copies.by_identity.get(&id));
                trace_served(traced, known, (first, last), demand)
            } else {
                trace_computed(traced, first, last)
            };
            if window.is_some() && chunk.served && when != Cell::OutsideWindow {
                copies.held.borrow_mut().extend(copies.layers.get(layer).map(|layer| (chunk.rank, *layer)));
            }
            row.push(when.letter());
            let Cell::Wrong(when) = when else { continue };
            let looked_at = |look: &&SecondLook| {
                (&look.question, look.pass, look.chunk) == (question, pass, chunk.chunk)
                    && (look.layer.as_str(), look.rank) == (layer, chunk.rank)
            };
            let look =
                copies.evidence.looks.iter().find(looked_at).filter(|look| !traced.looks.contains(look));
            traced.looks.extend(look.cloned());
            if traced.first.len() < copies.most_named {
                let seen = if when == WrongWhen::WhenRead { first } else { last };
                traced.first.push(WrongCell {
                    question: question.clone(),
                    pass,
                    chunk: chunk.chunk,
                    layer: layer.to_owned(),
                    window,
                    rank: chunk.rank,
                    when,
                    looks_like: seen.and_then(|seen| copies.recognise(seen, question, chunk, layer)),
                });
            }
        }
        // A request that was preempted has a chunk more than once; the wrong one is drawn.
        let rows = maps.entry(chunk.rank).or_default();
        if all_wrong(traced) > wrong_so_far || !rows.contains_key(&chunk.chunk) {
            rows.insert(chunk.chunk, row);
        }
    }
    if all_wrong(traced) > wrong_before && traced.maps.len() < DRAWN {
        traced.maps.extend(maps.into_iter().map(|(rank, rows)| CellMap {
            question: question.clone(),
            pass,
            rank,
            chunks: rows.into_values().collect(),
        }));
    }
}

fn all_wrong(traced: &Provenance) -> u64 {
    traced.wrong_cells() + traced.changed
}

/// What one cell turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Right,
    Computed,
    Wrong(WrongWhen),
    WithoutOrigin,
    NotDigested,
    OutsideWindow,
}

impl Cell {
    fn letter(self) -> char {
        match self {
            Self::Right => '.',
            Self::Computed => 'c',
            Self::Wrong(WrongWhen::Throughout) => 'X',
            Self::Wrong(WrongWhen::WhenRead) => 'R',
            Self::Wrong(WrongWhen::AtTheEnd | WrongWhen::SinceComputed) => 'E',
            Self::WithoutOrigin => '?',
            Self::NotDigested => '-',
            Self::OutsideWindow => '_',
        }
    }
}

fn trace_computed(traced: &mut Provenance, first: Option<u128>, last: Option<u128>) -> Cell {
    let Some(first) = first else { return Cell::NotDigested };
    traced.computed += 1;
    if last.is_some_and(|last| last != first) {
        traced.changed += 1;
        return Cell::Wrong(WrongWhen::SinceComputed);
    }
    Cell::Computed
}

/// With a loss that is not declared, a served cell is no copy; it must then at least not change while it is held.
fn trace_served(
    traced: &mut Provenance,
    known: Option<&Vec<u128>>,
    (first, last): (Option<u128>, Option<u128>),
    demand: Demand,
) -> Cell {
    let Some(first) = first else {
        traced.not_digested += 1;
        return Cell::NotDigested;
    };
    traced.served += 1;
    let last = last.unwrap_or(first);
    let is_right = match (demand, known) {
        (Demand::Copy | Demand::AsStored, None) => {
            traced.without_origin += 1;
            return Cell::WithoutOrigin;
        }
        (Demand::Copy | Demand::AsStored, Some(known)) => [first, last].map(|digest| known.contains(&digest)),
        (Demand::Unchanged, _) => [first == last, true],
    };
    let when = match is_right {
        [true, true] => return Cell::Right,
        [false, true] => WrongWhen::WhenRead,
        [true, false] => WrongWhen::AtTheEnd,
        [false, false] => WrongWhen::Throughout,
    };
    traced.wrong_when_read += u64::from(!is_right[0]);
    traced.wrong_at_the_end += u64::from(!is_right[1]);
    traced.late += u64::from(when == WrongWhen::WhenRead);
    Cell::Wrong(when)
}

fn outcome(traced: &Provenance, demand: Demand) -> Outcome {
    if all_wrong(traced) > 0 {
        Outcome::Failed
    } else if demand == Demand::Unchanged
        || traced.served == 0
        || traced.without_origin > 0
        || traced.missing > 0
        || traced.not_digested > 0
        || traced.unheld_layers > 0
    {
        Outcome::DoesNotApply
    } else {
        Outcome::Passed
    }
}

fn describe(traced: &Provenance, demand: Demand) -> String {
    if traced.missing > 0 {
        return format!("{} chunks were served and not digested, so this proves nothing.", traced.missing);
    }
    if traced.not_digested > 0 {
        return format!("{} served cells have no digest, so this proves nothing.", traced.not_digested);
    }
    if traced.unheld_layers > 0 {
        return format!(
            "{} layers keep a window that no whole chunk fits into, or states of which none was seen at a chunk's end, so nothing of \
             them was held, and this proves nothing.",
            traced.unheld_layers
        );
    }
    if traced.served == 0 {
        return "No whole chunk was served, so there is nothing to hold against its origin.".to_owned();
    }
    if demand == Demand::Unchanged {
        return format!(
            "KV is stored with loss, so served chunks are no copies; {} of {} cells changed between being read and the \
             end of their request.",
            traced.wrong_when_read, traced.served
        );
    }
    if traced.without_origin > 0 {
        return format!(
            "{} of {} served cells have a prefix that no engine was seen to compute.",
            traced.without_origin, traced.served
        );
    }
    format!(
        "{} of {} served cells (a chunk in a layer on a rank) are {}, when read and at the end.{}",
        traced.served - traced.wrong_cells(),
        traced.served,
        match demand {
            Demand::AsStored =>
                "what the declared arithmetic of the lossy storage makes of computed ones, bit for bit",
            Demand::Copy | Demand::Unchanged => "copies of computed ones",
        },
        traced.not_held()
    )
}
