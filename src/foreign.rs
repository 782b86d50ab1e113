//! Whether LMCache tells KV of one identity from KV of another: what one engine stored is asked for by others. Pure.
//!
//! Owns what a reader may differ in and what it means that it was served; leaves asking to `stage::foreign`. Main type:
//! [`ForeignFindings`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::nats;
use crate::model::Dtype;

/// What every reader got of the KV that one engine stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForeignFindings {
    /// Prompts that were stored, and that every reader asks.
    pub prompts: u32,
    /// The reader that differs in nothing first.
    pub readings: Vec<Reading>,
}

/// What one reader got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// What makes the reader another one.
    pub differs_in: Difference,
    /// Tokens that it would be served if it were not told apart.
    pub expected_tokens: u64,
    /// What came of it.
    pub outcome: ReadingOutcome,
}

/// What a reader differs in from the engine that stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Difference {
    /// Nothing: the control, which must be served everything.
    Nothing,
    /// Its requests carry a salt.
    Salt,
    /// Its server has chunks of another size.
    ChunkSize {
        /// Tokens of one of them.
        chunk_tokens: u32,
    },
    /// It computes in another data type.
    DataType {
        /// Which.
        dtype: Dtype,
    },
    /// Its model has other weights under the same path, as another revision in place has.
    Weights,
}

/// What came of a reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ReadingOutcome {
    /// All prompts were answered.
    Answered {
        /// Tokens that LMCache served, as vLLM counts them.
        served_tokens: u64,
        /// Tokens that the reader's server found behind its memory.
        second_tier_tokens: u64,
        /// The largest difference of a letter's log-probability to what the same engine computes in full, in nats; null
        /// where that was served, too.
        largest_difference: Option<f64>,
    },
    /// There is no answer.
    Failed {
        /// Why, in the words of the engine where it is the engine that failed.
        message: String,
    },
}

/// What a reading says about LMCache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The reader that differs in nothing was served everything.
    ControlHolds,
    /// It was not, so what others were not served proves nothing.
    ControlFails,
    /// Another reader was served nothing, as it must.
    Miss,
    /// Another reader was served nothing, but neither was the control everything.
    NothingProven,
    /// Another reader was served KV that is not its own.
    Finding,
    /// The reader could not be asked, or failed while it was.
    Failed,
}

impl Difference {
    /// For tables: `chunk size (512)`.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Salt => "salt".to_owned(),
            Self::ChunkSize { chunk_tokens } => format!("chunk size ({chunk_tokens})"),
            Self::DataType { dtype } => format!("data type ({})", dtype.name()),
            Self::Weights => "weights, under the same path".to_owned(),
        }
    }

    /// What follows for who runs LMCache, where it does not tell this apart.
    fn advice(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Salt => "salts do not keep users apart",
            Self::ChunkSize { .. } => "clear the cache before the size of chunks is changed",
            Self::DataType { .. } => "never let engines of two data types share a cache",
            Self::Weights => "whoever replaces a model in place must clear the cache",
        }
    }
}

impl Reading {
    /// Tokens that were served, if it was answered.
    #[must_use]
    pub fn served_tokens(&self) -> Option<u64> {
        match self.outcome {
            ReadingOutcome::Answered { served_tokens, .. } => Some(served_tokens),
            ReadingOutcome::Failed { .. } => None,
        }
    }
}

impl ForeignFindings {
    /// Whether the reader that differs in nothing was served everything, without which misses prove nothing.
    #[must_use]
    pub fn control_holds(&self) -> bool {
        let mut controls =
            self.readings.iter().filter(|reading| reading.differs_in == Difference::Nothing).peekable();
        controls.peek().is_some()
            && controls.all(|reading| reading.served_tokens() == Some(reading.expected_tokens))
    }

    /// What one of the readings says.
    #[must_use]
    pub fn meaning(&self, reading: &Reading) -> Meaning {
        match (reading.differs_in, reading.served_tokens()) {
            (Difference::Nothing, _) if self.control_holds() => Meaning::ControlHolds,
            (Difference::Nothing, _) => Meaning::ControlFails,
            (_, None) => Meaning::Failed,
            (_, Some(0)) if self.control_holds() => Meaning::Miss,
            (_, Some(0)) => Meaning::NothingProven,
            (_, Some(_)) => Meaning::Finding,
        }
    }

