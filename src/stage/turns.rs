//! Conversations over a carrier, and what each turn showed. Output: `turns.json`.
//!
//! Each turn's prompt is the one before, what the engine with the cache answered, and a piece of another prompt. In the middle that engine is ended and
//! another one goes on. Then an engine that keeps its own KV from turn to turn is asked the same prompts, and one that computes
//! each afresh.

use serde::Serialize;

use super::StageError;
use super::capacity::chunk_bytes;
use super::engine_run::{EngineRun, EngineSetup, EngineSpec, READY};
use super::foreign::disjoint_prompts;
use super::kv_evidence::kv_evidence;
use super::lines::{read_json, write_json};
use super::{Context, prompts::read_prompts};
use crate::carrier::{Carrier, Port, Side, Topology, find_carrier};
use crate::comparison::{ServedRequest, trace_requests};
use crate::dataset::Prompt;
use crate::digest::Digest;
use crate::engine::{Capacity, PrefixCache, Ready, Worker};
use crate::event::{Answering, Effort, Event};
use crate::model::{KvRecord, Observation, Route};
use crate::store::Artifact;
use crate::suite::LmcacheSettings;
use crate::turns::{Cells, Likeness, Turn, TurnsFindings, expected_tokens, generated_cells, turn_id};

const TURNS: &str = "turns.json";
/// Tokens of another prompt that follow an answer, at most.
const MOST_FOLLOWING: usize = 192;
/// And at least: less is no follow-up.
const LEAST_FOLLOWING: usize = 16;
/// Turns at least: two for each engine.
const LEAST_TURNS: usize = 4;

/// Conversations over one route. Input: the prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Turns {
    /// The engine, whose blocks are as large as chunks.
    pub engine: EngineSpec,
    /// The carrier's name.
    pub route: Route,
    /// LMCache's settings.
    pub lmcache: LmcacheSettings,
    /// Size of a chunk.
    pub capacity: Capacity,
    /// How many conversations, which are asked at the same time.
    pub conversations: usize,
    /// Turns of each: so many as have room in the engine's longest sequence, at most.
    pub turns: usize,
    /// Whether the engine is ended in the middle, and another one goes on: what holds the KV must outlive it.
    pub restarts: bool,
    /// Tokens that the engine takes at most.
    pub max_model_len: u32,
    /// How far log-probabilities may be from those of an engine that kept its KV, in nats.
    pub tolerance: f64,
    /// What the carrier is made of, where that is not this program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Digest>,
    /// The requirements of what the carrier adds to the environment.
    pub added_packages: Option<Digest>,
}

/// Reads what the stage wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_turns(turns: &Artifact) -> Result<TurnsFindings, StageError> {
    read_json(&turns.path(TURNS))
}

/// What one turn of all conversations showed, in the order of the conversations.
struct Asked {
    prompts: Vec<Prompt>,
    observations: Vec<Observation>,
    records: Vec<KvRecord>,
}

impl Turns {
    pub(crate) const SCHEMA: u32 = 2;

    /// What it takes time for.
    pub(crate) fn effort(&self) -> Effort {
        let asked = self.conversations * self.turns;
        let engines = 3 + usize::from(self.restarts);
        Effort {
            engines,
            servers: usize::from(self.restarts) * 2,
            computed: 2 * asked,
            served: 2 * asked,
            ..Effort::default()
        }
    }

    pub(crate) async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let run = EngineRun::of(&self.engine, context);
        let carrier = find_carrier(self.route)?;
        let mut talks = self.begin(&run)?;
        let surroundings = run.surroundings(self.lmcache)?;
        let chunks = u64::from(self.max_model_len / self.lmcache.chunk_tokens) * self.conversations as u64;
        let transport = carrier.prepare(&surroundings, chunks * chunk_bytes(self.capacity)).await?;
        let is_shared = carrier.topology() == Topology::SameEngine;
        let first = transport.open(if is_shared { Side::Both } else { Side::Store }, None).await?;
        let mut asked = Vec::new();
        let half = if self.restarts { talks.turns / 2 } else { talks.turns };
        let mut worker = run.start(self.setup(carrier, first.as_ref(), "talking")).await?;
        let ready: Ready = read_json(&context.draft.path(READY))?;
        for turn in 0..half {
            asked.push(self.ask(turn, &mut worker, first.as_ref(), &mut talks).await?);
            self.tell(context, "with a cache", asked.len(), talks.turns);
        }
        worker.finish().await?;
        if self.restarts {
            let second = if is_shared { None } else { Some(transport.open(Side::Load, None).await?) };
            let port = second.as_deref().unwrap_or(first.as_ref());
            let mut worker = run.start(self.setup(carrier, port, "talking on")).await?;
            for turn in half..talks.turns {
                asked.push(self.ask(turn, &mut worker, port, &mut talks).await?);
                self.tell(context, "with a cache", asked.len(), talks.turns);
            }
            worker.finish().await?;
        }

