//! What a comparison is made from: the questions, what each pass must be served, and every pass's observations.
//! Main type: [`Evidence`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::{Choice, QuestionId};
use crate::model::{Observation, SpoiltProbe};

use super::arm_name::ArmName;
use super::difference::{Difference, first_difference};
use super::early_stop::EarlyStop;
use super::evidence_error::EvidenceError;
use super::kv_evidence::KvEvidence;

/// A question, its published answer, and what the caches must serve for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Which question.
    pub id: QuestionId,
    /// The published answer.
    pub answer: Choice,
    /// What its prompt leads one to expect.
    pub expected: Expected,
}

/// Token counts that follow from a prompt's token ids, the chunk size and the stack's rules, before anything runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Length of the prompt.
    pub prompt_tokens: u32,
    /// The most that the store pass may be served: what earlier prompts share with this one, in whole chunks.
    pub store_at_most: u32,
    /// What the load pass must be served, exactly.
    pub load: u32,
    /// What the control's second pass must be served from vLLM's own prefix cache, exactly.
    pub control: u32,
}

/// What prefixes of stored prompts showed, or why none were asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CutEvidence {
    /// They were asked, in the order of asking.
    Asked(Vec<AskedCut>),
    /// None were.
    LeftOut {
        /// Why.
        reason: String,
    },
}

impl CutEvidence {
    /// Those that were asked.
    pub(super) fn asked(&self) -> &[AskedCut] {
        match self {
            Self::Asked(cuts) => cuts,
            Self::LeftOut { .. } => &[],
        }
    }
}

/// One prefix of a stored prompt, asked under the prompt's question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedCut {
    /// Tokens that it must be served, exactly.
    pub expected: u32,
    /// What the engine with a cache showed.
    pub observation: Observation,
    /// What vLLM showed of the same prefix, served by its own prefix cache, where it was asked.
    pub control: Option<Observation>,
}

/// One request's observation and the letter that its generated text was read as.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// What the engine showed.
    pub observation: Observation,
    /// The letter, or `None` where the text names none. None is never right.
    pub answer: Option<Choice>,
}

/// All observations of one engine run, one a question, in the order of the questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    name: ArmName,
    answered: Vec<Answered>,
}

impl Arm {
    /// Sorts observations by question and reads each one's answer with `read_answer`.
    ///
    /// # Errors
    /// When a question was observed twice, an observation has no generated token, or a number is not finite.
    pub fn new(
        name: ArmName,
        observations: Vec<Observation>,
        read_answer: impl Fn(&Observation) -> Option<Choice>,
    ) -> Result<Self, EvidenceError> {
        let answered: Vec<Answered> = observations
            .into_iter()
            .map(|observation| Answered { answer: read_answer(&observation), observation })
            .collect();
        Self::sorted(name, answered)
    }

    fn sorted(name: ArmName, mut answered: Vec<Answered>) -> Result<Self, EvidenceError> {
        answered.sort_by(|one, other| one.observation.question.cmp(&other.observation.question));
        for pair in answered.windows(2) {
            if pair[0].observation.question == pair[1].observation.question {
                return Err(EvidenceError::Duplicate {
                    arm: name,
                    question: pair[0].observation.question.clone(),
                });
            }
        }
        for Answered { observation, .. } in &answered {
            if observation.steps.is_empty() || !is_finite(observation) {
                return Err(EvidenceError::NotNumbers { arm: name, question: observation.question.clone() });
            }
        }
        Ok(Self { name, answered })
    }

    /// This arm with the observations of the same arm of another part of the run.
    pub(super) fn joined(mut self, other: Self) -> Result<Self, EvidenceError> {
        self.answered.extend(other.answered);
        Self::sorted(self.name, self.answered)
    }

    /// Only what was observed of some questions.
    #[cfg(test)]
    pub(super) fn of_questions(&self, is_wanted: impl Fn(&QuestionId) -> bool) -> Self {
        let wanted = |answered: &&Answered| is_wanted(&answered.observation.question);
        Self { name: self.name, answered: self.answered.iter().filter(wanted).cloned().collect() }
    }

    /// One for each question, in the order of the questions.
    #[must_use]
    pub fn answered(&self) -> &[Answered] {
        &self.answered
    }
}

/// Whether every log-probability is a number.
fn is_finite(observation: &Observation) -> bool {
    let steps = observation.steps.iter().flat_map(|step| step.top.iter().chain([&step.chosen]));
    observation.letters.into_iter().chain(steps.map(|token| token.nats())).all(f64::is_finite)
}

