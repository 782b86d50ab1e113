//! What LMCache has to hold and must serve, worked out before anything starts. Main types: [`Plan`], [`Expectation`].
//!
//! Each round stores some prompts and loads them again before the next round starts, so that no hit is lost to
//! eviction. Hits follow from token ids and chunk size alone.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::dataset::{Prompt, QuestionId, Subject};
use crate::digest::{Digest, digest_bytes};
use crate::model::{Found, HitRule, HitUnit};

/// Part of a tier that one round may fill: LMCache starts to evict at 0.8, in steps of 0.2.
const USABLE: (u64, u64) = (3, 4);
/// Questions of the first round, if its first subject has so many.
const PROBE: usize = 8;

/// The limits that rounds are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Tokens of one chunk: what is stored and served as a whole.
    pub chunk_tokens: u32,
    /// Bytes of one token's KV.
    pub bytes_per_token: u64,
    /// Bytes of LMCache's memory tier.
    pub lmcache_bytes: u64,
    /// Bytes of vLLM's own KV cache, which holds a round of the control: all of it, or as many blocks as a suite leaves it.
    pub engine_bytes: u64,
    /// What is stored and served of a prompt.
    #[serde(skip_serializing_if = "HitRule::is_default")]
    pub hits: HitRule,
}

impl Capacity {
    /// The same, where chunks are blocks of an engine that has blocks of so many tokens.
    #[must_use]
    pub fn with_blocks_of(self, block_tokens: u32) -> Self {
        match self.hits.unit {
            HitUnit::Chunk => self,
            HitUnit::Block => Self { chunk_tokens: block_tokens.max(1), ..self },
        }
    }

    /// Whether a round has room for a prompt of this subject with so many tokens, alone.
    ///
    /// # Errors
    /// When it has none.
    pub fn admit(&self, subject: &Subject, prompt_tokens: u32) -> Result<(), TooLarge> {
        let chunks = u64::from(prompt_tokens / self.chunk_tokens);
        let tokens = u64::from(prompt_tokens.next_multiple_of(self.chunk_tokens));
        match self.tiers(chunks, tokens).into_iter().find(|(_, needed, usable)| needed > usable) {
            Some((tier, needed, usable)) => Err(TooLarge { subject: subject.clone(), tier, needed, usable }),
            None => Ok(()),
        }
    }

    /// Tokens that vLLM's own KV cache has room for.
    #[must_use]
    pub fn engine_tokens(&self) -> u64 {
        self.engine_bytes / self.bytes_per_token.max(1)
    }

    /// What chunks in LMCache and tokens in vLLM take: name of the tier, bytes needed, bytes that a round may fill.
    fn tiers(&self, chunks: u64, tokens: u64) -> [(&'static str, u64, u64); 2] {
        let cached = (chunks * u64::from(self.chunk_tokens)).saturating_mul(self.bytes_per_token);
        [
            ("LMCache's memory", cached, usable(self.lmcache_bytes)),
            ("vLLM's KV cache", tokens.saturating_mul(self.bytes_per_token), usable(self.engine_bytes)),
        ]
    }
}

/// What a prompt's length and predecessors predict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The question.
    pub question: QuestionId,
    /// Length of its prompt.
    pub prompt_tokens: u32,
    /// Tokens that the store pass may be served: chunks shared with a prompt asked before.
    pub store_at_most: u32,
    /// Tokens that the load pass must be served.
    pub load: u32,
    /// Those of them that it is served of no prompt before.
    pub first_load: u32,
    /// Tokens that vLLM's own prefix cache must serve in the control.
    pub control: u32,
}

/// Some consecutive prompts, stored and then loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// How many prompts.
    pub prompts: usize,
    /// Distinct whole chunks of these prompts: so many are written, since LMCache is emptied between rounds.
    pub chunks: u64,
    /// Those of them that no earlier round has: at least so many are written where LMCache is not emptied in between, or
    /// finds the others in a second tier.
    pub new_chunks: u64,
    /// Tokens that these prompts take in vLLM's own blocks, the end of the last chunk included: the control holds all at once.
    pub tokens: u64,
}

impl Round {
    /// So many prompts in rounds of at most `size`, where no cache bounds them: they only divide work, and their chunks are
    /// not counted.
    #[must_use]
    pub fn divide(prompts: usize, size: usize) -> Vec<Self> {
        let of = |prompts| Self { prompts, chunks: 0, new_chunks: 0, tokens: 0 };
        (0..prompts).step_by(size.max(1)).map(|start| of(size.max(1).min(prompts - start))).collect()
    }
}

