//! Letters out of artifacts: the published ones, and those that a model gave.

use std::collections::BTreeMap;

use super::{StageError, read_dataset};
use crate::dataset::{Choice, QuestionId, Tokenizer, parse_answer};
use crate::model::Observation;
use crate::store::Artifact;

/// The published answer of every question.
pub(super) fn published_answers(questions: &Artifact) -> Result<BTreeMap<QuestionId, Choice>, StageError> {
    let dataset = read_dataset(questions)?;
    Ok(dataset.questions().map(|question| (question.id.clone(), question.answer)).collect())
}

/// The letter that the generated text names. Tokens that do not decode name none.
pub(super) fn read_answer(tokenizer: &Tokenizer, observation: &Observation) -> Option<Choice> {
    let tokens: Vec<u32> = observation.steps.iter().map(|step| step.chosen.token).collect();
    parse_answer(&tokenizer.decode(&tokens).ok()?)
}
