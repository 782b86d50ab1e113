//! The cut pass: behind the load pass of a round, prefixes of its prompts, which end at chunks. Main types: [`CutPass`],
//! [`CutRule`].
//!
//! A prompt that is loaded as a whole reads of a window only its last tokens, and of a state only the last; what was stored of
//! earlier ones is read by a prompt that ends there. Such a prompt is asked of the same engine while what was stored is still
//! there, several at a time as the suite says, and its KV is held against what was computed for the same tokens.

use std::collections::BTreeMap;

use super::files::PassName;
use super::rounds::{DealtRound, Pass};
use super::second_look::Looker;
use super::{Context, StageError};
use crate::carrier::{Carrier, Topology};
use crate::comparison::{self, shuffle_questions};
use crate::dataset::Prompt;
use crate::digest::digest_bytes;
use crate::engine::{EngineHits, Expectation, Plan, PrefixCache, Worker};
use crate::model::{Found, HitRule, QuestionId};

/// A prefix is asked of one of so many prompts.
const SHARE: usize = 5;
/// Tokens behind the last whole chunk of a prefix, at most.
const TAIL: usize = 16;
/// One of so many prefixes ends with a chunk.
const WHOLE: usize = 3;
/// Makes the order another one than that of the load pass.
const SALT: u64 = 0x0063_7574;

/// Which prefixes are asked, and in which order. Whether one is asked of a prompt, and which, depends on nothing but the seed, its
/// question and its length: a control asks the same, parts of a run ask together what the whole would, and so does a run that is
/// cut down to a few questions.
#[derive(Debug, Clone, Copy)]
pub(super) struct CutRule {
    /// Tokens of a chunk.
    chunk_tokens: usize,
    seed: u64,
}

impl CutRule {
    /// With chunks of so many tokens.
    pub(super) fn new(chunk_tokens: u32, seed: u64) -> Self {
        Self { chunk_tokens: usize::try_from(chunk_tokens).unwrap_or(usize::MAX).max(1), seed: seed ^ SALT }
    }

    /// So many prefixes are asked of a plan's prompts.
    pub(super) fn count(self, plan: &Plan) -> usize {
        let length = |tokens| usize::try_from(tokens).unwrap_or(usize::MAX);
        let is_cut =
            |one: &&Expectation| self.length_of_prefix(&one.question, length(one.prompt_tokens)).is_some();
        plan.expectations.iter().filter(is_cut).count()
    }

    /// The prefixes of a round, each under the question of its prompt: some whole chunks and a short tail, or none.
    pub(super) fn cut(self, prompts: &[Prompt]) -> Vec<Prompt> {
        let prefix = |whole: &Prompt| {
            let length = self.length_of_prefix(&whole.question, whole.token_ids.len())?;
            Some(Prompt { token_ids: whole.token_ids[..length].to_vec(), ..whole.clone() })
        };
        let mut prefixes: BTreeMap<QuestionId, Prompt> =
            prompts.iter().filter_map(prefix).map(|prefix| (prefix.question.clone(), prefix)).collect();
        let order = shuffle_questions(prefixes.keys().cloned().collect(), self.seed);
        order.iter().filter_map(|question| prefixes.remove(question)).collect()
    }

    /// How many tokens of a prompt are asked, if any are: always fewer than all of them, and a chunk at least.
    fn length_of_prefix(self, question: &QuestionId, length: usize) -> Option<usize> {
        let chunk = self.chunk_tokens;
        let choices = length.checked_sub(1)? / chunk;
        let drawn = digest_bytes(format!("{} {question}", self.seed).as_bytes());
        let [is_asked, chunks, is_whole] = [0, 4, 8].map(|start| {
            let bytes = drawn.as_bytes().iter().skip(start).take(4);
            bytes.fold(0_usize, |number, byte| (number << 8) | usize::from(*byte))
        });
        if choices == 0 || !is_asked.is_multiple_of(SHARE) {
            return None;
        }
        let end = (1 + chunks % choices) * chunk;
        let tail = if is_whole.is_multiple_of(WHOLE) { 0 } else { TAIL.min(chunk - 1).min(length - 1 - end) };
        Some(end + tail)
    }
}

/// So many prefixes are asked of so many prompts, about.
pub(crate) fn about_cuts(prompts: usize) -> usize {
    prompts / SHARE
}

/// Tokens that a prefix must be served of a stored prompt of so many tokens, exactly.
pub(super) fn predicted(rule: HitRule, whole_tokens: u32, prefix_tokens: u32, unit_tokens: u32) -> u32 {
    let asked = rule.asked_units(prefix_tokens, unit_tokens);
    let stored = rule.stored_units(whole_tokens, unit_tokens);
    rule.served_tokens(prefix_tokens, asked.min(stored), unit_tokens)
}

/// Why a carrier is asked for no prefixes, if it is not.
pub(super) fn left_out(carrier: &dyn Carrier) -> Option<&'static str> {
    let rule = carrier.hits();
    if carrier.topology() == Topology::ProducerAndConsumer {
        Some("an engine hands KV over for each prompt by itself, so nothing that was stored serves a prefix")
    } else if rule.found == Found::Whole {
        Some("what is stored of a prompt is found as a whole or not at all, and so never for a prefix")
    } else if rule.rest {
        Some(
            "the rest behind a prompt's last whole unit is served, too, and that of a prefix was never stored",
        )
    } else if carrier.loads_fail() {
        Some("loads are made to fail, so what a prefix must be served cannot be said")
    } else {
        None
    }
}