/// The rounds, and what to expect of each question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Rounds in the order of asking.
    pub rounds: Vec<Round>,
    /// One for each prompt, in the order of asking.
    pub expectations: Vec<Expectation>,
}

/// A single prompt's KV does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fit the KV of a prompt of {subject}, {} MiB, into {tier}: a round may fill {} MiB of it", needed >> 20, usable >> 20)]
pub struct TooLarge {
    /// The subject.
    pub subject: Subject,
    /// `LMCache's memory` or `vLLM's KV cache`.
    pub tier: &'static str,
    /// Bytes that the prompt takes.
    pub needed: u64,
    /// Bytes that a round may fill.
    pub usable: u64,
}

impl TooLarge {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        let blocks = if self.tier.starts_with('L') {
            ""
        } else {
            "; where it names `num_gpu_blocks_override`, raise that, and name `block_size` beside it unless that is 16"
        };
        format!("raise `{}` in the suite{blocks}", self.setting())
    }

    /// The setting that is too small.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        if self.tier.starts_with('L') { "lmcache.memory_gib" } else { "engine.kv_cache_gib" }
    }
}

impl Plan {
    /// Distinct whole chunks of the first prompts, which are whole rounds or all.
    #[must_use]
    pub fn distinct_chunks(&self, prompts: usize) -> u64 {
        let mut before = 0;
        let rounds = self.rounds.iter().take_while(|round| {
            let starts_before = before < prompts;
            before += round.prompts;
            starts_before
        });
        rounds.map(|round| round.new_chunks).sum()
    }

    /// Groups prompts into rounds that fit. The first round is short where it can be: a cache that serves nothing is then
    /// found out at once. A round may end within a subject, since some subjects take more than a GPU's memory.
    ///
    /// # Errors
    /// The outer result passes on an error of `prompts`; the inner one says that a single prompt does not fit.
    pub fn make<E>(
        prompts: impl IntoIterator<Item = Result<Prompt, E>>,
        capacity: Capacity,
    ) -> Result<Result<Self, TooLarge>, E> {
        let mut planner = Planner::new(capacity);
        for prompt in prompts {
            if let Err(too_large) = planner.add(&prompt?) {
                return Ok(Err(too_large));
            }
        }
        Ok(Ok(planner.finish()))
    }
}

/// The round that is being filled.
#[derive(Debug, Default)]
struct OpenRound {
    prompts: usize,
    /// Its distinct whole chunks.
    chunks: HashSet<Digest>,
    /// How many of them no earlier round has.
    new_chunks: u64,
    /// Tokens in vLLM's own blocks, tails included.
    tokens: u64,
}

struct Planner {
    capacity: Capacity,
    expectations: Vec<Expectation>,
    rounds: Vec<Round>,
    round: OpenRound,
    /// Chunks of all prompts so far.
    seen: HashSet<Digest>,
    /// Where a prompt is found as a whole or not at all: what was stored of each, by its last chunk.
    stored: HashSet<Digest>,
    /// What is looked for of each prompt, by its last chunk, where the prompt's own is not that.
    asked: Vec<(usize, Option<Digest>)>,
    /// Units that the load pass is served of any prompt so far, as they are kept.
    served: HashSet<Digest>,
}