        let chunk_tokens = self.lmcache.chunk_tokens;
        let keeping = EngineSetup { hit_multiple: Some(chunk_tokens), ..EngineSetup::alone("KV keeping") };
        let kept = self.ask_again(context, run.start(keeping).await?, &asked, "keeping KV").await?;
        let fresh = run.start(EngineSetup::alone("fresh")).await?;
        let fresh = self.ask_again(context, fresh, &asked, "afresh").await?;
        let findings = self.compare(&run, &ready, &asked, [&kept, &fresh])?;
        write_json(context.draft.path(TURNS), &findings)
    }

    fn setup(&self, carrier: &dyn Carrier, port: &dyn Port, what: &str) -> EngineSetup {
        let arm = format!("{} {what}", carrier.name());
        let stored_as = self.lmcache.options.stored_as();
        let variables = port.variables();
        EngineSetup {
            variables,
            stored_as,
            digests_answers: true,
            ..EngineSetup::connected(&arm, port.connector())
        }
    }

    /// The first prompts of conversations, and what follows in each turn.
    fn begin(&self, run: &EngineRun<'_>) -> Result<Talks, StageError> {
        let chunk_tokens = self.lmcache.chunk_tokens;
        let room = usize::try_from(self.max_model_len).unwrap_or(usize::MAX);
        let answer = usize::try_from(self.engine.max_tokens).unwrap_or(usize::MAX);
        // None begins as another does, so that the first turns are served nothing.
        let begun = disjoint_prompts(run.prompts(), chunk_tokens, self.conversations)?;
        let longest = begun.iter().map(|prompt| prompt.token_ids.len()).max().unwrap_or(0);
        let left = room.saturating_sub(longest);
        let turns = (left / (answer + LEAST_FOLLOWING)).min(self.turns);
        if turns < LEAST_TURNS {
            return Err(StageError::NoRoomForTurns {
                model: run.context.model_name().to_owned(),
                room: self.max_model_len,
                needed: longest + LEAST_TURNS * (answer + LEAST_FOLLOWING),
            });
        }
        let following = (left / turns - answer).min(MOST_FOLLOWING);
        let others: Vec<Vec<u32>> = read_prompts(run.prompts())?
            .map(|prompt| {
                let tokens = prompt?.token_ids;
                Ok(tokens[tokens.len().saturating_sub(following)..].to_vec())
            })
            .collect::<Result<_, StageError>>()?;
        Ok(Talks { prompts: begun, others, before: Vec::new(), turns })
    }

    /// Asks a turn of all conversations, and prepares the next one.
    async fn ask(
        &self,
        turn: usize,
        worker: &mut Worker,
        port: &dyn Port,
        talks: &mut Talks,
    ) -> Result<Asked, StageError> {
        let before = port.counters().await?;
        let prompts = talks.prompts.clone();
        let observations = worker.score(&prompts, PrefixCache::Read, || {}).await?;
        let records = worker.take_kv_records();
        let chunk_tokens = self.lmcache.chunk_tokens;
        let stored = |observation: &Observation| self.stored_tokens(observation) / chunk_tokens;
        let grown = |(now, then): (u32, &u32)| now.saturating_sub(*then);
        let chunks: u32 = observations.iter().map(stored).zip(&talks.before).map(grown).sum();
        let first: u32 = observations.iter().skip(talks.before.len()).map(stored).sum();
        port.settle(before, u64::from(chunks + first)).await?;
        talks.before = observations.iter().map(stored).collect();
        talks.go_on(turn, &observations);
        Ok(Asked { prompts, observations, records })
    }

    /// Tokens of a turn whose KV is stored, were chunks of one token.
    fn stored_tokens(&self, observation: &Observation) -> u32 {
        let told = (observation.prompt_tokens, count(observation.steps.len()));
        expected_tokens(told, 1, self.lmcache.options.save_decode_cache)
    }

    /// The same prompts to an engine without a connector, turn by turn.
    async fn ask_again(
        &self,
        context: &Context<'_>,
        mut worker: Worker,
        asked: &[Asked],
        how: &str,
    ) -> Result<Vec<Vec<Observation>>, StageError> {
        let mut answers = Vec::new();
        for turn in asked {
            answers.push(worker.score(&turn.prompts, PrefixCache::Read, || {}).await?);
            self.tell(context, how, answers.len(), asked.len());
        }
        worker.finish().await?;
        Ok(answers)
    }

    fn tell(&self, context: &Context<'_>, how: &str, done: usize, turns: usize) {
        context.desk.events.emit(Event::QuestionsDone {
            job: context.job_name(),
            answering: Answering::Served,
            pass: format!("{} over {}, conversations {how}", context.model_name(), self.route),
            done: done * self.conversations,
            total: turns * self.conversations,
        });
    }

    fn compare(
        &self,
        run: &EngineRun<'_>,
        ready: &Ready,
        asked: &[Asked],
        [kept, fresh]: [&[Vec<Observation>]; 2],
    ) -> Result<TurnsFindings, StageError> {
        let (chunk_tokens, options) = (self.lmcache.chunk_tokens, self.lmcache.options);
        let all = named(asked, chunk_tokens);
        let (shape, ranks) = (run.kv_shape()?, self.engine.ranks);
        let records: Vec<KvRecord> = all.iter().map(|one| one.record.clone()).collect();
        let evidence = kv_evidence(
            [ranks.written_shards(shape), ranks.read_shards()],
            chunk_tokens,
            ready,
            all.iter().map(|one| Ok(one.told.clone())),
            [Ok(records), Ok(Vec::new()), Ok(Vec::new())],
        )?;
        let chunks: Vec<(usize, &KvRecord)> =
            all.iter().map(|one| (one.chunks_of_prompt, &one.record)).collect();
        let turns = all.iter().zip(generated_cells(&chunks)).map(|(one, generated)| {
            let (seen, [turn, talk]) = (one.seen, one.place);
            let before = turn.checked_sub(1).map(|before| &asked[before].observations[talk]);
            let told = before.map(|before| (before.prompt_tokens, count(before.steps.len())));
            let request = ServedRequest {
                question: one.told.question.clone(),
                prompt_tokens: seen.prompt_tokens,
                served: vec![seen.cached_tokens],
            };
            let traced = evidence.as_ref().map(|kv| trace_requests(kv, options.fidelity(), &[request]));
            let kept = &kept[turn][talk];
            Turn {
                conversation: count(talk) + 1,
                turn: count(turn) + 1,
                prompt_tokens: seen.prompt_tokens,
                expected_tokens: told
                    .map_or(0, |told| expected_tokens(told, chunk_tokens, options.save_decode_cache)),
                served_tokens: seen.cached_tokens,
                cells: traced.map(|traced| Cells::of(&traced, generated)).unwrap_or_default(),
                no_numbers: seen.no_numbers,
                kept: (kept.cached_tokens == seen.cached_tokens).then(|| Likeness::of(seen, kept)),
                fresh: Likeness::of(seen, &fresh[turn][talk]),
            }
        });
        let mut turns: Vec<Turn> = turns.collect();
        turns.sort_by_key(|turn| (turn.conversation, turn.turn));
        Ok(TurnsFindings {
            saves_answers: options.save_decode_cache,
            chunk_tokens,
            answer_tokens: self.engine.max_tokens,
            restarted_before: self.restarts.then(|| count(asked.len() / 2) + 1),
            tolerance: self.tolerance,
            turns,
        })
    }
}

