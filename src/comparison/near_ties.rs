//! Rung 2: whether a differing token was nearly tied in the reference. Main type: [`NearTies`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::Observation;
use crate::stats::{Events, excess_p_value};

use super::Outcome;
use super::arm_name::Pass;
use super::criteria::{Criteria, NAMED_OFFENDERS, NOISE_SHARE, TOLERANCE_ALPHA};
use super::difference::{Parting, part};
use super::evidence::{AskedCut, Case};

/// How the generated tokens part, for the load pass and for runs without `LMCache`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NearTies {
    /// What it amounts to.
    pub outcome: Outcome,
    /// Questions and prefixes that may part beyond the gap: the suite's share of all, rounded down.
    pub allowed: u32,
    /// The load pass against its reference: the matched control, else the baseline.
    pub load: Partings,
    /// Prefixes of stored prompts against what vLLM alone made of them, where that was asked; nobody looked before there was
    /// this field.
    #[serde(default)]
    pub cuts: Partings,
    /// The repeat against the baseline.
    pub repeat: Partings,
    /// The control against the baseline.
    pub control: Option<Partings>,
    /// Repeat and control together against the baseline, on the questions whose control computed what it must: what is known
    /// of how often innocent runs part.
    #[serde(default)]
    pub innocent: Partings,
    /// Exact p-value for "the load pass and the prefixes part beyond the gap no more often than these".
    #[serde(default)]
    pub p_value: f64,
    /// The first questions that part beyond the gap in the load pass, then those whose prefixes do.
    pub first: Vec<PartedQuestion>,
}

/// How many questions part, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Partings {
    /// Questions compared.
    pub compared: u32,
    /// Questions whose first differing token was the runner-up within the gap.
    pub near_ties: u32,
    /// Questions whose first differing token was not.
    pub beyond_gap: u32,
}

/// A question whose first differing token was no near tie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartedQuestion {
    /// Which question.
    pub question: QuestionId,
    /// In which pass: the load pass before this was told.
    #[serde(default = "load_pass")]
    pub pass: Pass,
    /// Which generated token, from 0.
    pub token: u32,
    /// Nats by which the reference preferred its own token; `None` when it does not list the other's.
    pub gap: Option<f64>,
}

fn load_pass() -> Pass {
    Pass::Load
}

/// Classifies the first differing token of every question and prefix, for one of so many comparisons. Prefixes count with the
/// questions, since both are held against what innocent runs part by.
pub(super) fn classify_partings(
    cases: &[Case<'_>],
    asked_cuts: &[AskedCut],
    criteria: &Criteria,
    comparisons: u32,
) -> NearTies {
    let (mut load, mut cuts) = (Partings::default(), Partings::default());
    let mut repeat = Partings::default();
    let mut control: Option<Partings> = None;
    let mut innocent = Partings::default();
    let mut first = Vec::new();
    for case in cases {
        let baseline = &case.baseline.observation;
        let parting = load.add(&case.reference().observation, &case.load.observation, criteria);
        note(&mut first, &case.asked.id, Pass::Load, parting);
        repeat.add(baseline, &case.repeat.observation, criteria);
        if let Some(answered) = case.control {
            control.get_or_insert_default().add(baseline, &answered.observation, criteria);
        }
        if case.noise_was_observed() {
            for run in [Some(case.repeat), case.control].into_iter().flatten() {
                innocent.add(baseline, &run.observation, criteria);
            }
        }
    }
    for AskedCut { observation, control, .. } in asked_cuts {
        let same_prefix = |control: &&Observation| control.prompt_tokens == observation.prompt_tokens;
        if let Some(control) = control.as_ref().filter(same_prefix) {
            note(&mut first, &observation.question, Pass::Cut, cuts.add(control, observation, criteria));
        }
    }
    let with_cuts = load.plus(cuts);
    let limit = criteria.tolerance.beyond_gap_rate * f64::from(with_cuts.compared);
    let p_value = excess_p_value(with_cuts.beyond(), innocent.beyond());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count, rounded down"
    )]
    let allowed = limit as u32;
    let ties =
        NearTies { outcome: Outcome::Passed, allowed, load, cuts, repeat, control, innocent, p_value, first };
    let outcome = if ties.is_noisy(criteria) {
        Outcome::DoesNotApply
    } else if with_cuts.beyond_gap <= allowed {
        Outcome::Passed
    } else if p_value <= TOLERANCE_ALPHA / 2.0 / f64::from(comparisons) {
        Outcome::Failed
    } else {
        Outcome::DoesNotApply
    };
    NearTies { outcome, ..ties }
}

/// Notes a question that parts beyond the gap, if few are noted yet.
fn note(first: &mut Vec<PartedQuestion>, question: &QuestionId, pass: Pass, parting: Parting) {
    if let Parting::BeyondGap { token, gap } = parting
        && first.len() < NAMED_OFFENDERS
    {
        first.push(PartedQuestion { question: question.clone(), pass, token, gap });
    }
}

impl NearTies {
    /// The load pass and the prefixes together.
    #[must_use]
    pub fn with_cuts(&self) -> Partings {
        self.load.plus(self.cuts)
    }

    /// Whether a run without `LMCache` parts beyond the gap in more questions than half of what the suite tolerates.
    pub(super) fn is_noisy(&self, criteria: &Criteria) -> bool {
        let limit = criteria.tolerance.beyond_gap_rate * f64::from(self.load.compared);
        let noise = self.repeat.beyond_gap.max(self.control.map_or(0, |control| control.beyond_gap));
        f64::from(noise) > NOISE_SHARE * limit
    }
}

impl Partings {
    fn plus(self, other: Self) -> Self {
        Self {
            compared: self.compared + other.compared,
            near_ties: self.near_ties + other.near_ties,
            beyond_gap: self.beyond_gap + other.beyond_gap,
        }
    }

    fn beyond(self) -> Events {
        Events { events: self.beyond_gap, pairs: self.compared }
    }

    fn add(&mut self, reference: &Observation, other: &Observation, criteria: &Criteria) -> Parting {
        let parting = part(reference, other, criteria.near_tie_gap);
        self.compared += 1;
        match parting {
            Parting::Nowhere => {}
            Parting::NearTie => self.near_ties += 1,
            Parting::BeyondGap { .. } => self.beyond_gap += 1,
        }
        parting
    }
}
