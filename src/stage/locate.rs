//! After a mismatch: which chunk is the first that is served wrong. Asks one prompt again, cut behind each whole chunk,
//! through the control and the cached stages themselves. Main function: [`locate`].

use std::collections::BTreeMap;

use serde::Serialize;

use super::arms::CONTROL;
use super::arms::control;
use super::cached::LOAD;
use super::cached::cached;
use super::lines::read_lines;
use super::prompts::{read_prompts, write_prompts};
use super::{Bench, Locating, StageError, Watched};
use crate::assets::Model;
use crate::comparison::{Comparison, Difference, Location, Outcome, Service};
use crate::dataset::{Prompt, QuestionId, Split};
use crate::digest::Digest;
use crate::engine::Observation;
use crate::stage_name::StageName;
use crate::store::{Artifact, StageKey};
use crate::suite::Route;

/// Numbers how prompts are cut.
const SCHEMA: u32 = 1;
/// Tokens behind the last whole chunk of a cut prompt, at most.
const REST: usize = 16;

#[derive(Serialize)]
struct CutPrompts<'a> {
    prompts: Digest,
    cut: &'a QuestionId,
    chunk_tokens: u32,
}

/// Looks for the first wrong chunk of the first question whose bits differ from the control's; `None` where that is
/// not asked, the cache was not used as it must, or bits show no mismatch.
/// What keeps it from looking is a warning: the mismatch is proven already, and its verdict must not be lost.
pub async fn locate(
    bench: &Bench,
    model: &Model,
    route: Route,
    prompts: &Artifact,
    watched: Watched<'_>,
    comparison: &Comparison,
) -> Option<Location> {
    if bench.locating == Locating::NotAsked
        || comparison.exercised.service != Service::AsPredicted
        || comparison.bit_exact.outcome != Outcome::Failed
    {
        return None;
    }
    let difference = comparison.bit_exact.against_control.first.first()?;
    match cut_and_ask(bench, model, route, prompts, watched, difference).await {
        Ok(location) => Some(location),
        Err(StageError::NotRun { .. }) => None,
        Err(error) => {
            let error = anyhow::Error::from(error);
            bench.events.warn(format!("the chunk that is wrong was not looked for: failed to {error:#}"));
            None
        }
    }
}

async fn cut_and_ask(
    bench: &Bench,
    model: &Model,
    route: Route,
    prompts: &Artifact,
    watched: Watched<'_>,
    difference: &Difference,
) -> Result<Location, StageError> {
    let (question, chunk_tokens) = (&difference.question, bench.suite.lmcache.chunk_tokens);
    let model = model.renamed(format!("{} by chunk", model.name()));
    let key = CutPrompts { prompts: prompts.output_digest(), cut: question, chunk_tokens };
    let key = StageKey::new(SCHEMA, StageName::Prompts, &key);
    let cut = bench
        .make(&key, model.name(), async |draft| {
            let mut all = read_prompts(prompts)?;
            let whole =
                all.find(|prompt| prompt.as_ref().map_or(true, |prompt| prompt.question == *question));
            write_prompts(draft, whole.into_iter().flat_map(|whole| cut_behind_chunks(whole, chunk_tokens)))
        })
        .await?;
    let control = control(bench, &model, &cut).await?;
    let cached = cached(bench, &model, &cut, route, watched).await?;
    let control = in_order(read_lines(control.path(CONTROL))?)?;
    let load = in_order(read_lines(cached.path(LOAD))?)?;
    Ok(Location::find(question.clone(), chunk_tokens, &control, &load))
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