/// One turn of one conversation, under a name of its own.
struct Named<'a> {
    /// Which turn, and which conversation, from 0.
    place: [usize; 2],
    seen: &'a Observation,
    /// The prompt with its answer.
    told: Prompt,
    chunks_of_prompt: usize,
    record: KvRecord,
}

fn named(asked: &[Asked], chunk_tokens: u32) -> Vec<Named<'_>> {
    let chunk = usize::try_from(chunk_tokens).unwrap_or(usize::MAX);
    let mut all = Vec::new();
    for (turn, asked) in asked.iter().enumerate() {
        for (talk, (prompt, seen)) in asked.prompts.iter().zip(&asked.observations).enumerate() {
            let question = turn_id(count(talk) + 1, count(turn) + 1);
            let of_prompt = |record: &&KvRecord| match record {
                KvRecord::Request { question, .. } => *question == prompt.question,
                KvRecord::NotObserved { .. } => true,
            };
            let record = match asked.records.iter().find(of_prompt) {
                Some(KvRecord::NotObserved { reason }) => KvRecord::NotObserved { reason: reason.clone() },
                Some(KvRecord::Request { chunks, .. }) => {
                    KvRecord::Request { question: question.clone(), chunks: chunks.clone() }
                }
                None => KvRecord::Request { question: question.clone(), chunks: Vec::new() },
            };
            let answer = seen.steps.iter().map(|step| step.chosen.token);
            let token_ids = prompt.token_ids.iter().copied().chain(answer).collect();
            all.push(Named {
                place: [turn, talk],
                seen,
                told: Prompt { question, examples: prompt.examples, token_ids },
                chunks_of_prompt: prompt.token_ids.len() / chunk,
                record,
            });
        }
    }
    all
}

/// Conversations under way.
struct Talks {
    /// The prompts of the next turn.
    prompts: Vec<Prompt>,
    /// What may follow an answer.
    others: Vec<Vec<u32>>,
    /// Whole chunks that are stored of each.
    before: Vec<u32>,
    /// How many turns.
    turns: usize,
}

impl Talks {
    /// Adds what was answered in a turn, and what follows.
    fn go_on(&mut self, turn: usize, observations: &[Observation]) {
        let count = self.prompts.len();
        for (talk, (prompt, seen)) in self.prompts.iter_mut().zip(observations).enumerate() {
            prompt.token_ids.extend(seen.steps.iter().map(|step| step.chosen.token));
            let follows = &self.others[(turn * count + talk) % self.others.len()];
            prompt.token_ids.extend(follows);
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
