//! Conversations over a cache: a prompt, what the model answers, a follow-up that holds both, and so on. Pure.
//!
//! Owns what each turn must be served, whether the KV that it was served is KV that an engine computed for the same tokens, those that it
//! generated itself among them, and what that comes to; leaves asking to `stage::turns`. Main types: [`TurnsFindings`],
//! [`Turn`].

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::{Judgement, Provenance, Rung, Verdict, nats};
use crate::dataset::{QuestionId, Split};
use crate::model::{ChunkDigests, KvRecord, Observation, Step};

/// What the turns of conversations are called in records: `turn_3/test/1` is the third turn of the first conversation.
const NAMED: &str = "turn";

/// What conversations of one model over one route showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TurnsFindings {
    /// Whether KV of generated tokens is stored, too (`save_decode_cache`).
    pub saves_answers: bool,
    /// Tokens of a chunk, and of a block of vLLM's.
    pub chunk_tokens: u32,
    /// Tokens that each turn generates.
    pub answer_tokens: u32,
    /// The turn, from 1, ahead of which the engine was ended and another one started; `None`: it never was.
    pub restarted_before: Option<u32>,
    /// How far a letter's log-probability may be from that of an engine that kept its KV, in nats.
    pub tolerance: f64,
    /// Every turn, conversation by conversation.
    pub turns: Vec<Turn>,
}

/// One turn of one conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Which conversation, from 1.
    pub conversation: u32,
    /// Which turn of it, from 1.
    pub turn: u32,
    /// Tokens of its prompt, all earlier turns and their answers among them.
    pub prompt_tokens: u32,
    /// Tokens that the cache must serve: whole chunks of what the turn before had stored.
    pub expected_tokens: u32,
    /// Tokens that it served.
    pub served_tokens: u32,
    /// The cells that it was served, and computed.
    pub cells: Cells,
    /// Whether log-probabilities were no numbers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_numbers: bool,
    /// What an engine that kept its own KV from turn to turn answered, where it was served as many tokens.
    pub kept: Option<Likeness>,
    /// What an engine that computed everything afresh answered.
    pub fresh: Likeness,
}

/// Cells (a chunk in a layer on a rank) that a turn was served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cells {
    /// All that have a digest.
    pub served: u64,
    /// Of these, such as hold what an engine computed while it generated an answer.
    pub generated: u64,
    /// That are no copy of what an engine computed for the same tokens, of lossy storage with a declared arithmetic of what that makes of it.
    pub wrong: u64,
    /// That have no digest, or whose tokens nobody was seen to compute.
    pub unseen: u64,
    /// The first wrong one.
    pub first_wrong: Option<String>,
}

impl Cells {
    /// What was traced of one turn; so many of its served cells hold what was computed for an answer.
    #[must_use]
    pub fn of(traced: &Provenance, generated: u64) -> Self {
        Self {
            served: traced.served,
            generated,
            wrong: traced.wrong_cells(),
            unseen: traced.missing + traced.not_digested + traced.without_origin,
            // The pass and the turn are told with it.
            first_wrong: traced.first.first().map(|cell| {
                let words = cell.words();
                words.split_once(" pass, ").map_or(words.clone(), |(_, cell)| cell.to_owned())
            }),
        }
    }
}

/// The name of a turn in records; both are counted from 1.
#[must_use]
pub fn turn_id(conversation: u32, turn: u32) -> QuestionId {
    let subject = format!("{NAMED}_{turn}").parse().expect("letters, digits and underscores name a subject");
    QuestionId { subject, split: Split::Test, row: conversation }
}

