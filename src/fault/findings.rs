//! What planted faults show about the ladder. Main types: [`Trial`], [`FaultFindings`].

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::{ANSWERS_ALPHA, Comparison, Judgement, Outcome, Rung, Service, Verdict, conclude};
use crate::dataset::QuestionId;
use crate::engine::ServerCounters;

use super::kind::{Group, Layers, Must, Place, Tier, Variant};
use super::layout::Layout;
use super::located::{Changed, Located};

/// What became of a planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The ladder saw it.
    Killed,
    /// The engine's answer was no number, and the engine ended there; in reports from before such an answer was judged.
    Refused,
    /// It changes what the engine reads, and the ladder did not see it.
    Survived,
    /// It changes the order of what the engine reads, which no answer can show, and no bit moved either.
    Neutral,
    /// The load pass was not served from where the fault was planted: nothing is shown.
    NotRead,
    /// The engine reads what it would have read, and the verdict is *equivalent*.
    Harmless,
    /// The engine reads what it would have read, and the verdict is another than *equivalent*.
    FalseAlarm,
}

/// One fault, planted once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The fault's name in the catalogue.
    pub fault: String,
    /// What kind of damage.
    pub group: Group,
    /// The dose; empty where there is one.
    pub dose: String,
    /// The chunk of each prompt.
    pub place: Place,
    /// The layers of that chunk.
    pub layers: Layers,
    /// The tier.
    pub tier: Tier,
    /// Chunks that were changed, each rank's shard counted.
    pub chunks: u32,
    /// Bits that differ in what is read of the most changed chunk or shard; missing bytes count whole.
    pub changed_bits: u64,
    /// What became of it.
    pub fate: Fate,
    /// The ladder's verdict; `None` where there is nothing to judge.
    pub verdict: Option<Verdict>,
    /// The rung that decided.
    pub decided_by: Option<Rung>,
    /// Why there is nothing to judge: what the engine said of its answer.
    pub refusal: Option<String>,
    /// Every rung that would have seen it on its own.
    pub seen_by: Vec<Rung>,
    /// Tokens served in the load pass: fewer than predicted where LMCache itself noticed.
    pub served_tokens: u64,
    /// Tokens that had to be served.
    pub predicted_tokens: u64,
    /// Cells of KV (a chunk in a layer on a rank, each time it was served) that the rung `kv` calls wrong.
    #[serde(default)]
    pub wrong_cells: u64,
    /// Whether that rung names what was planted, and nothing else; `None` where the KV was not observed.
    #[serde(default)]
    pub located: Option<Located>,
    /// Load passes that it took: what cannot be asked at once is planted in turns.
    #[serde(default = "one")]
    pub passes: u32,
    /// Rungs that saw something in some of these passes and not in all, and in how many.
    #[serde(default)]
    pub seen_in: BTreeMap<Rung, u32>,
    /// Questions whose bits differ from the control's.
    pub differing: u32,
    /// Questions whose first token differs from the control's.
    pub token_flips: u32,
    /// Questions compared.
    pub questions: u32,
    /// From planting to verdict; `None` where it was not kept.
    pub seconds: Option<f64>,
}

/// What planting did to what the engine reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Chunks that were written or deleted.
    pub chunks: u32,
    /// Bits that differ in the most changed of them.
    pub changed_bits: u64,
    /// Where they differ, as far as it can be read.
    pub cells: Changed,
}

/// What the load pass showed after a fault was planted.
#[derive(Debug)]
pub struct Reading<'a> {
    /// On every rung.
    pub comparison: &'a Comparison,
    /// The server's counts over it.
    pub counted: ServerCounters,
    /// What the rung `kv` names; `None` where the KV was not observed.
    pub located: Option<Located>,
}