/// A cut pass under way; nothing is asked where it is left out.
pub(super) struct CutPass<'a> {
    asked: Option<(Pass<'a>, CutRule)>,
}

impl<'a> CutPass<'a> {
    /// Of a carrier's rounds.
    pub(super) fn of(
        context: &Context<'a>,
        carrier: &dyn Carrier,
        (plan, rule): (&Plan, CutRule),
        looker: &'a Looker<'a>,
    ) -> Result<Self, StageError> {
        if left_out(carrier).is_some() {
            return Ok(Self { asked: None });
        }
        let pass = Pass::of(context, PassName::Cut, rule.count(plan))?;
        Ok(Self { asked: Some((pass.looked_at(looker, comparison::Pass::Cut), rule)) })
    }

    /// Asks prefixes of a round that was loaded, all at once.
    pub(super) async fn ask(&self, worker: &mut Worker, round: &DealtRound<'_>) -> Result<(), StageError> {
        let Some((pass, rule)) = &self.asked else { return Ok(()) };
        let prefixes = rule.cut(&round.prompts);
        if !prefixes.is_empty() {
            pass.score(worker, round, &prefixes, PrefixCache::Read).await?;
        }
        pass.is_over(round)
    }

    /// Tokens that vLLM counts as served.
    pub(super) fn finish(self) -> Result<EngineHits, StageError> {
        let Some((pass, _)) = self.asked else { return Ok(EngineHits::default()) };
        let hits = pass.hits();
        pass.finish()?;
        Ok(hits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::carrier::find_carrier;
    use crate::dataset::Split;
    use crate::model::Route;

    fn prompt(row: u32, tokens: u32) -> Prompt {
        let question = QuestionId { subject: "law".parse().unwrap(), split: Split::Test, row };
        Prompt { question, examples: 0, token_ids: (0..tokens).collect() }
    }

    const RULE: CutRule = CutRule { chunk_tokens: 4, seed: 7 };

    #[test]
    fn a_prefix_is_asked_of_a_fifth_of_the_prompts_and_ends_with_a_chunk_or_a_few_tokens_behind_one() {
        let prompts: Vec<Prompt> = (1..=1000).map(|row| prompt(row, 5 + row % 36)).collect();
        let cut = RULE.cut(&prompts);
        assert!((150..250).contains(&cut.len()), "{}", cut.len());
        for prefix in &cut {
            let whole = prompts.iter().find(|prompt| prompt.question == prefix.question).unwrap();
            let length = prefix.token_ids.len();
            assert!(length >= 4 && length < whole.token_ids.len());
            assert_eq!(prefix.token_ids[..], whole.token_ids[..length]);
        }
        let ends = |rest: usize| cut.iter().filter(|prefix| prefix.token_ids.len() % 4 == rest).count();
        assert!(ends(0) > cut.len() / 5 && ends(3) > cut.len() / 5, "{} {}", ends(0), ends(3));
        let chunks: BTreeSet<usize> = cut.iter().map(|prefix| prefix.token_ids.len() / 4).collect();
        assert_eq!(chunks, (1..=9).collect(), "each of a prompt's chunks is an end");
        let short: Vec<Prompt> = (1..=1000).map(|row| prompt(row, row % 5)).collect();
        assert_eq!(RULE.cut(&short), [], "a prompt of a chunk or less has no prefix with a chunk");
    }

    #[test]
    fn what_is_asked_of_a_prompt_does_not_depend_on_the_others() {
        let mut prompts: Vec<Prompt> = (1..=40).map(|row| prompt(row, 30)).collect();
        let cut = RULE.cut(&prompts);
        let alone: BTreeSet<_> =
            prompts.chunks(7).flat_map(|part| RULE.cut(part)).map(|one| one.token_ids.len()).collect();
        assert_eq!(alone, cut.iter().map(|one| one.token_ids.len()).collect());
        prompts.reverse();
        assert_eq!(RULE.cut(&prompts), cut);
        assert_ne!(CutRule { seed: 8, ..RULE }.cut(&prompts), cut);
    }

    #[test]
    fn a_prefix_is_served_the_chunks_that_are_in_it() {
        let lmcache = |prefix| predicted(HitRule::default(), 14, prefix, 4);
        assert_eq!([4, 5, 8, 11, 12].map(lmcache), [3, 4, 7, 8, 11]);
        // Of thirteen tokens, the last of which is not stored, the fourth unit is not there either.
        let less = HitRule { stored_less: 1, ..HitRule::default() };
        assert_eq!([8, 9, 12].map(|prefix| predicted(less, 12, prefix, 4)), [7, 8, 8]);
    }

    #[test]
    fn carriers_that_serve_no_prefix_are_left_out_with_a_reason() {
        let is_asked = |route| left_out(find_carrier(Route::named(route)).unwrap()).is_none();
        let routes = ["mp", "mp+fs", "mp+restart", "in-process", "offload", "example", "nixl", "mp+failing"];
        assert_eq!(routes.map(is_asked), [true, true, true, true, true, false, false, false]);
    }
}