/// How many of each turn's served cells hold what an engine computed while it generated an answer, of whichever turn. Each turn comes with the
/// number of whole chunks of its prompt.
#[must_use]
pub fn generated_cells(turns: &[(usize, &KvRecord)]) -> Vec<u64> {
    let of_answer = |(of_prompt, record): &(usize, &'_ KvRecord)| -> Vec<u128> {
        let is_behind =
            |chunk: &&ChunkDigests| usize::try_from(chunk.chunk).is_ok_and(|chunk| chunk >= *of_prompt);
        let computed = chunks_of(record).iter().filter(|chunk| !chunk.served).filter(is_behind);
        computed.flat_map(|chunk| chunk.first.iter().flatten()).collect()
    };
    let of_answers: HashSet<u128> = turns.iter().flat_map(of_answer).collect();
    let served = |(_, record): &(usize, &'_ KvRecord)| {
        let digests =
            chunks_of(record).iter().filter(|chunk| chunk.served).flat_map(|chunk| chunk.first.iter());
        digests.flatten().filter(|digest| of_answers.contains(digest)).count() as u64
    };
    turns.iter().map(served).collect()
}

fn chunks_of(record: &KvRecord) -> &[ChunkDigests] {
    match record {
        KvRecord::Request { chunks, .. } => chunks,
        KvRecord::NotObserved { .. } => &[],
    }
}

/// How near another engine's answer to the same prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Likeness {
    /// All log-probabilities of all generated tokens are equal to the last bit.
    pub is_equal: bool,
    /// Largest difference of a letter's log-probability at the first generated token, in nats.
    pub letters: f64,
    /// Largest difference of a chosen token's log-probability, in nats, up to the first token that the other answer has not. Of a token
    /// that is not among the other's most likely ones, the least that it can be.
    #[serde(default)]
    pub chosen: f64,
}

impl Likeness {
    /// How near two answers to the same prompt are.
    #[must_use]
    pub fn of(one: &Observation, other: &Observation) -> Self {
        let letters = one.letters.iter().zip(other.letters).map(|(one, other)| (one - other).abs());
        let letters = letters.fold(0.0, f64::max);
        let mut chosen: f64 = 0.0;
        for (one, other) in one.steps.iter().zip(&other.steps) {
            chosen = chosen.max(difference(one, other));
            // What follows another token is another text.
            if one.chosen.token != other.chosen.token {
                break;
            }
        }
        let is_equal = one.steps == other.steps && letters <= 0.0;
        Self { is_equal, letters, chosen }
    }

    /// The larger of both differences, in nats.
    #[must_use]
    pub fn farthest(self) -> f64 {
        self.letters.max(self.chosen)
    }
}

/// How far the log-probability of the token that was chosen here is from that which it has there, in nats.
fn difference(here: &Step, there: &Step) -> f64 {
    let known = [&there.chosen].into_iter().chain(&there.top);
    if let Some(same) = known.clone().find(|token| token.token == here.chosen.token) {
        return (here.chosen.nats() - same.nats()).abs();
    }
    let least = known.map(|token| token.nats()).fold(f64::INFINITY, f64::min);
    (here.chosen.nats() - least).max(0.0)
}

/// Tokens that a turn must be served: whole chunks of the turn before it, whose prompt had so many tokens and whose answer so many.
/// The KV of the last generated token is never computed.
#[must_use]
pub fn expected_tokens(before: (u32, u32), chunk_tokens: u32, saves_answers: bool) -> u32 {
    let (prompt, answer) = before;
    let stored = if saves_answers { prompt + answer.saturating_sub(1) } else { prompt };
    stored / chunk_tokens * chunk_tokens
}