impl Planner {
    fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            expectations: Vec::new(),
            rounds: Vec::new(),
            round: OpenRound::default(),
            seen: HashSet::new(),
            stored: HashSet::new(),
            asked: Vec::new(),
            served: HashSet::new(),
        }
    }

    fn add(&mut self, prompt: &Prompt) -> Result<(), TooLarge> {
        let chunk_tokens = self.capacity.chunk_tokens;
        let prompt_tokens =
            u32::try_from(prompt.token_ids.len()).expect("a prompt is shorter than 2^32 tokens");
        let rule = self.capacity.hits;
        let all = chunk_digests(&prompt.token_ids, chunk_tokens);
        let first =
            |units: u32| &all[..usize::try_from(units).map_or(all.len(), |units| units.min(all.len()))];
        let stored = first(rule.stored_units(prompt_tokens, chunk_tokens));
        let asked = first(rule.asked_units(prompt_tokens, chunk_tokens));
        let chunks = kept_chunks(stored, rule.found);
        let tokens = u64::from(prompt_tokens.next_multiple_of(chunk_tokens));

        let more = chunks.iter().filter(|chunk| !self.round.chunks.contains(chunk)).count() as u64;
        let joined = self.capacity.tiers(self.round.chunks.len() as u64 + more, self.round.tokens + tokens);
        let is_probe = self.rounds.is_empty() && self.round.prompts == PROBE;
        let is_full = self.round.prompts > 0 && joined.into_iter().any(|(_, needed, usable)| needed > usable);
        if is_probe || is_full {
            self.close_round();
        }
        self.capacity.admit(&prompt.question.subject, prompt_tokens)?;

        let shared = match rule.found {
            Found::Prefixes => asked.iter().take_while(|chunk| self.seen.contains(chunk)).count(),
            Found::Whole if asked.last().is_some_and(|last| self.stored.contains(last)) => asked.len(),
            Found::Whole => 0,
        };
        for chunk in chunks {
            self.round.new_chunks += u64::from(self.seen.insert(chunk));
            self.round.chunks.insert(chunk);
        }
        self.round.prompts += 1;
        self.round.tokens += tokens;
        self.stored.extend(stored.last().filter(|_| rule.found == Found::Whole));
        if rule.found == Found::Whole && asked.len() != stored.len() {
            self.asked.push((self.expectations.len(), asked.last().copied()));
        }
        let served = |units: usize| {
            let units = u32::try_from(units).expect("a prompt has fewer units than tokens");
            rule.served_tokens(prompt_tokens, units, chunk_tokens)
        };
        let shared_tokens =
            u32::try_from(shared).map_or(u32::MAX, |units| units.saturating_mul(chunk_tokens));
        let load = served(asked.len());
        let first_load = self.serve(&kept_chunks(asked, rule.found), load);
        let control = rule.of_control();
        self.expectations.push(Expectation {
            question: prompt.question.clone(),
            prompt_tokens,
            // What prompts have in common is whole units, whatever is served of a rest.
            store_at_most: shared_tokens.min(load),
            load,
            first_load,
            control: control.served_tokens(
                prompt_tokens,
                control.asked_units(prompt_tokens, chunk_tokens),
                chunk_tokens,
            ),
        });
        Ok(())
    }

    /// Notes that these units are served, to so many tokens in all; how many of these lie in units that no prompt before was
    /// served.
    fn serve(&mut self, units: &[Digest], tokens: u32) -> u32 {
        let (unit, mut left, mut first) = (self.capacity.chunk_tokens, tokens, 0);
        for kept in units {
            let of_unit = left.min(unit);
            left -= of_unit;
            if of_unit > 0 && self.served.insert(*kept) {
                first += of_unit;
            }
        }
        // A rest behind the last unit is no other prompt's.
        first + left
    }

    fn close_round(&mut self) {
        let round = std::mem::take(&mut self.round);
        let chunks = round.chunks.len() as u64;
        let OpenRound { prompts, new_chunks, tokens, .. } = round;
        self.rounds.push(Round { prompts, chunks, new_chunks, tokens });
    }

    fn finish(mut self) -> Plan {
        if self.round.prompts > 0 {
            self.close_round();
        }
        // What was stored of a prompt is not what is looked for: it is found if it is all that was stored of another one.
        for (place, last) in self.asked {
            if last.is_none_or(|last| !self.stored.contains(&last)) {
                let expectation = &mut self.expectations[place];
                (expectation.load, expectation.first_load) = (0, 0);
            }
        }
        Plan { rounds: self.rounds, expectations: self.expectations }
    }
}

/// What is kept of a prompt with these chunks: each of them once, or, where prompts are kept as wholes, once for each that
/// differs from all others.
fn kept_chunks(stored: &[Digest], found: Found) -> Vec<Digest> {
    match (found, stored.last()) {
        (Found::Whole, Some(last)) => {
            let of_whole = |chunk: &Digest| digest_bytes(&[*chunk.as_bytes(), *last.as_bytes()].concat());
            stored.iter().map(of_whole).collect()
        }
        _ => stored.to_vec(),
    }
}

/// A digest for each whole chunk: of its tokens and all before them, as in LMCache.
pub(crate) fn chunk_digests(token_ids: &[u32], chunk_tokens: u32) -> Vec<Digest> {
    let chunk = usize::try_from(chunk_tokens).expect("a chunk fits in memory");
    let mut chain = Vec::new();
    let digests = token_ids.chunks_exact(chunk).map(|tokens| {
        chain.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        let digest = digest_bytes(&chain);
        chain = digest.as_bytes().to_vec();
        digest
    });
    digests.collect()
}