impl Trial {
    /// Judges the load pass after a fault was planted.
    #[must_use]
    pub fn judge(variant: &Variant, damage: &Damage, reading: Reading<'_>) -> Self {
        let Reading { comparison, counted, located } = reading;
        let judgement = conclude([comparison]).judgements.swap_remove(0);
        let Judgement { verdict, decided_by, .. } = judgement;
        let elsewhere = match variant.tier {
            Tier::Memory => counted.hit_tokens - counted.hit_memory_tokens.min(counted.hit_tokens),
            // What memory serves, a request that asked for the same chunk before has loaded from the tier: the bytes tell, where planting
            // changes any, else that the tier gave as many.
            Tier::Disk if located.as_ref().is_some_and(|located| located.named > 0) => 0,
            Tier::Disk if damage.changed_bits == 0 && counted.given_chunks >= u64::from(damage.chunks) => 0,
            Tier::Disk => counted.hit_tokens - counted.hit_second_tier_tokens.min(counted.hit_tokens),
        };
        let changes_nothing = damage.changed_bits == 0 && variant.operator.misreading().is_none();
        let must = if changes_nothing { Must::ChangeNothing } else { variant.fault.must };
        let seen = matches!(verdict, Verdict::Degraded | Verdict::NotExercised);
        let is_located = located.as_ref().is_some_and(Located::is_exact);
        let fate = match must {
            Must::ChangeNothing if verdict == Verdict::Equivalent && elsewhere == 0 => Fate::Harmless,
            Must::ChangeNothing if verdict == Verdict::Equivalent => Fate::NotRead,
            Must::ChangeNothing => Fate::FalseAlarm,
            Must::ServeNothing if verdict == Verdict::NotExercised => Fate::Killed,
            Must::BeSeen(Rung::Exercised) if seen => Fate::Killed,
            // Where nothing was served, nothing of what was planted was read either.
            Must::BeSeen(_) | Must::ReorderAlone if elsewhere > 0 || counted.hit_tokens == 0 => Fate::NotRead,
            Must::BeSeen(Rung::Kv) if !is_located => Fate::Survived,
            Must::BeSeen(_) | Must::ReorderAlone if seen => Fate::Killed,
            Must::ReorderAlone if verdict == Verdict::Equivalent => Fate::Neutral,
            Must::ServeNothing | Must::ReorderAlone | Must::BeSeen(_) => Fate::Survived,
        };
        Self {
            fate,
            verdict: Some(verdict),
            decided_by: Some(decided_by),
            seen_by: seen_by(comparison),
            served_tokens: comparison.exercised.load.cached_tokens,
            predicted_tokens: comparison.exercised.load.predicted_tokens,
            wrong_cells: comparison.kv.wrong_cells(),
            located,
            differing: comparison.bit_exact.against_control.differing
                + comparison.bit_exact.against_baseline.differing,
            token_flips: comparison.distribution.load.first_token_flips,
            questions: comparison.questions,
            ..Self::unjudged(variant, damage)
        }
    }

    fn unjudged(variant: &Variant, damage: &Damage) -> Self {
        Self {
            fault: variant.fault.name.to_owned(),
            group: variant.fault.group,
            dose: variant.dose.to_owned(),
            place: variant.place,
            layers: variant.layers,
            tier: variant.tier,
            chunks: damage.chunks,
            changed_bits: damage.changed_bits,
            fate: Fate::NotRead,
            verdict: None,
            decided_by: None,
            refusal: None,
            seen_by: Vec::new(),
            served_tokens: 0,
            predicted_tokens: 0,
            wrong_cells: 0,
            located: None,
            passes: 1,
            seen_in: BTreeMap::new(),
            differing: 0,
            token_flips: 0,
            questions: 0,
            seconds: None,
        }
    }

    /// One trial of a variant that was planted in turns, which came in this order: the first of them that is not `Killed`, with
    /// what all of them add up to. `None` where there are none.
    #[must_use]
    pub fn joined(turns: &[Self]) -> Option<Self> {
        let mut seen: BTreeMap<Rung, u32> = BTreeMap::new();
        for rung in turns.iter().flat_map(|turn| &turn.seen_by) {
            *seen.entry(*rung).or_default() += 1;
        }
        let passes = u32::try_from(turns.len()).unwrap_or(u32::MAX);
        let sum = |of: fn(&Self) -> u64| turns.iter().map(of).sum::<u64>();
        let small = |of: fn(&Self) -> u32| turns.iter().map(of).sum::<u32>();
        let worst = turns.iter().find(|turn| turn.fate != Fate::Killed).or(turns.first())?;
        Some(Self {
            passes,
            chunks: small(|turn| turn.chunks),
            changed_bits: turns.iter().map(|turn| turn.changed_bits).max()?,
            seen_by: seen.iter().filter(|(_, times)| **times == passes).map(|(rung, _)| *rung).collect(),
            seen_in: seen.into_iter().filter(|(_, times)| *times < passes).collect(),
            served_tokens: sum(|turn| turn.served_tokens),
            predicted_tokens: sum(|turn| turn.predicted_tokens),
            wrong_cells: sum(|turn| turn.wrong_cells),
            located: turns.iter().filter_map(|turn| turn.located.clone()).reduce(Located::plus),
            differing: small(|turn| turn.differing),
            token_flips: small(|turn| turn.token_flips),
            questions: small(|turn| turn.questions),
            ..worst.clone()
        })
    }

