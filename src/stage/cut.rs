//! One prompt again, cut behind each whole chunk: asked through the control and the cached arm, it tells which chunk is the
//! first that is served wrong. Output as of the prompts.

use std::collections::BTreeMap;

use serde::Serialize;

use super::files::{CONTROL, LOAD};
use super::lines::read_lines;
use super::prompts::{read_prompts, write_prompts};
use super::{Context, StageError};
use crate::comparison::Location;
use crate::dataset::{Prompt, QuestionId, Split};
use crate::model::Observation;
use crate::stage_name::StageName;
use crate::store::Artifact;

/// Tokens behind the last whole chunk of a cut prompt, at most.
const REST: usize = 16;

/// One question's prompt, cut behind each whole chunk. Input: the prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// The question.
    pub cut: QuestionId,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
}

impl Cut {
    pub(crate) const SCHEMA: u32 = 3;

    pub(crate) fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let mut all = read_prompts(context.inputs.of(StageName::Prompts))?;
        let whole = all.find(|prompt| prompt.as_ref().map_or(true, |prompt| prompt.question == self.cut));
        let cuts = whole.into_iter().flat_map(|whole| cut_behind_chunks(whole, self.chunk_tokens));
        write_prompts(context.draft, cuts)
    }
}

/// Which chunk of the cut prompt is the first that the load pass was served wrong.
///
/// # Errors
/// When an artifact cannot be read.
pub fn find_location(cut: &Cut, control: &Artifact, cached: &Artifact) -> Result<Location, StageError> {
    let control = in_order(read_lines(control.path(CONTROL))?)?;
    let load = in_order(read_lines(cached.path(LOAD))?)?;
    Ok(Location::find(cut.cut.clone(), cut.chunk_tokens, &control, &load))
}

/// The prompt's first chunk and a few tokens, its first two chunks and a few tokens, and so on. They pass as questions of the
/// `dev` split, whose rows count the chunks, since no other question that is asked is of it.
fn cut_behind_chunks(
    whole: Result<Prompt, StageError>,
    chunk_tokens: u32,
) -> Vec<Result<Prompt, StageError>> {
    let whole = match whole {
        Ok(whole) => whole,
        Err(error) => return vec![Err(error)],
    };
    let (length, step) = (whole.token_ids.len(), usize::try_from(chunk_tokens).unwrap_or(usize::MAX));
    let cuts = (1_u32..).zip((step..length).step_by(step));
    cuts.map(|(row, end)| {
        let question = QuestionId { split: Split::Dev, row, ..whole.question.clone() };
        let token_ids = whole.token_ids[..length.min(end + REST.min(step - 1))].to_vec();
        Ok(Prompt { question, token_ids, ..whole.clone() })
    })
    .collect()
}

fn in_order(
    observations: impl Iterator<Item = Result<Observation, StageError>>,
) -> Result<Vec<Observation>, StageError> {
    let by_row: Result<BTreeMap<u32, Observation>, StageError> = observations
        .map(|observation| observation.map(|observation| (observation.question.row, observation)))
        .collect();
    Ok(by_row?.into_values().collect())
}
