//! Which request is asked when, and which are broken off, by a seed. Main type: [`Schedule`].

use super::draws::Draws;
use crate::dataset::{Prompt, QuestionId, Split};
use crate::model::{CutOff, PlannedRequest};
use crate::suite::PressureSettings;

/// Prefixes that the requests of a schedule share.
const FAMILIES: usize = 4;
/// Requests that are asked one by one, and then again, before there is any pressure.
const CALM: usize = 3;
/// Of so many requests, one repeats an earlier one, and one each is broken off while storing and while loading.
const REPEATS: usize = 3;
const CUT_OFF: usize = 7;
/// Seeds that a request's name can bear.
const NAMED: &str = "seed";

/// What one seed has an engine asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Requests one by one, which are asked twice: where nothing contends and nothing was evicted, the second time must be served.
    pub calm: Vec<PlannedRequest>,
    /// Requests that meet: they arrive as others end.
    pub pressed: Vec<PlannedRequest>,
}

/// Prompts of which no schedule can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "put an engine under pressure: the suite's prompts have {tokens} tokens together, and {needed} are needed"
)]
pub struct NoPrompts {
    /// Tokens of the suite's prompts.
    pub tokens: usize,
    /// Tokens that one request may have.
    pub needed: usize,
}

/// The name of a request in findings: `seed_3/test/17`.
#[must_use]
pub fn request_id(seed: u32, number: usize) -> QuestionId {
    let subject = format!("{NAMED}_{seed}").parse().expect("letters, digits and underscores name a subject");
    QuestionId { subject, split: Split::Test, row: u32::try_from(number).unwrap_or(u32::MAX) }
}

impl Schedule {
    /// That of a seed, of pieces of these prompts. `unit` is what the connector stores as a whole, in tokens.
    ///
    /// # Errors
    /// When the prompts are too short.
    pub fn make(
        prompts: &[Prompt],
        settings: PressureSettings,
        seed: u32,
        unit: u32,
    ) -> Result<Self, NoPrompts> {
        let text: Vec<u32> = prompts.iter().flat_map(|prompt| prompt.token_ids.iter().copied()).collect();
        let size = |tokens: u32| usize::try_from(tokens).unwrap_or(usize::MAX);
        let longest = size(settings.max_model_len.saturating_sub(settings.answer_tokens));
        if text.len() < 2 * longest || longest < 2 {
            return Err(NoPrompts { tokens: text.len(), needed: 2 * longest });
        }
        let mut maker = Maker { text, draws: Draws::of(seed), unit: size(unit).max(2), longest };
        let families: Vec<Vec<u32>> =
            (0..FAMILIES).map(|_| maker.piece(longest / 4, longest / 2 - 1)).collect();
        let mut after = 0;
        let calm: Vec<PlannedRequest> = (0..CALM)
            .map(|number| {
                let token_ids = maker.prompt(families.get(number));
                let planned = PlannedRequest { token_ids, after, answer_tokens: 2, cut_off: None };
                after += 1;
                planned
            })
            .collect();
        let mut pressed: Vec<PlannedRequest> = Vec::new();
        for number in 0..settings.requests {
            let again = maker.draws.below(REPEATS) == 0;
            let token_ids = if let Some(earlier) = maker.draws.choose(&pressed).filter(|_| again) {
                earlier.token_ids.clone()
            } else {
                let family = maker.draws.below(FAMILIES);
                maker.prompt(families.get(family))
            };
            let cut_off = match maker.draws.below(CUT_OFF) {
                0 => Some(CutOff::Storing),
                1 => settings.abort_loads.then_some(CutOff::Loading),
                _ => None,
            };
            let answers =
                [settings.answer_tokens, settings.answer_tokens, settings.answer_tokens.div_ceil(4)];
            let answer_tokens = maker.draws.choose(&answers).copied().unwrap_or(settings.answer_tokens);
            let after = number.saturating_sub(settings.sequences.saturating_sub(1));
            pressed.push(PlannedRequest { token_ids, after, answer_tokens, cut_off });
        }
        Ok(Self { calm, pressed })
    }
}

struct Maker {
    text: Vec<u32>,
    draws: Draws,
    unit: usize,
    longest: usize,
}

impl Maker {
    /// So many tokens from anywhere.
    fn piece(&mut self, least: usize, most: usize) -> Vec<u32> {
        let length = self.draws.between(least, most).min(self.text.len());
        let start = self.draws.below(self.text.len() - length + 1);
        self.text[start..start + length].to_vec()
    }

