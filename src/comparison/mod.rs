//! Comparing what a model answers with and without `LMCache`, and judging it.
//!
//! Owns the ladder of oracles, from "was the cache used at all" to "are as many answers right", and the verdict. Takes
//! values and returns values: leaves running engines, reading letters from text and files to others. Formulae are
//! `stats`'s. Main types: [`Evidence`] in, [`Comparison`] out of [`compare`], [`Conclusion`] out of [`conclude`].

mod answers;
mod arm_name;
mod as_baseline;
mod bit_exact;
mod breakdown;
mod conclusion;
mod copies;
mod criteria;
mod difference;
mod distribution;
mod early_stop;
mod evidence;
mod evidence_error;
mod exercised;
mod join;
mod kv_evidence;
mod ladder;
mod last_rung;
mod likeness;
mod location;
mod near_ties;
mod noise_floor;
mod plan;
mod provenance;
mod provenance_verdict;
mod provenance_words;
#[cfg(test)]
pub(crate) mod scene;
mod second_look;
mod second_look_words;
mod sensitivity;
mod tally;
#[cfg(test)]
mod tests;
mod trace;
mod verdict;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::SpoiltProbe;

pub use answers::{Accuracy, Answers, Flip, FlipKind, PairedTest, Scoring, pair_predictions};
pub use arm_name::{ArmName, Pass};
pub use as_baseline::{AsBaseline, CellName};
pub use bit_exact::{BitExact, LeftOver};
pub use breakdown::{QuestionMovement, SubjectScore};
pub use conclusion::{Conclusion, conclude};
pub(crate) use criteria::MOST_MARGIN;
pub use criteria::{ANSWERS_ALPHA, Criteria, EARLY_STOP_ALPHA, LOSS_SHARE, TOLERANCE_ALPHA, Tolerance};
pub(crate) use difference::nats;
pub use difference::{Difference, DifferenceKind};
pub use distribution::{Distribution, Shift};
pub use early_stop::{EarlyStop, HarmMonitor, shuffle_questions};
pub use evidence::{
    Answered, Arm, Asked, AskedCut, Batching, Bound, CutEvidence, EngineEvidence, Evidence, Expected,
    Fidelity, ServerCounters, ServerEvidence, ServingTier, Sharding, SourceHits,
};
pub use evidence_error::EvidenceError;
pub use exercised::{
    CutHits, Exercised, FailedLoads, HitTotals, Offender, PassHits, ServerAgreement, Service, ShardCounts,
    TierAgreement,
};
pub use join::{JoinError, join_evidence};
pub use kv_evidence::KvEvidence;
pub use likeness::KnownCell;
pub use location::{Location, Place};
pub use near_ties::{NearTies, PartedQuestion, Partings};
pub use noise_floor::{ControlMatch, NoiseFloor};
pub use plan::{Plan, plan_questions, reach};
pub use provenance::{CellMap, Provenance, WrongCell, WrongWhen};
pub use second_look::{
    ComputedKv, DifferingPart, FirstElement, KvDifference, RowsInstead, SecondLook, Sight, look_closely,
};
pub use sensitivity::Sensitivity;
pub use tally::Tally;
pub use trace::{ServedRequest, find_wrong_cells, trace_requests};
pub use verdict::{Judgement, Rung, Verdict};

/// What a rung of the ladder amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The load pass is as it should be, as far as this rung sees.
    Passed,
    /// The load pass is not as it should be.
    Failed,
    /// Two runs without `LMCache` differ too much, or too little can be compared, for this rung to judge.
    DoesNotApply,
}

/// Everything that the evidence of one model on one route shows, on every rung. The same evidence gives the same
/// bytes, in whatever order it comes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// What was fixed beforehand.
    pub criteria: Criteria,
    /// Comparisons that the run planned, this one among them: they share the chance of a false alarm. 0 in
    /// reports from before it was written down.
    #[serde(default)]
    pub comparisons: u32,
    /// Number of questions compared.
    pub questions: u32,
    /// Answers that a cache was asked for and whose log-probabilities were no numbers, if there are any.
    #[serde(default)]
    pub without_numbers: Option<WithoutNumbers>,
    /// What stores and serves KV: `LMCache`, or the class of a connector that needs none. Reports from before it was
    /// written down are of the former.
    #[serde(default = "lmcache")]
    pub cache: String,
    /// Rung 0.
    pub exercised: Exercised,
    /// What moves without `LMCache`.
    pub noise_floor: NoiseFloor,
    /// Whether answers move when KV that they are served changes; nobody looked before there was this field.
    #[serde(default = "Sensitivity::not_observed")]
    pub sensitivity: Sensitivity,
    /// Rung 1; there was none before KV was digested.
    #[serde(default = "Provenance::not_observed")]
    pub kv: Provenance,
    /// Rung 2.
    pub bit_exact: BitExact,
    /// Rung 3.
    pub near_ties: NearTies,
    /// Rung 4.
    pub distribution: Distribution,
    /// Rung 5.
    pub answers: Answers,
    /// Why the load pass ended early, if it did.
    pub early_stop: Option<EarlyStop>,
    /// Each subject, by name.
    pub by_subject: Vec<SubjectScore>,
    /// Each question, in order.
    pub by_question: Vec<QuestionMovement>,
}