    /// Fault, dose, place, layers and tier, as far as they say something.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = self.fault.clone();
        if !self.dose.is_empty() {
            name = format!("{name} {}", self.dose);
        }
        let place = match self.place {
            Place::First => "first chunk",
            Place::Middle => "middle chunk",
            Place::Last => "last chunk",
            Place::Every => "every chunk",
            Place::LastOfWhole => "last chunk of whole prompts",
            Place::OneInAHundred => "one chunk in a hundred",
        };
        let layers = match self.layers {
            Layers::All => "",
            Layers::First => ", first layer",
            Layers::Middle => ", middle layer",
            Layers::Last => ", last layer",
        };
        let tier = match self.tier {
            Tier::Memory => ", in memory",
            Tier::Disk => "",
        };
        if self.passes > 1 {
            return format!("{name} ({} places in {} passes)", self.chunks, self.passes);
        }
        format!("{name} ({place}{layers}{tier})")
    }

    /// What the rung `kv` names of what was planted: `48 of 48`; `None` where it says nothing.
    #[must_use]
    pub fn located_words(&self) -> Option<String> {
        let Located { planted, not_served, named, elsewhere, .. } = self.located.as_ref()?;
        let besides = if *elsewhere == 0 { String::new() } else { format!(" and {elsewhere} others") };
        let unread = if *not_served == 0 { String::new() } else { format!(", {not_served} not served") };
        let says_something = *planted > 0 || *elsewhere > 0 || *not_served > 0;
        says_something.then(|| format!("{named} of {planted}{besides}{unread}"))
    }

    /// Whether it was the fault's part to be seen.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.group != Group::Control
            && !matches!(self.fate, Fate::Harmless | Fate::FalseAlarm | Fate::Neutral)
    }
}

fn one() -> u32 {
    1
}

/// What each rung says on its own.
fn seen_by(comparison: &Comparison) -> Vec<Rung> {
    let lost = comparison.answers.generated.against_reference.harm_p_value() <= ANSWERS_ALPHA;
    [
        (Rung::Exercised, comparison.exercised.service != Service::AsPredicted),
        (Rung::Kv, comparison.kv.outcome == Outcome::Failed),
        (Rung::BitExact, comparison.bit_exact.outcome == Outcome::Failed),
        (Rung::NearTies, comparison.near_ties.outcome == Outcome::Failed),
        (
            Rung::Distribution,
            comparison.distribution.outcome == Outcome::Failed || comparison.without_numbers.is_some(),
        ),
        (Rung::Answers, lost),
    ]
    .into_iter()
    .filter_map(|(rung, seen)| seen.then_some(rung))
    .collect()
}

/// Everything that the planted faults of one model show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultFindings {
    /// How the chunks are arranged, or the shards that they are stored in.
    pub layout: Layout,
    /// The questions that were asked.
    pub questions: Vec<QuestionId>,
    /// Distinct chunks of their prompts, each rank's shard counted.
    pub chunks: u32,
    /// Chunks that were found in LMCache's memory. Faults are planted there if all were.
    pub chunks_in_memory: u32,
    /// Plantings in memory that were left out, since an answer that was no number had ended the server that held the chunks.
    #[serde(default)]
    pub left_out: u32,
    /// Faults that this engine or these prompts could not be given, and why, in words.
    #[serde(default)]
    pub not_planted: Vec<String>,
    /// How many faults were killed, and which were not.
    pub score: Score,
    /// For each rung the smallest change of a chunk that it saw.
    pub smallest: BTreeMap<Rung, SmallestDose>,
    /// Every planting, in order.
    pub trials: Vec<Trial>,
}