/// The `LMCache` server's own counters over one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerCounters {
    /// Tokens that were looked up.
    pub requested_tokens: u64,
    /// Tokens that were found.
    pub hit_tokens: u64,
    /// Of these, in a tier behind the server's memory.
    pub second_tier_tokens: u64,
    /// Loads that the second tier of the route finished; where it has none, those of any.
    pub second_tier_loads: u64,
    /// Chunks that a tier behind the memory had and did not give, each rank's shard counted.
    #[serde(default)]
    pub failed_loads: u64,
    /// Chunks that such a tier had and was not asked for, since another request was just loading them.
    #[serde(default)]
    pub contended: u64,
    /// Chunks that such a tier gave; the server counts them as written into its memory, too.
    #[serde(default)]
    pub given: u64,
    /// Chunks written, each rank's shard counted.
    pub chunks_written: u64,
    /// Chunks read, each rank's shard counted.
    pub chunks_read: u64,
}

/// What the `LMCache` server counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerEvidence {
    /// Over the store pass.
    pub store: ServerCounters,
    /// Over the load pass.
    pub load: ServerCounters,
    /// Over the cut pass.
    pub cut: ServerCounters,
    /// What the stack makes of a chunk, if known.
    pub sharding: Option<Sharding>,
    /// The tier that the load pass must be served from, if it matters.
    pub tier: Option<ServingTier>,
}

/// The tier that a route's load pass must be served from, and how much of it at least.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ServingTier {
    /// The memory of the server that stored it, and no other.
    Memory,
    /// The tier of this name behind another server's memory, which was empty.
    Second {
        /// LMCache's name for it: `fs`, `resp` or `p2p`.
        name: String,
        /// Tokens of the distinct chunks that the questions have: each has to come from there once.
        at_least: u64,
    },
}

/// In how many shards a chunk is stored and read, by the rules of the stack and the engine's ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharding {
    /// Tokens of one chunk.
    pub chunk_tokens: u32,
    /// Chunks that the store pass must write.
    pub stored_chunks: u64,
    /// Shards that a chunk is written in.
    pub written_shards: u32,
    /// Shards that are read to serve a chunk: one for each rank.
    pub read_shards: u32,
    /// How the server's counts relate to these.
    pub bound: Bound,
}

/// How a count relates to its prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// It is equal.
    Exactly,
    /// It is no less: traffic with a second tier counts, too.
    AtLeast,
}

/// How many requests the engine computes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// One sequence at a time (`max_num_seqs` 1): a request's arithmetic depends on nothing but itself.
    OneAtATime,
    /// Several: which ones meet in a batch differs from run to run.
    Together,
}

/// Whether KV comes back from where it was stored as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fidelity {
    /// Bit for bit, or something is wrong.
    #[default]
    Exact,
    /// By the suite's choice with loss, so that the load pass may move and the answers alone decide.
    Lossy,
}

/// Tokens that vLLM's own counters say were served in the store and in the load pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineEvidence {
    /// By its connector.
    pub external: [u64; 2],
    /// By its own prefix cache, in the connector's place.
    pub own: [u64; 2],
    /// By its connector in the load pass from the place that the route is of, where it is of one that vLLM names.
    pub source: Option<SourceHits>,
}

/// Tokens of the load pass that vLLM's counter `vllm:prompt_tokens_cached_by_source` says came from one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceHits {
    /// vLLM's name of the place: `disk`.
    pub name: String,
    /// So many had to, at least.
    pub at_least: u64,
    /// So many did.
    pub tokens: u64,
}

/// Everything that was seen of one model on one route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Comparisons that the run plans, this one among them: models times routes, whichever of them can run in the end.
    pub comparisons: u32,
    /// What stores and serves KV: `LMCache`, or the class of a connector that needs none.
    pub cache: String,
    /// All questions, in any order.
    pub questions: Vec<Asked>,
    /// How the engine computed them, in every arm.
    pub batching: Batching,
    /// In what form KV was stored.
    pub fidelity: Fidelity,
    /// vLLM alone.
    pub baseline: Arm,
    /// vLLM alone, once more.
    pub repeat: Arm,
    /// vLLM served from its own prefix cache, where the attention backend has one.
    pub control: Option<Arm>,
    /// With `LMCache`, first pass.
    pub store: Arm,
    /// With `LMCache`, second pass.
    pub load: Arm,
    /// Prefixes of stored prompts, behind the load pass.
    pub cut: CutEvidence,
    /// The server's own counters, where the route has a server.
    pub server: Option<ServerEvidence>,
    /// vLLM's own counters, where these must prove the service.
    pub engine: Option<EngineEvidence>,
    /// Tokens that the store pass generates, where these are fewer than the others'.
    pub store_tokens: Option<usize>,
    /// Whether loads were made to fail, so that some of what was stored must not be served.
    pub loads_fail: bool,
    /// What was seen of the KV itself, where engines digest it.
    pub kv: Option<KvEvidence>,
    /// What a request with spoilt KV showed; `None` where planted faults tell whether answers feel their KV.
    pub spoilt: Option<SpoiltProbe>,
    /// Why the load pass ended before the last question, if it did; the passes with `LMCache` may then lack questions.
    pub early_stop: Option<EarlyStop>,
}

