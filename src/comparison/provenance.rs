//! Rung 1: where the KV comes from that the engine reads. Main type: [`Provenance`].
//!
//! A *cell* is one chunk in one layer on one rank. Every cell that was served must equal a copy that an engine of the same
//! arm computed for the same token prefix and rank, whatever else was in the batch, and whichever request computed it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::digest::Digest;
use crate::model::{ChunkDigests, KvRecord, LayerDigests, Observation};

use super::as_baseline::AsBaseline;
use super::criteria::NAMED_OFFENDERS;
use super::evidence::{AskedCut, Case, CutEvidence, Evidence, Fidelity, pair_arms};
use super::evidence_error::EvidenceError;
use super::kv_evidence::KvEvidence;
use super::second_look::SecondLook;
use super::{Outcome, Pass};

/// Requests whose cells are drawn.
const DRAWN: usize = 4;

/// Whether the cells that were served are copies of computed ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// What it amounts to. It holds whatever requests were computed together.
    pub outcome: Outcome,
    /// Cells that an engine computed.
    pub computed: u64,
    /// Computed cells that did not stay as they were until their request ended.
    pub changed: u64,
    /// Cells that a cache served, in all passes.
    pub served: u64,
    /// Those of them that were read by prefixes of stored prompts.
    #[serde(default)]
    pub served_to_cuts: u64,
    /// Served cells that are no copy where attention begins to read them.
    pub wrong_when_read: u64,
    /// Served cells that are no copy when their request ends.
    pub wrong_at_the_end: u64,
    /// Of all wrong ones, those that were wrong when read and right at the end: they came too late.
    pub late: u64,
    /// Served cells of a prefix that no engine computed before our eyes, so that there is nothing to hold them against.
    pub without_origin: u64,
    /// Served cells that have no digest, so that all of this proves nothing.
    pub not_digested: u64,
    /// Served chunks that are not held against anything: their prompt's last token is computed again, and the carrier need not
    /// have loaded it.
    pub left_out: u32,
    /// Tokens that were served and lie in no chunk that was held against anything: behind the last whole chunk of their
    /// prompt, or in one that is left out.
    #[serde(default)]
    pub uncovered_tokens: u64,
    /// Chunks that vLLM says were served, on each rank, and that have no digest.
    pub missing: u64,
    /// Layers that see a window, on each rank, of whose served cells none was whole within it, so that none was held.
    #[serde(default)]
    pub unheld_layers: u32,
    /// What this rung saw, or why it does not apply, in words.
    pub words: String,
    /// The first wrong cells, in the order of passes, questions and chunks.
    pub first: Vec<WrongCell>,
    /// All cells of the first requests with a wrong one.
    pub maps: Vec<CellMap>,
    /// Wrong cells that were looked at again.
    #[serde(default)]
    pub looks: Vec<SecondLook>,
    /// What the store pass computed against the baseline's KV, where both were seen.
    #[serde(default)]
    pub as_baseline: Option<AsBaseline>,
}

/// One wrong cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrongCell {
    /// Whose prompt.
    pub question: QuestionId,
    /// In which pass.
    pub pass: Pass,
    /// Which chunk of the prompt, from 0.
    pub chunk: u32,
    /// Which layer, by its name in vLLM.
    pub layer: String,
    /// How many tokens the layers of its group keep, where they do not keep all; 1 stands for a recurrent state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// On which rank.
    pub rank: u32,
    /// When it was wrong.
    pub when: WrongWhen,
    /// What the bytes are instead, where their digest tells.
    pub looks_like: Option<String>,
}

/// When a cell was seen to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WrongWhen {
    /// Served, and wrong when it was read and when the request ended.
    Throughout,
    /// Served, and wrong only when it was read: the right bytes came too late.
    WhenRead,
    /// Served, and wrong only when the request ended: something wrote over it.
    AtTheEnd,
    /// Computed, and not the same any more when the request ended: something wrote over it.
    SinceComputed,
}