/// The mutation score.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Faults that change what the engine reads, each in every dose and place.
    pub planted: u32,
    /// Those that the ladder saw, or that the engine's own answer showed.
    pub killed: u32,
    /// How many of them each rung would have seen on its own.
    pub seen_by: BTreeMap<Rung, u32>,
    /// Kinds of faults among them.
    pub kinds: u32,
    /// Those that it did not see, or that were not read.
    pub survivors: Vec<String>,
    /// Plantings that reorder and moved no bit.
    pub neutral: u32,
    /// Plantings that change nothing.
    pub harmless: u32,
    /// Those of them that the ladder took for a fault or that were not read, and a no-op cache that passed.
    pub misjudged: Vec<String>,
}

/// A small change that a rung saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SmallestDose {
    /// The planting.
    pub trial: String,
    /// Bits that it changed of a chunk.
    pub changed_bits: u64,
}

impl FaultFindings {
    /// Counts up the trials.
    #[must_use]
    pub fn new(
        layout: Layout,
        questions: Vec<QuestionId>,
        chunks: u32,
        chunks_in_memory: u32,
        trials: Vec<Trial>,
    ) -> Self {
        let mut score = Score::default();
        let mut kinds = BTreeSet::new();
        let mut smallest: BTreeMap<Rung, SmallestDose> = BTreeMap::new();
        for trial in &trials {
            match trial.fate {
                Fate::Harmless => score.harmless += 1,
                Fate::Neutral => score.neutral += 1,
                Fate::FalseAlarm => score.misjudged.push(trial.name()),
                _ if trial.group == Group::Control && trial.fate != Fate::Killed => {
                    score.misjudged.push(trial.name());
                }
                _ if trial.group == Group::Control => {}
                Fate::Killed | Fate::Refused => score.killed += 1,
                Fate::Survived | Fate::NotRead => score.survivors.push(trial.name()),
            }
            if trial.counts() {
                score.planted += 1;
                kinds.insert(&trial.fault);
                for rung in &trial.seen_by {
                    *score.seen_by.entry(*rung).or_default() += 1;
                    if trial.changed_bits == 0 {
                        continue;
                    }
                    let dose = SmallestDose { trial: trial.name(), changed_bits: trial.changed_bits };
                    let known = smallest.entry(*rung).or_insert_with(|| dose.clone());
                    if dose.changed_bits < known.changed_bits {
                        *known = dose;
                    }
                }
            }
        }
        score.kinds = u32::try_from(kinds.len()).expect("a catalogue is short");
        Self {
            layout,
            questions,
            chunks,
            chunks_in_memory,
            left_out: 0,
            not_planted: Vec::new(),
            score,
            smallest,
            trials,
        }
    }

    /// What was not planted in LMCache's memory, and why, if anything.
    #[must_use]
    pub fn not_in_memory(&self) -> Option<String> {
        if self.chunks_in_memory < self.chunks {
            let found = self.chunks_in_memory;
            return Some(format!(
                "{found} chunks were found there (is /dev/shm too small?), so nothing was planted in it"
            ));
        }
        (self.left_out > 0).then(|| {
            format!(
                "{} plantings were left out, since an answer that was no number had ended the server that held the chunks",
                self.left_out
            )
        })
    }

    /// Why the ladder's word cannot be taken, if so: a fault survived, or a control was misjudged.
    #[must_use]
    pub fn doubt(&self) -> Option<Judgement> {
        let Score { survivors, misjudged, planted, killed, .. } = &self.score;
        let (reason, next_step) = if let Some(first) = misjudged.first() {
            (
                format!(
                    "{} of the controls, which change nothing or leave nothing to serve, were not judged as such (first: \
                     {first}), so the verdicts on planted faults prove nothing.",
                    misjudged.len()
                ),
                "Find out what differs between two load passes of the same bytes.",
            )
        } else if let Some(first) = survivors.first() {
            (
                format!(
                    "{killed} of {planted} planted faults were seen; {} survived (first: {first}). A pass would not \
                     show that the cache is sound.",
                    survivors.len()
                ),
                "Where requests are computed together, ask one at a time (`engine.max_num_seqs = 1`), so that bits decide; where they \
                 do, ask more questions.",
            )
        } else {
            return None;
        };
        let (verdict, decided_by) = (Verdict::Insensitive, Rung::Faults);
        Some(Judgement { verdict, decided_by, reason, next_step: next_step.to_owned() })
    }
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