    /// The first tokens of a family, and others behind them.
    fn prompt(&mut self, family: Option<&Vec<u32>>) -> Vec<u32> {
        let family = family.map(Vec::as_slice).unwrap_or_default();
        let shared = self.draws.between(family.len() / 2, family.len());
        let mut token_ids = family.get(..shared).unwrap_or(family).to_vec();
        token_ids.extend(self.piece(self.longest / 16, self.longest / 2));
        token_ids.truncate(self.longest);
        // Of a prompt of whole units the last token is computed again, into a piece that may be stored again then; and a connector
        // may look for a unit less of one that ends a token behind.
        while token_ids.len() > 2 && token_ids.len() % self.unit < 2 {
            token_ids.pop();
        }
        token_ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(count: u32) -> Vec<Prompt> {
        let question = |row| QuestionId { subject: "law".parse().unwrap(), split: Split::Test, row };
        let prompt = |row| Prompt {
            question: question(row),
            examples: 0,
            token_ids: (0..700).map(|token| 1000 * row + token).collect(),
        };
        (1..=count).map(prompt).collect()
    }

    fn schedule(seed: u32) -> Schedule {
        Schedule::make(&prompts(8), PressureSettings::default(), seed, 64).unwrap()
    }

    #[test]
    fn a_seed_makes_the_same_schedule_each_time_and_another_one_another() {
        assert_eq!(schedule(3), schedule(3));
        assert_ne!(schedule(3), schedule(4));
    }

    #[test]
    fn requests_fit_share_prefixes_repeat_each_other_and_are_broken_off() {
        for seed in 1..=20 {
            let Schedule { calm, pressed } = schedule(seed);
            assert_eq!((calm.len(), pressed.len()), (3, 40));
            for planned in calm.iter().chain(&pressed) {
                let length = planned.token_ids.len();
                assert!((128..=960).contains(&length) && length % 64 >= 2, "seed {seed}: {length}");
            }
            let cut = |at| pressed.iter().filter(|planned| planned.cut_off == Some(at)).count();
            assert!(cut(CutOff::Storing) > 0 && cut(CutOff::Loading) > 0, "seed {seed}");
            let beginning = |planned: &PlannedRequest| planned.token_ids[..64].to_vec();
            let beginnings: std::collections::BTreeSet<_> = pressed.iter().map(beginning).collect();
            assert!(beginnings.len() <= FAMILIES, "seed {seed}");
            let mut whole: Vec<_> = pressed.iter().map(|planned| &planned.token_ids).collect();
            whole.sort();
            whole.dedup();
            assert!(whole.len() < 38, "seed {seed}");
        }
    }

    #[test]
    fn as_many_requests_as_a_batch_holds_are_there_at_once_and_the_next_comes_as_one_ends() {
        let after: Vec<u32> = schedule(1).pressed.iter().map(|planned| planned.after).collect();
        assert_eq!(after[..16], [0; 16]);
        assert_eq!(after[16..], (1..=24).collect::<Vec<u32>>());
        let calm: Vec<u32> = schedule(1).calm.iter().map(|planned| planned.after).collect();
        assert_eq!(calm, [0, 1, 2]);
    }

    #[test]
    fn a_suite_that_leaves_loads_alone_has_the_same_requests_and_breaks_off_none_that_loads() {
        let settings = PressureSettings { abort_loads: false, ..PressureSettings::default() };
        let left_alone = Schedule::make(&prompts(8), settings, 1, 64).unwrap();
        let mut expected = schedule(1).pressed;
        assert!(expected.iter().any(|planned| planned.cut_off == Some(CutOff::Loading)));
        for planned in &mut expected {
            planned.cut_off = planned.cut_off.filter(|cut_off| *cut_off == CutOff::Storing);
        }
        assert_eq!(left_alone.pressed, expected);
    }

    #[test]
    fn prompts_that_are_too_short_are_told_with_what_is_needed() {
        let refused = Schedule::make(&prompts(2), PressureSettings::default(), 1, 64);
        assert_eq!(refused, Err(NoPrompts { tokens: 1400, needed: 1920 }));
    }

    #[test]
    fn a_request_is_named_by_its_seed_and_number() {
        assert_eq!(request_id(3, 17).to_string(), "seed_3/test/17");
    }
}
