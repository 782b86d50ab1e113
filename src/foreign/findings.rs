//! What came of reading KV of another identity, and what that says about LMCache. Main type: [`ForeignFindings`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cells::ServedCells;
use super::difference::Difference;
use super::stored::Stored;
use crate::comparison::nats;

/// What every reader got of the KV that one engine stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForeignFindings {
    /// Prompts that were stored, and that every reader asks.
    pub prompts: u32,
    /// Those of what one writer stored stand together, the reader that differs in nothing first.
    pub readings: Vec<Reading>,
}

/// What one reader got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// How it was stored.
    #[serde(default, skip_serializing_if = "Stored::is_default")]
    pub stored: Stored,
    /// What makes the reader another one.
    pub differs_in: Difference,
    /// Tokens that it would be served if it were not told apart.
    pub expected_tokens: u64,
    /// What came of it.
    pub outcome: ReadingOutcome,
    /// What came of the same with a salt, or a tag where LMCache is in process, where that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<Mend>,
}

/// What a reader gets whose requests carry a salt of their own, or a tag (`lmcache.tag.…`) where LMCache is in process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Mend {
    /// It was asked twice with each salt.
    Answered {
        /// How many salts, one after the other.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        salts: u32,
        /// Tokens that it was served at first: of what others had stored. Of several salts the most.
        foreign_tokens: u64,
        /// Tokens that it was served the second time: of what it had stored itself. Of several salts the least.
        own_tokens: u64,
        /// The largest difference of a letter's log-probability, the second time, to what the same engine computes in full, in
        /// nats.
        largest_difference: f64,
    },
    /// There is no answer.
    Failed {
        /// Why, in the engine's words.
        message: String,
    },
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_one(salts: &u32) -> bool {
    *salts == 1
}

