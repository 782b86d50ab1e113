//! The arms without LMCache. Output: observations as JSON lines, one a question, in the order of asking.

use std::collections::BTreeMap;

use serde::Serialize;

use super::engine_run::{ArmKey, EngineRun, EngineSetup};
use super::rounds::{Pass, Rounds};
use super::watch::slices;
use super::{Bench, StageError};
use crate::assets::Model;
use crate::comparison::plan_questions;
use crate::dataset::Subject;
use crate::engine::{Capacity, Plan, PrefixCache};
use crate::event::Event;
use crate::stage_name::StageName;
use crate::store::{Artifact, StageKey};

const BASELINE_SCHEMA: u32 = 1;
const CONTROL_SCHEMA: u32 = 2;
pub(super) const BASELINE: &str = "baseline.jsonl";
pub(super) const REPEAT: &str = "repeat.jsonl";
pub(super) const CONTROL: &str = "control.jsonl";

/// Without a setting of its own.
#[derive(Serialize)]
struct BaselineArm {}

#[derive(Serialize)]
struct ControlArm {
    capacity: Capacity,
}

/// vLLM alone, its own prefix caching off.
///
/// # Errors
/// When the KV of a subject does not fit LMCache later on, or the engine fails.
pub async fn baseline(bench: &Bench, model: &Model, prompts: &Artifact) -> Result<Artifact, StageError> {
    let run = EngineRun { bench, model, prompts };
    let environment = bench.environment.identity_of_baseline();
    let key = ArmKey { common: run.common_key(), environment: &environment, arm: BaselineArm {} };
    let key = StageKey::new(BASELINE_SCHEMA, StageName::Baseline, &key);
    bench
        .make(&key, model.name(), async |draft| {
            let plan = run.plan()?; // what cannot fit is said before anything starts
            bench.events.emit(Event::Planned {
                label: model.name().to_owned(),
                words: what_it_can_show(bench, &plan),
            });
            let (rounds, total) = (Rounds::of(&run, &plan)?, plan.expectations.len());
            let pass = Pass::of(&run, draft, "baseline", BASELINE, total)?;
            rounds
                .share(bench.engines_of_baseline(), async |number| {
                    let setup = EngineSetup::alone("baseline").numbered(number);
                    let mut worker = run.start(draft, setup).await?;
                    while let Some(round) = rounds.take().await? {
                        pass.score(&mut worker, &round, &round.prompts, PrefixCache::Read).await?;
                        pass.is_over(&round)?;
                        rounds.is_over(&round);
                    }
                    Ok(worker.finish().await?)
                })
                .await?;
            pass.finish()
        })
        .await
}

/// What the answers of the planned questions can show, in words.
fn what_it_can_show(bench: &Bench, plan: &Plan) -> String {
    let mut subjects = BTreeMap::<&Subject, u32>::new();
    for one in &plan.expectations {
        *subjects.entry(&one.question.subject).or_default() += 1;
    }
    let sizes: Vec<u32> = subjects.into_values().collect();
    plan_questions(&sizes, bench.suite.comparisons(), &bench.suite.criteria).words
}

/// vLLM alone, with its own prefix caching: each round first fills the emptied cache without reading it, which repeats the
/// baseline, then is served from it, which leaves the same tokens to compute as a hit in LMCache does.
///
/// # Errors
/// When the KV of a subject does not fit, or the engine fails.
pub async fn control(bench: &Bench, model: &Model, prompts: &Artifact) -> Result<Artifact, StageError> {
    let run = EngineRun { bench, model, prompts };
    let environment = bench.environment.identity_of_baseline();
    let arm = ControlArm { capacity: run.capacity()? };
    let chunk_tokens = arm.capacity.chunk_tokens;
    let key = ArmKey { common: run.common_key(), environment: &environment, arm };
    let key = StageKey::new(CONTROL_SCHEMA, StageName::Control, &key);
    bench
        .make(&key, model.name(), async |draft| {
            let plan = run.plan()?;
            let (rounds, total) = (Rounds::of(&run, &plan)?, plan.expectations.len());
            let repeat = Pass::of(&run, draft, "repeat", REPEAT, total)?;
            let control = Pass::of(&run, draft, "control", CONTROL, total)?;
            rounds
                .share(bench.engines_of_control(), async |number| {
                    let setup =
                        EngineSetup { hit_multiple: Some(chunk_tokens), ..EngineSetup::alone("control") };
                    let mut worker = run.start(draft, setup.numbered(number)).await?;
                    while let Some(round) = rounds.take().await? {
                        repeat.score(&mut worker, &round, &round.prompts, PrefixCache::FillOnly).await?;
                        for slice in slices(&round.prompts, &bench.suite.engine) {
                            control.score(&mut worker, &round, &slice, PrefixCache::Read).await?;
                        }
                        repeat.is_over(&round)?;
                        control.is_over(&round)?;
                        rounds.is_over(&round);
                    }
                    Ok(worker.finish().await?)
                })
                .await?;
            repeat.finish()?;
            control.finish()
        })
        .await
}
