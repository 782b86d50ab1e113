//! The order in which questions are asked.

use std::collections::BTreeMap;

use super::EngineSpec;
use crate::comparison::shuffle_questions;
use crate::dataset::Prompt;
use crate::model::QuestionId;

/// Questions of a load pass between two looks at the evidence for harm, for each sequence of a batch.
const SLICE: usize = 32;

/// What a load pass and its control ask of a round, one slice after the other, since which requests meet in a batch may change
/// their last bits: in an order that is random, but the same on every machine.
pub(super) fn slices(prompts: &[Prompt], engine: &EngineSpec) -> Vec<Vec<Prompt>> {
    let mut by_question: BTreeMap<&QuestionId, &Prompt> =
        prompts.iter().map(|prompt| (&prompt.question, prompt)).collect();
    let questions = by_question.keys().map(|&question| question.clone()).collect();
    let order: Vec<Prompt> = shuffle_questions(questions, engine.seed)
        .iter()
        .filter_map(|question| by_question.remove(question).cloned())
        .collect();
    let batch = usize::try_from(engine.max_num_seqs).unwrap_or(1);
    order.chunks(SLICE * batch.max(1)).map(<[Prompt]>::to_vec).collect()
}