impl TurnsFindings {
    /// What the turns come to. What is wrong is told ahead of what is missing.
    #[must_use]
    pub fn judge(&self) -> Judgement {
        let judged = |verdict, decided_by, reason: String, next_step: &str| Judgement {
            verdict,
            decided_by,
            reason,
            next_step: next_step.to_owned(),
        };
        let place = |turn: &Turn| format!("turn {} of conversation {}", turn.turn, turn.conversation);
        let sum = |of: fn(&Cells) -> u64| self.turns.iter().map(|turn| of(&turn.cells)).sum::<u64>();
        let wrong = self.turns.iter().find_map(|turn| Some((turn, turn.cells.first_wrong.as_ref()?)));
        if let Some((turn, cell)) = wrong {
            let cells = sum(|cells| cells.wrong);
            let reason = format!(
                "{cells} served cells are no copies of computed ones (first: {}, {cell}).",
                place(turn)
            );
            return judged(Verdict::Degraded, Rung::Kv, reason, LOOK_AT_TURN);
        }
        if let Some(turn) = self.turns.iter().find(|turn| turn.served_tokens > turn.expected_tokens) {
            let Turn { served_tokens, expected_tokens, .. } = turn;
            let reason = format!(
                "In {} {served_tokens} tokens were served, where {expected_tokens} can have been stored.",
                place(turn)
            );
            return judged(Verdict::Degraded, Rung::Exercised, reason, LOOK_AT_TURN);
        }
        if let Some(turn) = self.turns.iter().find(|turn| turn.no_numbers) {
            let reason = format!("In {} log-probabilities are no numbers.", place(turn));
            return judged(Verdict::Degraded, Rung::Distribution, reason, LOOK_AT_TURN);
        }
        let far = |turn: &&Turn| turn.kept.is_some_and(|kept| kept.farthest() > self.tolerance);
        if let Some((turn, kept)) = self.turns.iter().find(far).and_then(|turn| Some((turn, turn.kept?))) {
            let reason = format!(
                "In {} the answer is another than that of an engine that kept its KV: log-probabilities move by up to {} nats, where {} \
                 are allowed.",
                place(turn),
                nats(kept.farthest()),
                nats(self.tolerance)
            );
            return judged(Verdict::Degraded, Rung::Distribution, reason, LOOK_AT_TURN);
        }
        if let Some(turn) = self.turns.iter().find(|turn| turn.served_tokens < turn.expected_tokens) {
            let Turn { served_tokens, expected_tokens, .. } = turn;
            let reason =
                format!("In {} {served_tokens} of {expected_tokens} tokens were served.", place(turn));
            return judged(Verdict::NotExercised, Rung::Exercised, reason, LOOK_AT_LOGS);
        }
        let (served, unseen) = (sum(|cells| cells.served), sum(|cells| cells.unseen));
        if served == 0 || unseen > 0 {
            let reason = format!(
                "{unseen} served cells have no digest or no origin, beside {served} that have, so nothing is shown."
            );
            return judged(Verdict::NotExercised, Rung::Kv, reason, LOOK_AT_LOGS);
        }
        let held = self.turns.iter().filter(|turn| turn.kept.is_some()).count();
        let longest = self.turns.iter().map(|turn| turn.prompt_tokens).max().unwrap_or(0);
        let reason = format!(
            "All {served} served cells are copies of computed ones, {} of them of chunks that an answer completed, over prompts of up to \
             {longest} tokens. {held} of {} answers are held against an engine that kept its KV.",
            sum(|cells| cells.generated),
            self.turns.len()
        );
        judged(Verdict::Equivalent, Rung::Kv, reason, "Nothing to do.")
    }
}

const LOOK_AT_TURN: &str = "Read the table of turns: whether it begins behind the turn where another engine went on, or where an answer \
                            completes a chunk.";