/// Answers whose log-probabilities were no numbers, though those of the baseline were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WithoutNumbers {
    /// How many, of the store, the load and the cut pass and of what was asked beside a spoilt chunk.
    pub answers: u32,
    /// The first one's question.
    pub first: QuestionId,
}

impl WithoutNumbers {
    /// Of all passes, and of what was asked beside a spoilt chunk.
    fn among(cases: &[evidence::Case<'_>], cuts: &[AskedCut], probe: Option<&SpoiltProbe>) -> Option<Self> {
        let passes = cases.iter().flat_map(|case| [&case.store.observation, &case.load.observation]);
        let passes = passes.chain(cuts.iter().map(|cut| &cut.observation));
        let beside = probe.into_iter().flat_map(|probe| match probe {
            SpoiltProbe::Asked(answers) => vec![&answers.alone, &answers.again],
            SpoiltProbe::NotAsked { .. } => Vec::new(),
        });
        let without: Vec<_> = passes.chain(beside).filter(|observation| observation.no_numbers).collect();
        let first = without.first()?.question.clone();
        Some(Self { answers: difference::count(without.len()), first })
    }
}

/// The name of what serves KV wherever nothing else is said.
fn lmcache() -> String {
    "LMCache".to_owned()
}

/// Compares the load pass with the runs without `LMCache`, on every rung; [`conclude`] judges what comes out.
///
/// # Errors
/// When the arms do not hold the same questions and prompts, a criterion is out of range, or the load pass ended early
/// without reason.
pub fn compare(evidence: &Evidence, criteria: &Criteria) -> Result<Comparison, EvidenceError> {
    if let Some(field) = criteria.first_absurd_field() {
        return Err(EvidenceError::AbsurdCriterion(field));
    }
    if let Some(stop) = evidence.early_stop.filter(|stop| !stop.is_founded()) {
        return Err(EvidenceError::UnfoundedStop { harms: stop.harms, gains: stop.gains });
    }
    let cases = evidence::pair_arms(evidence)?;
    // After an early stop the server's totals cover other requests than the pairs do.
    let server = evidence.server.as_ref().filter(|_| evidence.early_stop.is_none());
    let engine = evidence.engine.as_ref().filter(|_| evidence.early_stop.is_none());
    let noise_floor = noise_floor::measure_noise(&cases, evidence.batching, evidence.fidelity);
    let otherwise = as_baseline::stored_otherwise(&cases, evidence.kv.as_ref());
    let by_question = breakdown::measure_movements(&cases);
    let comparisons = evidence.comparisons.max(1);
    let mut near_ties = near_ties::classify_partings(&cases, evidence.cut.asked(), criteria, comparisons);
    let mut distribution = distribution::measure_shifts(&cases, &criteria.tolerance, comparisons);
    if evidence.fidelity == Fidelity::Lossy {
        (near_ties.outcome, distribution.outcome) = (Outcome::DoesNotApply, Outcome::DoesNotApply);
    }
    Ok(Comparison {
        criteria: *criteria,
        comparisons,
        questions: difference::count(cases.len()),
        without_numbers: WithoutNumbers::among(&cases, evidence.cut.asked(), evidence.spoilt.as_ref()),
        cache: evidence.cache.clone(),
        exercised: exercised::check_service(&cases, &evidence.cut, server, engine, evidence.loads_fail),
        sensitivity: sensitivity::measure_sensitivity(evidence.spoilt.as_ref()),
        kv: provenance::Provenance {
            as_baseline: as_baseline::compare_computed(&cases, evidence.kv.as_ref(), &noise_floor),
            ..trace::trace_origins(&cases, &evidence.cut, evidence.kv.as_ref(), evidence.fidelity)
        },
        bit_exact: bit_exact::compare_bits(&cases, &evidence.cut, &noise_floor, &otherwise, criteria),
        near_ties,
        distribution,
        answers: answers::score_answers(&cases, criteria),
        early_stop: evidence.early_stop,
        by_subject: breakdown::score_subjects(&cases, &by_question),
        by_question,
        noise_floor,
    })
}