    /// A sentence or two on each reader that was served what is not its own, with evidence and what follows.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let found = self.readings.iter().filter(|&reading| self.meaning(reading) == Meaning::Finding).map(
            |reading| {
                let (served, expected) = (reading.served_tokens().unwrap_or(0), reading.expected_tokens);
                format!(
                    "LMCache serves KV to a reader that differs in {}: {served} of {expected} tokens{}; {}",
                    reading.differs_in.words(),
                    self.movement(reading).map_or_else(String::new, |words| format!(", {words}")),
                    reading.differs_in.advice(),
                )
            },
        );
        found.collect()
    }

    /// How far what was served moves a reader's letters, beside how far the reader's own KV does.
    fn movement(&self, reading: &Reading) -> Option<String> {
        let of = |reading: &Reading| match reading.outcome {
            ReadingOutcome::Answered { largest_difference, .. } => largest_difference,
            ReadingOutcome::Failed { .. } => None,
        };
        let control = self.readings.iter().find(|reading| reading.differs_in == Difference::Nothing);
        let (served, own) = (of(reading)?, control.and_then(of)?);
        Some(format!(
            "which moves letters by up to {} nats, where KV of its own does by {}",
            nats(served),
            nats(own)
        ))
    }

    /// A line for tables: what was served and what that means.
    #[must_use]
    pub fn verdict_words(&self, reading: &Reading) -> &'static str {
        match self.meaning(reading) {
            Meaning::ControlHolds => "served, as it must be",
            Meaning::ControlFails => "NOT SERVED: the other rows prove nothing",
            Meaning::Miss => "miss, as it must be",
            Meaning::NothingProven => "not served, which proves nothing",
            Meaning::Finding => "FINDING about LMCache: served",
            Meaning::Failed => "no answer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(differs_in: Difference, served_tokens: u64) -> Reading {
        let largest_difference = Some(if differs_in == Difference::Nothing { 1e-6 } else { 0.5 });
        let outcome =
            ReadingOutcome::Answered { served_tokens, second_tier_tokens: served_tokens, largest_difference };
        Reading { differs_in, expected_tokens: 3072, outcome }
    }

    fn findings(control: u64, others: Vec<Reading>) -> ForeignFindings {
        let readings = [vec![answered(Difference::Nothing, control)], others].concat();
        ForeignFindings { prompts: 4, readings }
    }

    fn meanings(findings: &ForeignFindings) -> Vec<Meaning> {
        findings.readings.iter().map(|reading| findings.meaning(reading)).collect()
    }

    #[test]
    fn a_reader_of_another_identity_must_miss_and_one_that_is_served_anything_is_a_finding() {
        let failed = Reading {
            differs_in: Difference::DataType { dtype: Dtype::Float32 },
            expected_tokens: 3072,
            outcome: ReadingOutcome::Failed { message: "no such kernel".to_owned() },
        };
        let others = vec![answered(Difference::Salt, 0), answered(Difference::Weights, 256), failed];
        let findings = findings(3072, others);
        assert_eq!(
            meanings(&findings),
            [Meaning::ControlHolds, Meaning::Miss, Meaning::Finding, Meaning::Failed]
        );
        insta::assert_snapshot!(findings.findings().join("\n"), @"LMCache serves KV to a reader that differs in weights, under the same path: 256 of 3072 tokens, which moves letters by up to 0.500 nats, where KV of its own does by 1.0e-6; whoever replaces a model in place must clear the cache");
    }

    #[test]
    fn misses_prove_nothing_unless_the_control_is_served_everything_and_a_hit_proves_itself() {
        let others = vec![answered(Difference::Salt, 0), answered(Difference::Weights, 3072)];
        let findings = findings(3071, others);
        assert!(!findings.control_holds());
        assert_eq!(meanings(&findings), [Meaning::ControlFails, Meaning::NothingProven, Meaning::Finding]);
        let none = ForeignFindings { prompts: 4, readings: vec![answered(Difference::Salt, 0)] };
        assert_eq!(meanings(&none), [Meaning::NothingProven]);
    }
}
