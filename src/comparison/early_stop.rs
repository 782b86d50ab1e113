//! Ending a run as soon as harm is beyond doubt. Main type: [`HarmMonitor`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dataset::{QuestionId, Subject};
use crate::stats::{HarmEvidence, PairOutcome, e_value};

use super::criteria::{EARLY_STOP_ALPHA, FLIP_CORRELATION};

/// Why a load pass may end: the evidence for harm, a gambler's wealth, has passed its bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// Pairs seen so far.
    pub pairs: u32,
    /// Questions that only the baseline got right.
    pub harms: u32,
    /// Questions that only the load pass got right.
    pub gains: u32,
    /// The evidence: see [`HarmEvidence`].
    pub e_value: f64,
    /// What it had to reach.
    pub bound: f64,
}

impl EarlyStop {
    /// Whether the counts can give the evidence, and the evidence passes the loosest bound that any run may use.
    pub(super) fn is_founded(&self) -> bool {
        // The most that so many harms and gains can be evidence of, but for the rounding of stakes.
        let most = e_value(self.harms, self.gains) * 1.01;
        most >= self.e_value && self.e_value >= self.bound && self.bound >= 1.0 / EARLY_STOP_ALPHA - 1e-9
    }
}

/// Watches the pairs of a load pass and says when to stop. Valid at every moment and in any order of the questions that is
/// fixed without looking at answers (see [`HarmEvidence`]), one subject after the other included.
#[derive(Debug, Clone)]
pub struct HarmMonitor {
    bound: f64,
    pairs: u32,
    harms: u32,
    gains: u32,
    evidence: HarmEvidence<Subject>,
}

impl HarmMonitor {
    /// A monitor for one of `comparisons` comparisons of a run, which share the chance of a false alarm.
    #[must_use]
    pub fn new(comparisons: u32) -> Self {
        let evidence = HarmEvidence::new(FLIP_CORRELATION);
        Self { bound: stopping_bound(comparisons), pairs: 0, harms: 0, gains: 0, evidence }
    }

    /// Takes the next pair, of a question of this subject; says whether harm is now beyond doubt.
    #[must_use]
    pub fn observe(&mut self, subject: &Subject, outcome: PairOutcome) -> Option<EarlyStop> {
        self.pairs += 1;
        match outcome {
            PairOutcome::Harm => self.harms += 1,
            PairOutcome::Gain => self.gains += 1,
            PairOutcome::BothRight | PairOutcome::BothWrong => {}
        }
        self.evidence.observe(subject.clone(), outcome);
        if outcome != PairOutcome::Harm {
            // Only a harm raises the evidence.
            return None;
        }
        let evidence = self.evidence.value();
        (evidence >= self.bound).then_some(EarlyStop {
            pairs: self.pairs,
            harms: self.harms,
            gains: self.gains,
            e_value: evidence,
            bound: self.bound,
        })
    }
}

/// The evidence at which one of `comparisons` comparisons is stopped (the chance of a false alarm is divided evenly).
pub(super) fn stopping_bound(comparisons: u32) -> f64 {
    f64::from(comparisons.max(1)) / EARLY_STOP_ALPHA
}

/// Questions in an order that depends on `seed` and on each question's name alone: by SHA-256 of both. So the first
/// of them are a random sample of all that are given, the same on every machine.
#[must_use]
pub fn shuffle_questions(mut questions: Vec<QuestionId>, seed: u64) -> Vec<QuestionId> {
    questions.sort_by_cached_key(|question| {
        let digest: [u8; 32] = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(question.to_string().as_bytes())
            .finalize()
            .into();
        (digest, question.clone())
    });
    questions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Split;

    fn subject(number: u32) -> Subject {
        format!("subject_{number:02}").parse().unwrap()
    }

    #[test]
    fn more_comparisons_need_more_evidence() {
        let harms_to_stop = |comparisons| {
            let mut monitor = HarmMonitor::new(comparisons);
            (1..100).find(|number| monitor.observe(&subject(*number), PairOutcome::Harm).is_some()).unwrap()
        };
        assert_eq!([1, 2, 10].map(harms_to_stop), [13, 14, 17]);
    }

    #[test]
    fn agreeing_pairs_and_even_flips_never_stop_a_run() {
        let mut monitor = HarmMonitor::new(1);
        for number in 0..1000 {
            for outcome in
                [PairOutcome::BothRight, PairOutcome::BothWrong, PairOutcome::Harm, PairOutcome::Gain]
            {
                assert_eq!(monitor.observe(&subject(number % 7), outcome), None);
            }
        }
    }

    #[test]
    fn the_order_depends_on_seed_and_names_alone() {
        let id = |row| QuestionId { subject: "anatomy".parse().unwrap(), split: Split::Test, row };
        let ids: Vec<QuestionId> = (1..=50).map(id).collect();
        let shuffled = shuffle_questions(ids.clone(), 7);
        assert_eq!(shuffled, shuffle_questions(ids.iter().rev().cloned().collect(), 7));
        assert_ne!(shuffled, shuffle_questions(ids.clone(), 8));
        assert_ne!(shuffled, ids);
        let rows: Vec<u32> = shuffled[..5].iter().map(|id| id.row).collect();
        // Pinned: the same order on every machine and in every release.
        assert_eq!(rows, [27, 17, 29, 9, 3]);
    }
}