/// The cells of one request on one rank: a row for each chunk, a letter for each layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CellMap {
    /// Whose prompt.
    pub question: QuestionId,
    /// In which pass.
    pub pass: Pass,
    /// On which rank.
    pub rank: u32,
    /// For each chunk, from 0, a letter for each layer: `.` right, `c` computed, `X` wrong throughout, `R` wrong only when
    /// read, `E` wrong only at the end, `?` without an origin, `-` not digested, `_` not kept since it lies before a window.
    pub chunks: Vec<String>,
}

impl Provenance {
    /// Of a comparison from before there was this rung, or whose engines digest nothing.
    #[must_use]
    pub fn not_observed() -> Self {
        Self::without_evidence("The KV itself was not observed.".to_owned())
    }

    /// Served cells that were wrong at any time.
    #[must_use]
    pub fn wrong_cells(&self) -> u64 {
        self.wrong_at_the_end + self.late
    }

    fn without_evidence(words: String) -> Self {
        Self {
            outcome: Outcome::DoesNotApply,
            computed: 0,
            changed: 0,
            served: 0,
            served_to_cuts: 0,
            wrong_when_read: 0,
            wrong_at_the_end: 0,
            late: 0,
            without_origin: 0,
            not_digested: 0,
            left_out: 0,
            uncovered_tokens: 0,
            missing: 0,
            unheld_layers: 0,
            words,
            first: Vec::new(),
            maps: Vec::new(),
            looks: Vec::new(),
            as_baseline: None,
        }
    }
}

/// A cell by what it must be: token prefix, layer, and rank where ranks differ.
type Identity = (Digest, u32, u32);

/// What a served cell must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    /// A copy of a computed one.
    Copy,
    /// What the declared arithmetic of a lossy form of storage makes of a computed one, bit for bit.
    AsStored,
    /// With a loss that nobody declared: the same as long as it is held.
    Unchanged,
}

impl Demand {
    fn of(evidence: &KvEvidence, fidelity: Fidelity) -> Self {
        let mut computed = evidence.passes().into_iter().flat_map(|(_, records)| chunks(records));
        match fidelity {
            Fidelity::Exact => Self::Copy,
            Fidelity::Lossy if computed.any(|(_, chunk)| chunk.stored.is_some()) => Self::AsStored,
            Fidelity::Lossy => Self::Unchanged,
        }
    }
}

/// What engines computed.
struct Copies<'a> {
    evidence: &'a KvEvidence,
    /// A number for each layer's name.
    layers: BTreeMap<&'a str, u32>,
    by_identity: HashMap<Identity, Vec<u128>>,
    /// Whose cell has these bytes: question, chunk, layer, rank.
    owners: HashMap<u128, (&'a QuestionId, u32, &'a str, u32)>,
    /// How many wrong cells are named.
    most_named: usize,
    /// Layers that see a window, by rank and number, of which a served cell was held.
    held: RefCell<HashSet<(u32, u32)>>,
}

impl<'a> Copies<'a> {
    fn of(evidence: &'a KvEvidence, (demand, most_named): (Demand, usize)) -> Self {
        let in_any_order: HashSet<&str> = evidence.layers.iter().flatten().map(String::as_str).collect();
        let mut names: Vec<&str> = in_any_order.into_iter().collect();
        names.sort_unstable();
        let mut copies = Self {
            evidence,
            layers: names.into_iter().zip(0..).collect(),
            by_identity: HashMap::new(),
            owners: HashMap::new(),
            most_named,
            held: RefCell::default(),
        };
        for (question, chunk) in evidence.passes().into_iter().flat_map(|(_, records)| chunks(records)) {
            if chunk.served {
                continue;
            }
            let Some(digests) = (match demand {
                Demand::AsStored => chunk.stored.as_ref(),
                Demand::Copy | Demand::Unchanged => Some(&chunk.first),
            }) else {
                continue;
            };
            for (layer, digest) in copies.named(chunk, digests) {
                let Some(digest) = digest else { continue };
                copies.owners.entry(digest).or_insert((question, chunk.chunk, layer, chunk.rank));
                if let Some(identity) = copies.identity(question, chunk, layer) {
                    let known = copies.by_identity.entry(identity).or_default();
                    if !known.contains(&digest) {
                        known.push(digest);
                    }
                }
            }
        }
        copies
    }