impl Mend {
    /// What two say together: the worse of each number, or the first failure.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (
                Self::Answered { salts, foreign_tokens, own_tokens, largest_difference },
                Self::Answered {
                    salts: more,
                    foreign_tokens: foreign,
                    own_tokens: own,
                    largest_difference: difference,
                },
            ) => Self::Answered {
                salts: salts + more,
                foreign_tokens: foreign_tokens.max(foreign),
                own_tokens: own_tokens.min(own),
                largest_difference: largest_difference.max(difference),
            },
            (failed @ Self::Failed { .. }, _) | (_, failed) => failed,
        }
    }
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
        /// What was served of the KV itself; none where nothing was served, or nothing digested.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cells: Option<ServedCells>,
    },
    /// There is no answer.
    Failed {
        /// Why, in the words of the engine where it is the engine that failed.
        message: String,
    },
    /// There was nothing to ask for, since nothing could be stored.
    NotStored {
        /// Why, likewise.
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

impl Reading {
    /// Tokens that were served, if it was answered.
    #[must_use]
    pub fn served_tokens(&self) -> Option<u64> {
        match self.outcome {
            ReadingOutcome::Answered { served_tokens, .. } => Some(served_tokens),
            ReadingOutcome::Failed { .. } | ReadingOutcome::NotStored { .. } => None,
        }
    }

    fn is_control(&self) -> bool {
        self.differs_in == Difference::Nothing
    }

    /// Whether it differs in nothing, and was served nothing.
    #[must_use]
    pub fn is_unserved_control(&self) -> bool {
        self.is_control() && self.served_tokens() == Some(0)
    }

    fn is_served_in_full(&self) -> bool {
        self.served_tokens() == Some(self.expected_tokens)
    }

    /// For tables: in what the reader differs, and what it asked for.
    #[must_use]
    pub fn words(&self) -> String {
        format!("{}{}", self.differs_in.words(), self.stored.words())
    }

    /// How far what was served moves letters.
    fn movement(&self) -> Option<f64> {
        match self.outcome {
            ReadingOutcome::Answered { largest_difference, .. } => largest_difference,
            ReadingOutcome::Failed { .. } | ReadingOutcome::NotStored { .. } => None,
        }
    }

    /// What was served of the KV itself.
    fn cells(&self) -> Option<&ServedCells> {
        match &self.outcome {
            ReadingOutcome::Answered { cells, .. } => cells.as_ref(),
            ReadingOutcome::Failed { .. } | ReadingOutcome::NotStored { .. } => None,
        }
    }

    /// Whether it was seen to be a mend, where it was tried: nothing of another's was served, and all of its own.
    #[must_use]
    pub fn is_mended(&self) -> Option<bool> {
        Some(match self.mend.as_ref()? {
            Mend::Answered { foreign_tokens, own_tokens, .. } => {
                *foreign_tokens == 0 && *own_tokens == self.expected_tokens
            }
            Mend::Failed { .. } => false,
        })
    }

    /// What a salt or a tag does, as the end of a sentence; empty where it was not tried.
    fn mend_sentence(&self) -> String {
        let mend = self.stored.over.mend();
        match &self.mend {
            None => String::new(),
            Some(Mend::Answered { salts, own_tokens, .. }) if self.is_mended() == Some(true) => {
                let with = if *salts == 1 {
                    format!("a {mend} of its own")
                } else {
                    format!("{salts} {mend}s of its own, one after the other,")
                };
                format!("; with {with} it is served none of this, and then {own_tokens} tokens of its own")
            }
            Some(Mend::Answered { foreign_tokens, own_tokens, .. }) => format!(
                "; A {} OF ITS OWN DOES NOT MEND THIS: it is served {foreign_tokens} tokens, and {own_tokens} when it asks again",
                mend.to_uppercase()
            ),
            Some(Mend::Failed { message }) => format!("; with a {mend} of its own it fails: {message}"),
        }
    }

    /// The same for tables.
    #[must_use]
    pub fn mend_words(&self) -> String {
        let mend = self.stored.over.mend();
        match &self.mend {
            None => String::new(),
            Some(Mend::Answered { salts, foreign_tokens, own_tokens, .. }) => {
                let words = if *salts == 1 { format!("a {mend}") } else { format!("{salts} {mend}s") };
                let with = match self.is_mended() {
                    Some(true) => format!("with {words}"),
                    _ => format!("NOT MENDED by {words}:"),
                };
                format!("; {with} {foreign_tokens}, then {own_tokens}")
            }
            Some(Mend::Failed { message }) => format!("; with a {mend}: {message}"),
        }
    }
}

impl ForeignFindings {
    /// What it is, for titles behind a model's name.
    #[must_use]
    pub fn title(&self) -> &'static str {
        let in_process = self.readings.first().is_some_and(|reading| reading.stored.over.is_in_process());
        if in_process { "KV of another identity in process" } else { "KV of another identity" }
    }

    /// Whether each reader that differs in nothing was served everything, without which misses prove nothing. Where nothing could
    /// be stored there is none; at least one there must be.
    #[must_use]
    pub fn control_holds(&self) -> bool {
        let could_be_stored =
            |reading: &&Reading| !matches!(reading.outcome, ReadingOutcome::NotStored { .. });
        let controls = self.readings.iter().filter(|reading| reading.is_control());
        let mut controls = controls.filter(could_be_stored).peekable();
        controls.peek().is_some() && controls.all(Reading::is_served_in_full)
    }

    /// What one of the readings says.
    #[must_use]
    pub fn meaning(&self, reading: &Reading) -> Meaning {
        let holds = self.control_of(reading).is_some_and(Reading::is_served_in_full);
        match (reading.differs_in, reading.served_tokens()) {
            (Difference::Nothing, _) if holds => Meaning::ControlHolds,
            (_, None) if matches!(reading.outcome, ReadingOutcome::NotStored { .. }) => Meaning::Failed,
            (Difference::Nothing, _) => Meaning::ControlFails,
            (_, None) => Meaning::Failed,
            (_, Some(0)) if holds => Meaning::Miss,
            (_, Some(0)) => Meaning::NothingProven,
            (_, Some(_)) => Meaning::Finding,
        }
    }

    /// The reader that differs in nothing and asks for the same as this one.
    fn control_of(&self, reading: &Reading) -> Option<&Reading> {
        self.readings.iter().find(|one| one.is_control() && one.stored == reading.stored)
    }

    /// A sentence or two on each reader that was served what is not its own, with evidence and what follows.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let found = self.readings.iter().filter(|&reading| self.meaning(reading) == Meaning::Finding).map(
            |reading| {
                let (served, expected) = (reading.served_tokens().unwrap_or(0), reading.expected_tokens);
                format!(
                    "LMCache serves KV{} to a reader that differs in {}: {served} of {expected} tokens{}{}; {}{}",
                    reading.stored.clause(),
                    reading.differs_in.words(),
                    self.movement(reading).map_or_else(String::new, |words| format!(", {words}")),
                    self.cells_clause(reading),
                    reading.differs_in.advice(reading.stored.over),
                    reading.mend_sentence(),
                )
            },
        );
        found.collect()
    }

    /// How far what was served moves a reader's letters, beside how far the reader's own KV does.
    fn movement(&self, reading: &Reading) -> Option<String> {
        let (served, own) = (reading.movement()?, self.control_of(reading).and_then(Reading::movement)?);
        Some(format!(
            "which moves letters by up to {} nats, where KV of its own does by {}",
            nats(served),
            nats(own)
        ))
    }

    /// How many of the served cells are not the reader's own, and the first of them, beside what is so of its own KV.
    fn cells_clause(&self, reading: &Reading) -> String {
        let Some(ServedCells { served, others, first }) = reading.cells() else { return String::new() };
        let first = first.as_ref().map_or_else(String::new, |first| format!(" (first: {first})"));
        let own = self.control_of(reading).and_then(Reading::cells).filter(|own| own.others > 0);
        let own = own.map_or_else(String::new, |own| {
            format!(", where of KV of its own {} of {} are not", own.others, own.served)
        });
        format!(
            "; of {served} served cells that were held {others} are not what its engine computes{first}{own}"
        )
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
            Meaning::Failed if matches!(reading.outcome, ReadingOutcome::NotStored { .. }) => {
                "nothing was stored"
            }
            Meaning::Failed => "no answer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::{Storer, Way};
    use crate::model::Dtype;

    fn answered(differs_in: Difference, served_tokens: u64) -> Reading {
        let largest_difference = Some(if differs_in == Difference::Nothing { 1e-6 } else { 0.5 });
        let outcome = ReadingOutcome::Answered {
            served_tokens,
            second_tier_tokens: served_tokens,
            largest_difference,
            cells: None,
        };
        Reading { stored: Stored::default(), differs_in, expected_tokens: 3072, outcome, mend: None }
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
            stored: Stored::default(),
            mend: None,
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

    #[test]
    fn each_writer_has_a_control_of_its_own_and_one_that_could_not_store_voids_nothing() {
        let adapter = Stored { by: Storer::Adapter, over: Way::Tier };
        let driven = Stored { by: Storer::Suite, over: Way::DrivenMemory };
        let not_stored = ReadingOutcome::NotStored { message: "no adapter".to_owned() };
        let of = |stored, reading| Reading { stored, ..reading };
        let others = vec![
            answered(Difference::Salt, 0),
            of(driven, answered(Difference::Nothing, 0)),
            of(driven, answered(Difference::Salt, 0)),
            Reading { outcome: not_stored.clone(), ..of(adapter, answered(Difference::Nothing, 0)) },
            Reading { outcome: not_stored, ..of(adapter, answered(Difference::NoAdapter, 0)) },
        ];
        let findings = findings(3072, others);
        let seen = meanings(&findings);
        assert_eq!(seen[..2], [Meaning::ControlHolds, Meaning::Miss]);
        assert_eq!(seen[2..4], [Meaning::ControlFails, Meaning::NothingProven]);
        assert_eq!(seen[4..], [Meaning::Failed; 2]);
        assert!(!findings.control_holds());
        let without =
            |from: usize| ForeignFindings { readings: findings.readings[from..].to_vec(), prompts: 4 };
        assert!(!without(4).control_holds(), "a control there must be");
        let mut stored = findings.clone();
        stored.readings.drain(2..4);
        assert!(stored.control_holds());
    }

    #[test]
    fn a_salt_is_a_mend_only_where_it_serves_nothing_of_others_and_all_of_its_own() {
        let mended = |foreign_tokens, own_tokens| {
            let mend = Some(answer(foreign_tokens, own_tokens));
            Reading { mend, ..answered(Difference::NoAdapter, 3072) }.is_mended()
        };
        assert_eq!(mended(0, 3072), Some(true));
        assert_eq!(mended(256, 3072), Some(false));
        assert_eq!(mended(0, 0), Some(false), "a salt that keeps everything from being served is none");
        assert_eq!(answered(Difference::NoAdapter, 3072).is_mended(), None);
    }

    #[test]
    fn of_several_salts_the_worst_tells() {
        let of_three = answer(0, 3072).and(answer(0, 3072)).and(answer(0, 3072));
        let of_three = Reading { mend: Some(of_three), ..answered(Difference::NoAdapter, 3072) };
        assert_eq!(
            (of_three.is_mended(), &*of_three.mend_words()),
            (Some(true), "; with 3 salts 0, then 3072")
        );
        let told_once = answer(0, 3072).and(answer(256, 3072)).and(answer(0, 2816));
        let told_once = Reading { mend: Some(told_once), ..of_three };
        assert_eq!(told_once.mend_words(), "; NOT MENDED by 3 salts: 256, then 2816");
        let failed = Mend::Failed { message: "no".to_owned() };
        assert_eq!(answer(0, 3072).and(failed.clone()).and(answer(0, 3072)), failed);
    }

    fn answer(foreign_tokens: u64, own_tokens: u64) -> Mend {
        Mend::Answered { salts: 1, foreign_tokens, own_tokens, largest_difference: 0.0 }
    }

    #[test]
    fn readings_of_older_reports_are_of_what_the_suites_engine_stored() {
        let text = r#"{"differs_in":{"what":"salt"},"expected_tokens":3072,"outcome":{"outcome":"failed","message":"x"}}"#;
        let reading: Reading = serde_json::from_str(text).unwrap();
        assert_eq!(reading.stored, Stored::default());
        assert_eq!(serde_json::to_string(&reading).unwrap(), text);
    }
}