/// Three quarters.
fn usable(bytes: u64) -> u64 {
    bytes / USABLE.1 * USABLE.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u32 = 4;
    const RULE: HitRule =
        HitRule { unit: HitUnit::Chunk, stored_less: 0, asked_less: 0, found: Found::Prefixes, rest: false };
    const CAPACITY: Capacity = Capacity {
        chunk_tokens: CHUNK,
        bytes_per_token: 10,
        lmcache_bytes: 4000,
        engine_bytes: 1 << 30,
        hits: RULE,
    };

    fn prompt(subject: &str, row: u32, token_ids: &[u32]) -> Prompt {
        let subject: Subject = subject.parse().unwrap();
        let question = QuestionId { subject, split: crate::dataset::Split::Test, row };
        Prompt { question, examples: 0, token_ids: token_ids.to_vec() }
    }

    fn plan(prompts: Vec<Prompt>, capacity: Capacity) -> Result<Plan, TooLarge> {
        Plan::make(prompts.into_iter().map(Ok::<_, std::convert::Infallible>), capacity).unwrap()
    }

    /// Prompts of ten tokens, two whole chunks each, that share nothing.
    fn distinct(subject: &str, count: u32) -> Vec<Prompt> {
        let start = subject.bytes().map(u32::from).sum::<u32>() * 1000;
        (1..=count)
            .map(|row| prompt(subject, row, &(0..10).map(|at| start + row * 10 + at).collect::<Vec<_>>()))
            .collect()
    }

    #[test]
    fn work_is_divided_into_rounds_that_hold_all_prompts() {
        let sizes = |prompts, size| -> Vec<usize> {
            Round::divide(prompts, size).iter().map(|round| round.prompts).collect()
        };
        assert_eq!(sizes(7, 3), [3, 3, 1]);
        assert_eq!(sizes(0, 3), [0; 0]);
        assert_eq!(sizes(2, 0), [1, 1]);
    }

    #[test]
    fn where_prompts_are_found_as_wholes_one_that_is_not_what_was_stored_of_it_is_found_as_another() {
        let rule = HitRule { stored_less: 1, asked_less: 2, found: Found::Whole, ..RULE };
        let capacity = Capacity { hits: rule, ..CAPACITY };
        // Of nine tokens two chunks are stored and one is looked for: that of the third prompt.
        let prompts = vec![
            prompt("law", 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
            prompt("law", 2, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
            prompt("law", 3, &[1, 2, 3, 4, 5, 6]),
            prompt("law", 4, &[9, 9, 9, 9, 5, 6, 7, 8, 9]),
        ];
        let plan = plan(prompts, capacity).unwrap();
        let seen: Vec<_> =
            plan.expectations.iter().map(|one| (one.store_at_most, one.load, one.control)).collect();
        // The second is stored by then as all of the first.
        assert_eq!(seen, [(0, 4, 8), (8, 8, 8), (0, 4, 4), (0, 0, 8)]);
        // A whole each, of which the first and the second are one.
        assert_eq!(plan.rounds[0].chunks, 2 + 1 + 2);
    }

    #[test]
    fn a_rest_is_served_and_is_not_shared() {
        let capacity = Capacity { hits: HitRule { rest: true, ..RULE }, ..CAPACITY };
        let prompts = vec![prompt("law", 1, &[1, 2, 3, 4, 5, 6]), prompt("law", 2, &[1, 2, 3, 4, 9, 9, 9])];
        let expectations = plan(prompts, capacity).unwrap().expectations;
        let seen: Vec<_> = expectations.iter().map(|one| (one.store_at_most, one.load)).collect();
        assert_eq!(seen, [(0, 5), (4, 6)]);
    }

    #[test]
    fn chunks_are_the_blocks_of_the_engine_where_the_rule_counts_blocks() {
        let blocks = Capacity { hits: HitRule { unit: HitUnit::Block, ..RULE }, ..CAPACITY };
        assert_eq!(blocks.with_blocks_of(16).chunk_tokens, 16);
        assert_eq!(CAPACITY.with_blocks_of(16), CAPACITY);
    }

    #[test]
    fn the_store_pass_may_be_served_the_chunks_that_an_earlier_prompt_begins_with() {
        let prompts = vec![
            prompt("law", 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
            prompt("law", 2, &[1, 2, 3, 4, 9, 9, 9, 9, 9]),
            // The second chunk's tokens were seen before, but after others.
            prompt("law", 3, &[7, 7, 7, 7, 5, 6, 7, 8, 9]),
        ];
        let expectations = plan(prompts, CAPACITY).unwrap().expectations;
        let seen: Vec<_> =
            expectations.iter().map(|one| (one.store_at_most, one.load, one.control)).collect();
        assert_eq!(seen, [(0, 8, 8), (4, 8, 8), (0, 8, 8)]);
    }

    #[test]
    fn what_is_served_first_is_counted_once_however_many_prompts_begin_with_it() {
        let prompts = vec![
            prompt("law", 1, &[1, 2, 3, 4, 5, 6, 7, 8]),
            prompt("law", 2, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
            prompt("law", 3, &[1, 2, 3, 4, 9, 9, 9, 9, 9]),
            prompt("law", 4, &[1, 2, 3, 4]),
        ];
        let first = |rule: HitRule, prompts: &[Prompt]| -> Vec<(u32, u32)> {
            let plan = plan(prompts.to_vec(), Capacity { hits: rule, ..CAPACITY }).unwrap();
            plan.expectations.iter().map(|one| (one.load, one.first_load)).collect()
        };
        // The last token of a prompt of whole chunks is never served, and what others have of its chunk is not its first.
        assert_eq!(first(RULE, &prompts), [(7, 7), (8, 0), (8, 4), (3, 0)]);
        // Sixty prompts that begin alike leave what is new of each.
        let alike: Vec<_> = (0..60).map(|row| prompt("law", row, &[1, 2, 3, 4, row, 6, 7, 8, 9])).collect();
        let seen = first(RULE, &alike);
        assert_eq!((seen[0], &seen[1..]), ((8, 8), &[(8, 4); 59][..]));
        // A rest is each prompt's own; wholes share nothing but with the very same whole.
        assert_eq!(first(HitRule { rest: true, ..RULE }, &prompts[1..3]), [(8, 8), (8, 4)]);
        let whole = HitRule { found: Found::Whole, ..RULE };
        assert_eq!(first(whole, &prompts), [(7, 7), (8, 0), (8, 8), (3, 3)]);
    }

    #[test]
    fn distinct_chunks_are_those_of_the_rounds_that_were_asked() {
        let plan = plan(distinct("law", 60), CAPACITY).unwrap();
        assert_eq!(plan.rounds.iter().map(|round| round.prompts).collect::<Vec<_>>(), [8, 37, 15]);
        assert_eq!([0, 8, 45, 60].map(|prompts| plan.distinct_chunks(prompts)), [0, 16, 90, 120]);
    }

    #[test]
    fn an_exact_multiple_of_the_chunk_has_a_control_that_computes_its_last_token_alone() {
        let expectations =
            plan(vec![prompt("law", 1, &[1, 2, 3, 4, 5, 6, 7, 8])], CAPACITY).unwrap().expectations;
        assert_eq!((expectations[0].load, expectations[0].control), (7, 7));
    }

    fn rounds(prompts: Vec<Prompt>, capacity: Capacity) -> Vec<(usize, u64)> {
        let plan = plan(prompts, capacity).unwrap();
        plan.rounds.iter().map(|round| (round.prompts, round.chunks)).collect()
    }

    #[test]
    fn a_round_takes_prompts_until_the_memory_is_full_and_the_first_round_is_a_short_probe() {
        // 80 bytes a prompt; a round may fill 3000 bytes, so 37 prompts.
        let prompts =
            ["anatomy", "biology", "chemistry", "law"].map(|subject| distinct(subject, 15)).concat();
        assert_eq!(rounds(prompts, CAPACITY), [(8, 16), (37, 74), (15, 30)]);
    }

    #[test]
    fn a_subject_that_does_not_fit_is_split_and_its_shared_chunks_take_room_in_each_round() {
        // One chunk shared by all, one of its own each: 40 + 40 bytes a prompt, in rounds of 400 * 3 / 4 bytes.
        let with_prefix = |row: u32| prompt("law", row, &[1, 2, 3, 4, row, row, row, row, 9]);
        let capacity = Capacity { lmcache_bytes: 400, ..CAPACITY };
        let prompts: Vec<_> = (1..=20).map(with_prefix).collect();
        assert_eq!(rounds(prompts.clone(), capacity), [(6, 7), (6, 7), (6, 7), (2, 3)]);
        let expectations = plan(prompts, capacity).unwrap().expectations;
        assert!(expectations[1..].iter().all(|one| (one.store_at_most, one.load) == (4, 8)));
    }

    #[test]
    fn a_prompt_that_does_not_fit_is_refused_with_its_size() {
        let error = plan(distinct("law", 1), Capacity { lmcache_bytes: 100, ..CAPACITY }).unwrap_err();
        assert_eq!((error.tier, error.needed, error.usable), ("LMCache's memory", 80, 75));
        assert_eq!(error.hint(), "raise `lmcache.memory_gib` in the suite");
    }

    #[test]
    fn vllms_own_cache_limits_a_round_too() {
        // 12 tokens in blocks: 120 bytes a prompt, 750 bytes a round.
        let capacity = Capacity { engine_bytes: 1000, ..CAPACITY };
        assert_eq!(rounds(distinct("law", 10), capacity), [(6, 12), (4, 8)]);
    }
}