const LOOK_AT_LOGS: &str = "Read the logs of that engine and of what served it.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TokenLogprob;

    fn turn(turn: u32, served_tokens: u32) -> Turn {
        let likeness = Likeness { is_equal: true, letters: 0.0, chosen: 0.0 };
        let cells = Cells { served: 4, generated: 1, ..Cells::default() };
        let (kept, fresh, no_numbers) = (Some(likeness), likeness, false);
        Turn {
            no_numbers,
            conversation: 1,
            turn,
            prompt_tokens: 100,
            expected_tokens: 64,
            served_tokens,
            cells,
            kept,
            fresh,
        }
    }

    fn findings(turns: Vec<Turn>) -> TurnsFindings {
        let (saves_answers, chunk_tokens, answer_tokens, tolerance) = (true, 32, 64, 0.25);
        TurnsFindings {
            saves_answers,
            chunk_tokens,
            answer_tokens,
            restarted_before: Some(2),
            tolerance,
            turns,
        }
    }

    /// An answer of these tokens, each with the log-probability that was chosen and one of token 9.
    fn answer(steps: &[(u32, f32, f32)]) -> Observation {
        let step = |&(token, chosen, other): &(u32, f32, f32)| Step {
            chosen: TokenLogprob { token, logprob: chosen },
            top: vec![TokenLogprob { token, logprob: chosen }, TokenLogprob { token: 9, logprob: other }],
        };
        Observation {
            question: turn_id(1, 1),
            prompt_tokens: 100,
            cached_tokens: 64,
            preemptions: 0,
            served_again: Vec::new(),
            letters: [-1.0; 4],
            no_numbers: false,
            steps: steps.iter().map(step).collect(),
        }
    }

    #[test]
    fn answers_are_held_token_by_token_up_to_the_first_other_one() {
        let chosen = |one: &[_], other: &[_]| Likeness::of(&answer(one), &answer(other)).chosen;
        let one = [(5, -0.25, -3.0), (6, -0.5, -2.0)];
        assert!(Likeness::of(&answer(&one), &answer(&one)).is_equal);
        // The first token's letters say nothing of a later one.
        for (one, other, expected) in [
            (&one[..], &[(5, -0.25, -3.0), (6, -1.5, -2.0)][..], 1.0),
            // There it is unlikelier than token 9.
            (&one, &[(5, -0.25, -3.0), (7, -0.5, -2.0)], 1.5),
            // What follows is another text.
            (&one, &[(9, -0.25, -3.0), (6, -4.0, -5.0)], 2.75),
            // A near tie.
            (&[(9, -0.5, -0.5)], &[(5, -0.5, -0.75)], 0.25),
        ] {
            let found = chosen(one, other);
            assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
        }
    }

    #[test]
    fn the_last_generated_token_has_no_kv_to_store() {
        assert_eq!(expected_tokens((33, 64), 32, true), 96);
        assert_eq!(expected_tokens((32, 64), 32, true), 64);
        assert_eq!(expected_tokens((63, 64), 32, false), 32);
    }

    #[test]
    fn each_turn_is_held_to_its_cells_its_hits_and_an_engine_that_kept_its_kv() {
        let of = |turns| findings(turns).judge();
        let right = of(vec![turn(1, 64), turn(2, 64)]);
        assert_eq!((right.verdict, right.decided_by), (Verdict::Equivalent, Rung::Kv));
        insta::assert_snapshot!(right.reason, @"All 8 served cells are copies of computed ones, 2 of them of chunks that an answer completed, over prompts of up to 100 tokens. 2 of 2 answers are held against an engine that kept its KV.");
        let less = of(vec![turn(1, 64), turn(2, 32)]);
        assert_eq!((less.verdict, less.decided_by), (Verdict::NotExercised, Rung::Exercised));
        assert_eq!(less.reason, "In turn 2 of conversation 1 32 of 64 tokens were served.");
        let more = of(vec![turn(1, 96)]);
        assert_eq!((more.verdict, more.decided_by), (Verdict::Degraded, Rung::Exercised));
        let mut wrong = turn(3, 64);
        wrong.cells.wrong = 2;
        wrong.cells.first_wrong = Some("chunk 5, one, rank 0".to_owned());
        // Wrong KV is told ahead of what is missing.
        let wrong = of(vec![turn(2, 32), wrong]);
        assert_eq!((wrong.verdict, wrong.decided_by), (Verdict::Degraded, Rung::Kv));
        assert!(
            wrong.reason.contains("first: turn 3 of conversation 1, chunk 5, one, rank 0"),
            "{}",
            wrong.reason
        );
        let mut far = turn(1, 64);
        for (letters, chosen) in [(0.5, 0.0), (0.0, 0.5)] {
            far.kept = Some(Likeness { is_equal: false, letters, chosen });
            assert_eq!(of(vec![far.clone()]).decided_by, Rung::Distribution);
        }
        let mut unseen = turn(1, 64);
        unseen.cells.unseen = 1;
        assert_eq!(of(vec![unseen]).verdict, Verdict::NotExercised);
    }
}
