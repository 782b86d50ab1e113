//! The order in which questions are asked.

use std::collections::BTreeMap;

use crate::comparison::shuffle_questions;
use crate::dataset::Prompt;
use crate::model::QuestionId;

/// The order in which a load pass and its control ask a round's questions: random, but the same on every machine.
pub(super) fn shuffle(prompts: &[Prompt], seed: u64) -> Vec<Prompt> {
    let mut by_question: BTreeMap<&QuestionId, &Prompt> =
        prompts.iter().map(|prompt| (&prompt.question, prompt)).collect();
    let order = shuffle_questions(by_question.keys().map(|&question| question.clone()).collect(), seed);
    order.iter().filter_map(|question| by_question.remove(question).cloned()).collect()
}
