//! Rung 2: whether a differing token was nearly tied in the reference. Main type: [`NearTies`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::Observation;

use super::Outcome;
use super::criteria::{Criteria, NAMED_OFFENDERS, NOISE_SHARE};
use super::difference::{Parting, count, part};
use super::evidence::Case;

/// How the generated tokens part, for the load pass and for runs without `LMCache`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NearTies {
    /// What it amounts to.
    pub outcome: Outcome,
    /// Questions that may part beyond the gap: the suite's share of all questions, rounded down.
    pub allowed: u32,
    /// The load pass against its reference: the matched control, else the baseline.
    pub load: Partings,
    /// The repeat against the baseline.
    pub repeat: Partings,
    /// The control against the baseline.
    pub control: Option<Partings>,
    /// The first questions that part beyond the gap in the load pass.
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
    /// Which generated token, from 0.
    pub token: u32,
    /// Nats by which the reference preferred its own token; `None` when it does not list the other's.
    pub gap: Option<f64>,
}

/// Classifies every question's first differing token.
pub(super) fn classify_partings(cases: &[Case<'_>], criteria: &Criteria) -> NearTies {
    let mut load = Partings::default();
    let mut repeat = Partings::default();
    let mut control: Option<Partings> = None;
    let mut first = Vec::new();
    for case in cases {
        let baseline = &case.baseline.observation;
        let parting = load.add(&case.reference().observation, &case.load.observation, criteria);
        if let Parting::BeyondGap { token, gap } = parting
            && first.len() < NAMED_OFFENDERS
        {
            first.push(PartedQuestion { question: case.asked.id.clone(), token, gap });
        }
        repeat.add(baseline, &case.repeat.observation, criteria);
        if let Some(answered) = case.control {
            control.get_or_insert_default().add(baseline, &answered.observation, criteria);
        }
    }
    let limit = criteria.tolerance.beyond_gap_rate * f64::from(count(cases.len()));
    let noise = repeat.beyond_gap.max(control.map_or(0, |control| control.beyond_gap));
    let outcome = if f64::from(noise) > NOISE_SHARE * limit {
        Outcome::DoesNotApply
    } else if f64::from(load.beyond_gap) > limit {
        Outcome::Failed
    } else {
        Outcome::Passed
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count, rounded down"
    )]
    let allowed = limit as u32;
    NearTies { outcome, allowed, load, repeat, control, first }
}

impl Partings {
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
