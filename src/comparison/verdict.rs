//! What a comparison can show, and by which rung. Main type: [`Judgement`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a run shows, from the worst. "No difference found" is none of them.
///
/// The order is that of the overall verdict. Proven harm comes first. A cache that was not used explains surviving
/// faults, so *not exercised* comes before *insensitive*; both say that a pass would mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A loss or a mismatch that the noise floor does not explain.
    Degraded,
    /// `LMCache` served fewer tokens than it must.
    NotExercised,
    /// A planted fault survived.
    Insensitive,
    /// Nothing is proven, neither harm nor equivalence.
    Inconclusive,
    /// Bit-exact, or shown equivalent within the margin.
    Equivalent,
}

impl Verdict {
    /// The name, as written in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Degraded => "degraded",
            Self::NotExercised => "not exercised",
            Self::Insensitive => "insensitive",
            Self::Inconclusive => "inconclusive",
            Self::Equivalent => "equivalent",
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.name())
    }
}

/// The rungs of the ladder, from sharp to blunt, and the two tests that stand beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Served tokens equal the prediction.
    Exercised,
    /// Served KV is a copy of computed KV.
    Kv,
    /// Log-probabilities equal the control's, bit for bit.
    BitExact,
    /// Differing tokens were nearly tied.
    NearTies,
    /// The letters' probabilities stay.
    Distribution,
    /// As many answers are right.
    Answers,
    /// Harm beyond doubt, at whatever time.
    EarlyStop,
    /// Planted faults are found.
    Faults,
}

impl Rung {
    /// A word or two for tables and logs.
    #[must_use]
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Exercised => "hits",
            Self::Kv => "kv",
            Self::BitExact => "bits",
            Self::NearTies => "near ties",
            Self::Distribution => "distribution",
            Self::Answers => "answers",
            Self::EarlyStop => "early stop",
            Self::Faults => "faults",
        }
    }
}

/// A verdict on one comparison, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Judgement {
    /// What the comparison shows.
    pub verdict: Verdict,
    /// The rung that decided.
    pub decided_by: Rung,
    /// Why, in one to three sentences.
    pub reason: String,
    /// What to do next, in one sentence.
    pub next_step: String,
}

impl Judgement {
    pub(super) fn new(verdict: Verdict, decided_by: Rung, reason: String, next_step: &str) -> Self {
        Self { verdict, decided_by, reason, next_step: next_step.to_owned() }
    }
}