    /// The digests of a chunk with the names of its rank's layers; a layer that none came for has none.
    fn named(&self, chunk: &ChunkDigests, digests: &LayerDigests) -> Vec<(&'a str, Option<u128>)> {
        let rank = usize::try_from(chunk.rank).ok();
        let names = rank.and_then(|rank| self.evidence.layers.get(rank)).into_iter().flatten();
        names.map(String::as_str).zip(digests.iter().chain(std::iter::repeat(None))).collect()
    }

    /// How many layers that see a window had no served cell that was held.
    fn unheld_layers(&self) -> u32 {
        let held = self.held.borrow();
        let of_rank = |(rank, names): (u32, &'a Vec<String>)| {
            let sees_window = |name: &&String| self.evidence.window(rank, name).is_some();
            let is_held = |name: &&String| {
                self.layers.get(name.as_str()).is_some_and(|layer| held.contains(&(rank, *layer)))
            };
            names.iter().filter(sees_window).filter(|name| !is_held(name)).count()
        };
        let unheld: usize = (0..).zip(&self.evidence.layers).map(of_rank).sum();
        u32::try_from(unheld).unwrap_or(u32::MAX)
    }

    fn identity(&self, question: &QuestionId, chunk: &ChunkDigests, layer: &str) -> Option<Identity> {
        let prefix = self.evidence.prefixes.get(question)?.get(usize::try_from(chunk.chunk).ok()?)?;
        let rank = if self.evidence.shared_by_ranks { 0 } else { chunk.rank };
        Some((*prefix, *self.layers.get(layer)?, rank))
    }

    /// What bytes are, if they are known; said of a cell that should be another.
    fn recognise(
        &self,
        digest: u128,
        question: &QuestionId,
        chunk: &ChunkDigests,
        layer: &str,
    ) -> Option<String> {
        if digest == ZEROS {
            return Some("zeros".to_owned());
        }
        let &(owner, place, name, rank) = self.owners.get(&digest)?;
        let mut differs = Vec::new();
        if place != chunk.chunk {
            differs.push(format!("chunk {}", place + 1));
        }
        if name != layer {
            differs.push(format!("layer {name}"));
        }
        if rank != chunk.rank && !self.evidence.shared_by_ranks {
            differs.push(format!("rank {rank}"));
        }
        if owner != question {
            differs.push(format!("the prompt of {owner}"));
        }
        (!differs.is_empty()).then(|| format!("the KV of {}", differs.join(", ")))
    }
}

/// The digest of a chunk of zeros: what the worker adds to its sums.
const ZEROS: u128 = {
    let (first, second) = (0x243F_6A88_85A3_08D3_u64.swap_bytes(), 0x1319_8A2E_0370_7344_u64.swap_bytes());
    ((first as u128) << 64) | second as u128
};

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

impl KvEvidence {
    /// The passes with a cache, in the order of asking.
    fn passes(&self) -> [(Pass, &Vec<KvRecord>); 3] {
        [(Pass::Store, &self.store), (Pass::Load, &self.load), (Pass::Cut, &self.cut)]
    }
}

fn chunks(records: &[KvRecord]) -> impl Iterator<Item = (&QuestionId, &ChunkDigests)> {
    records.iter().flat_map(|record| match record {
        KvRecord::Request { question, chunks } => chunks.iter().map(|chunk| (question, chunk)).collect(),
        KvRecord::NotObserved { .. } => Vec::new(),
    })
}
