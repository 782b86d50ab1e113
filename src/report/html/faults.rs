//! What the page shows of planted faults. Main type: [`FaultsView`].

use super::shown::Badge;
use crate::comparison::Verdict;
use crate::fault::Fate;
use crate::report::PlantedFaults;
use crate::report::faults::{fate_words, group_trials, seen_words};
use crate::report::words::short_rung;

pub(super) struct FaultsView<'a> {
    pub(super) planted: &'a PlantedFaults,
    pub(super) badge: Badge,
    pub(super) rungs: Vec<RungBar>,
    pub(super) trials: Vec<TrialView>,
}

/// How many plantings a rung sees on its own.
pub(super) struct RungBar {
    pub(super) rung: &'static str,
    pub(super) seen: u32,
    /// On a strip of 1000.
    pub(super) share: String,
    pub(super) smallest: Option<String>,
}

pub(super) struct TrialView {
    pub(super) name: String,
    pub(super) changed_bits: u64,
    pub(super) fate: &'static str,
    pub(super) class: &'static str,
    pub(super) seen_by: String,
    pub(super) located: String,
    pub(super) differing: String,
    pub(super) served: String,
}

impl<'a> FaultsView<'a> {
    pub(super) fn of(planted: &'a PlantedFaults) -> Self {
        let findings = &planted.findings;
        let verdict = planted.doubt.as_ref().map_or(Verdict::Equivalent, |doubt| doubt.verdict);
        let mut badge = Badge::from(verdict);
        if verdict == Verdict::Equivalent {
            badge.words = "all seen";
        }
        let share = |seen: u32| f64::from(seen) / f64::from(findings.score.planted.max(1));
        Self {
            planted,
            badge,
            rungs: findings
                .score
                .seen_by
                .iter()
                .map(|(rung, seen)| RungBar {
                    rung: short_rung(*rung),
                    seen: *seen,
                    share: format!("{:.1}", 1000.0 * share(*seen)),
                    smallest: findings
                        .smallest
                        .get(rung)
                        .map(|dose| format!("{} bits: {}", dose.changed_bits, dose.trial)),
                })
                .collect(),
            trials: group_trials(findings)
                .into_iter()
                .map(|(trial, times)| TrialView {
                    name: if times == 1 { trial.name() } else { format!("{}, {times} times", trial.name()) },
                    changed_bits: trial.changed_bits,
                    fate: fate_words(trial.fate),
                    class: match trial.fate {
                        Fate::Killed | Fate::Refused | Fate::Neutral | Fate::Harmless => "passed",
                        Fate::Survived | Fate::NotRead | Fate::FalseAlarm => "failed",
                    },
                    seen_by: seen_words(trial, short_rung),
                    located: trial.located_words().unwrap_or_else(|| "–".to_owned()),
                    differing: format!("{} of {}", trial.differing, trial.questions),
                    served: format!("{} of {}", trial.served_tokens, trial.predicted_tokens),
                })
                .collect(),
        }
    }
}