/// One question and what every arm made of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) asked: &'a Asked,
    pub(super) baseline: &'a Answered,
    pub(super) repeat: &'a Answered,
    pub(super) control: Option<&'a Answered>,
    pub(super) store: &'a Answered,
    pub(super) load: &'a Answered,
    /// Tokens that the store pass generates, where these are fewer than the others'.
    store_tokens: Option<usize>,
}

impl<'a> Case<'a> {
    /// The first difference of the store pass from the baseline, over the tokens that it was to generate.
    pub(super) fn store_difference(&self) -> Option<Difference> {
        let (baseline, store) = (&self.baseline.observation, &self.store.observation);
        match self.store_tokens {
            None => first_difference(baseline, store),
            Some(tokens) => {
                let steps = baseline.steps.iter().take(tokens).cloned().collect();
                first_difference(&Observation { steps, ..baseline.clone() }, store)
            }
        }
    }

    /// The control, if it left exactly the tokens to compute that the load pass computed.
    pub(super) fn matched_control(&self) -> Option<&'a Answered> {
        self.control
            .filter(|control| control.observation.cached_tokens == self.load.observation.cached_tokens)
    }

    /// Whether the runs without `LMCache` show what this question's arithmetic moves by: the control, where there is one,
    /// computed what it must. Otherwise nothing is known of computing a suffix alone.
    pub(super) fn noise_was_observed(&self) -> bool {
        self.control.is_none_or(|control| control.observation.cached_tokens == self.asked.expected.control)
    }

    /// The computation without `LMCache` that is nearest to the load pass: the matched control, else the baseline.
    pub(super) fn reference(&self) -> &'a Answered {
        self.matched_control().unwrap_or(self.baseline)
    }
}

/// Puts the arms side by side, in the order of the questions. After an early stop only what the load pass was asked counts.
pub(super) fn pair_arms(evidence: &Evidence) -> Result<Vec<Case<'_>>, EvidenceError> {
    let mut questions: Vec<&Asked> = evidence.questions.iter().collect();
    questions.sort_by(|one, other| one.id.cmp(&other.id));
    if let Some(pair) = questions.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(EvidenceError::AskedTwice(pair[0].id.clone()));
    }
    let arms = [&evidence.baseline, &evidence.repeat, &evidence.store, &evidence.load];
    for arm in arms.into_iter().chain(&evidence.control) {
        check_questions(arm, &questions)?;
    }
    if evidence.early_stop.is_some() {
        let load = &evidence.load.answered;
        questions.retain(|asked| {
            load.binary_search_by(|answered| answered.observation.question.cmp(&asked.id)).is_ok()
        });
    }
    if questions.is_empty() {
        return Err(EvidenceError::NoQuestions);
    }
    let [mut baseline, mut repeat, mut store, mut load] = arms.map(Cursor::over);
    let mut control = evidence.control.as_ref().map(Cursor::over);
    questions
        .into_iter()
        .map(|asked| {
            Ok(Case {
                asked,
                baseline: baseline.advance_to(&asked.id)?,
                repeat: repeat.advance_to(&asked.id)?,
                control: control.as_mut().map(|control| control.advance_to(&asked.id)).transpose()?,
                store: store.advance_to(&asked.id)?,
                load: load.advance_to(&asked.id)?,
                store_tokens: evidence.store_tokens,
            })
        })
        .collect()
}

/// Every observation must belong to a question, and to the prompt that was made for it.
fn check_questions(arm: &Arm, questions: &[&Asked]) -> Result<(), EvidenceError> {
    let mut remaining = questions.iter();
    for Answered { observation, .. } in &arm.answered {
        let question = &observation.question;
        let asked = remaining
            .find(|asked| asked.id >= *question)
            .filter(|asked| asked.id == *question)
            .ok_or_else(|| EvidenceError::Unasked { arm: arm.name, question: question.clone() })?;
        if observation.prompt_tokens != asked.expected.prompt_tokens {
            return Err(EvidenceError::OtherPrompt {
                arm: arm.name,
                question: question.clone(),
                expected: asked.expected.prompt_tokens,
                seen: observation.prompt_tokens,
            });
        }
    }
    Ok(())
}

/// Walks an arm once, in step with the sorted questions.
struct Cursor<'a> {
    name: ArmName,
    remaining: std::slice::Iter<'a, Answered>,
}

impl<'a> Cursor<'a> {
    fn over(arm: &'a Arm) -> Self {
        Self { name: arm.name, remaining: arm.answered.iter() }
    }

    fn advance_to(&mut self, question: &QuestionId) -> Result<&'a Answered, EvidenceError> {
        self.remaining
            .find(|answered| answered.observation.question >= *question)
            .filter(|answered| answered.observation.question == *question)
            .ok_or_else(|| EvidenceError::Missing { arm: self.name, question: question.clone() })
    }
}
