//! What LMCache has to hold and must serve, worked out before anything starts. Main types: [`Plan`], [`Expectation`].
//!
//! Each round stores some subjects and loads them again before the next round starts, so that no hit is lost to
//! eviction. Hits follow from token ids and chunk size alone.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::dataset::{Prompt, QuestionId, Subject};
use crate::digest::{Digest, digest_bytes};

/// Part of a tier that one round may fill: LMCache starts to evict at 0.8, in steps of 0.2.
const USABLE: f64 = 0.75;

/// The limits that rounds are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens of one chunk.
    pub chunk_tokens: u32,
    /// Bytes of one token's KV.
    pub bytes_per_token: u64,
    /// Bytes of LMCache's memory tier.
    pub lmcache_bytes: u64,
    /// Bytes of vLLM's own KV cache, which holds a round of the control.
    pub engine_bytes: u64,
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
    /// Tokens that vLLM's own prefix cache must serve in the control.
    pub control: u32,
}

/// Some consecutive subjects, stored and then loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// How many prompts.
    pub prompts: usize,
    /// Distinct whole chunks of these prompts.
    pub chunks: u64,
}

/// The rounds, and what to expect of each question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Rounds in the order of asking.
    pub rounds: Vec<Round>,
    /// One for each prompt, in the order of asking.
    pub expectations: Vec<Expectation>,
}

/// One subject's KV does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fit the KV of subject {subject}, {} MiB, into {tier}: a round may fill {} MiB of it", needed >> 20, usable >> 20)]
pub struct TooLarge {
    /// The subject.
    pub subject: Subject,
    /// `LMCache's memory` or `vLLM's KV cache`.
    pub tier: &'static str,
    /// Bytes that the subject takes.
    pub needed: u64,
    /// Bytes that a round may fill.
    pub usable: u64,
}

impl TooLarge {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        let setting = if self.tier.starts_with('L') { "lmcache.memory_gib" } else { "engine.kv_cache_gib" };
        format!("raise `{setting}` in the suite")
    }
}

/// Tokens that LMCache serves of a prompt whose whole chunks are all stored: whole chunks, and one token less where
/// that is all of the prompt, since the last token must be computed to have an answer.
#[must_use]
pub fn full_hit(prompt_tokens: u32, chunk_tokens: u32) -> u32 {
    let whole = prompt_tokens / chunk_tokens * chunk_tokens;
    if whole == prompt_tokens { whole.saturating_sub(1) } else { whole }
}

impl Plan {
    /// Groups prompts, which come subject by subject, into rounds that fit.
    ///
    /// # Errors
    /// When a single subject does not fit.
    pub fn make<E>(
        prompts: impl IntoIterator<Item = Result<Prompt, E>>,
        capacity: Capacity,
    ) -> Result<Result<Self, TooLarge>, E> {
        let mut planner = Planner { capacity, plan: Self { rounds: Vec::new(), expectations: Vec::new() }, open: None };
        for prompt in prompts {
            if let Err(too_large) = planner.add(&prompt?) {
                return Ok(Err(too_large));
            }
        }
        Ok(Ok(planner.finish()))
    }
}

/// The subject being read, and the round that it may join.
struct Open {
    subject: Subject,
    prompts: usize,
    chunks: HashSet<Digest>,
    /// Tokens in vLLM's own blocks, tails included.
    tokens: u64,
    round: Option<(Round, u64)>,
}

struct Planner {
    capacity: Capacity,
    plan: Plan,
    open: Option<Open>,
}

impl Planner {
    fn add(&mut self, prompt: &Prompt) -> Result<(), TooLarge> {
        let subject = &prompt.question.subject;
        if self.open.as_ref().is_none_or(|open| open.subject != *subject) {
            let round = self.open.take().map(|open| self.close(open));
            let subject = subject.clone();
            self.open = Some(Open { subject, prompts: 0, chunks: HashSet::new(), tokens: 0, round: round.flatten() });
        }
        let open = self.open.as_mut().expect("a subject was opened above");
        let chunk = usize::try_from(self.capacity.chunk_tokens).expect("a chunk fits in memory");
        let mut shared = 0;
        let mut chain = Vec::new();
        for tokens in prompt.token_ids.chunks_exact(chunk) {
            chain.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
            let digest = digest_bytes(&chain);
            chain = digest.as_bytes().to_vec();
            if open.chunks.insert(digest) {
                continue;
            }
            shared += self.capacity.chunk_tokens;
        }
        let prompt_tokens = u32::try_from(prompt.token_ids.len()).expect("a prompt is shorter than 2^32 tokens");
        let load = full_hit(prompt_tokens, self.capacity.chunk_tokens);
        let whole = prompt_tokens.saturating_sub(1) / self.capacity.chunk_tokens * self.capacity.chunk_tokens;
        self.plan.expectations.push(Expectation {
            question: prompt.question.clone(),
            prompt_tokens,
            store_at_most: shared.min(load),
            load,
            control: whole,
        });
        open.prompts += 1;
        open.tokens += u64::from(prompt_tokens.next_multiple_of(self.capacity.chunk_tokens));
        let cached = open.chunks.len() as u64 * u64::from(self.capacity.chunk_tokens);
        let limits = [("LMCache's memory", cached, self.lmcache_usable()), ("vLLM's KV cache", open.tokens, self.engine_usable())];
        for (tier, tokens, usable) in limits {
            let needed = tokens * self.capacity.bytes_per_token;
            if needed > usable {
                return Err(TooLarge { subject: open.subject.clone(), tier, needed, usable });
            }
        }
        Ok(())
    }

    /// Ends a subject: it joins the round before it, or that round is done and it starts the next one, which is returned.
    fn close(&mut self, open: Open) -> Option<(Round, u64)> {
        let own = Round { prompts: open.prompts, chunks: open.chunks.len() as u64 };
        let Some((round, tokens)) = open.round else { return Some((own, open.tokens)) };
        let joined = Round { prompts: round.prompts + own.prompts, chunks: round.chunks + own.chunks };
        let joined_tokens = tokens + open.tokens;
        let chunk_bytes = u64::from(self.capacity.chunk_tokens) * self.capacity.bytes_per_token;
        let fits = joined.chunks * chunk_bytes <= self.lmcache_usable()
            && joined_tokens * self.capacity.bytes_per_token <= self.engine_usable();
        if fits {
            return Some((joined, joined_tokens));
        }
        self.plan.rounds.push(round);
        Some((own, open.tokens))
    }

    fn finish(mut self) -> Plan {
        if let Some(last) = self.open.take().and_then(|open| self.close(open)) {
            self.plan.rounds.push(last.0);
        }
        self.plan
    }

    fn lmcache_usable(&self) -> u64 {
        usable(self.capacity.lmcache_bytes)
    }

    fn engine_usable(&self) -> u64 {
        usable(self.capacity.engine_bytes)
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of memory")]
fn usable(bytes: u64) -> u64 {
    (bytes as f64 * USABLE) as u64
}
