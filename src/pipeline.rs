//! The whole flow: extract → prompts → baseline → control → cached → compare → conclude; planted faults and foreign KV if
//! asked for.
//!
//! Data moves forward; every line below takes finished artifacts and returns one. Main function: [`run`].

use std::cell::RefCell;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::assets::Model;
use crate::comparison::{Comparison, Conclusion, Location, Verdict, conclude};
use crate::fault::FaultFindings;
use crate::foreign::ForeignFindings;
use crate::stage::{
    Arms, Bench, ForeignReading, Mode, Planting, StageError, Undamaged, Watched, admit_prompts, admit_routes,
    baseline, cached, compare, control, extract, faults, foreign, locate, prompts, read_comparison,
    read_faults, read_foreign, require_letters,
};
use crate::stage_name::StageName;
use crate::store::{Artifact, StageKey};
use crate::suite::{ModelSettings, Route};

/// One model on one route: its artifacts, and what they show.
#[derive(Debug)]
pub struct Compared {
    /// The model.
    pub model: Model,
    /// The route.
    pub route: Route,
    /// Of each stage, in order.
    pub artifacts: Vec<(StageName, Artifact)>,
    /// What the load pass and the runs without LMCache have in common.
    pub comparison: Comparison,
    /// Which chunk is the first that is served wrong, where bits decided that one is.
    pub location: Option<Location>,
}

/// What planted faults show of one model.
#[derive(Debug)]
pub struct Planted {
    /// The model.
    pub model: Model,
    /// The route whose tier they were planted in.
    pub route: Route,
    /// Of the faults stage.
    pub artifact: Artifact,
    /// What the ladder said of each fault.
    pub findings: FaultFindings,
}

/// What LMCache served of one model's KV to readers of another identity.
#[derive(Debug)]
pub struct Foreign {
    /// The model.
    pub model: Model,
    /// Of the foreign stage.
    pub artifact: Artifact,
    /// What each reader got.
    pub findings: ForeignFindings,
}

/// A model on a route that cannot run on this machine.
#[derive(Debug)]
pub struct NotRun {
    /// The model.
    pub model: Model,
    /// The route.
    pub route: Route,
    /// Why.
    pub reason: StageError,
}

/// The models and routes of a suite that are gone through. Keys hold how many the suite has in all, whatever is left out.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    models: &'a [ModelSettings],
    routes: &'a [Route],
}

impl<'a> Part<'a> {
    fn whole(bench: &'a Bench) -> Self {
        Self { models: &bench.suite.models, routes: &bench.suite.routes }
    }
}

/// What a run shows.
#[derive(Debug)]
pub struct Findings {
    /// Each model on each route.
    pub compared: Vec<Compared>,
    /// Those that cannot run here.
    pub not_run: Vec<NotRun>,
    /// The judgements of the compared ones, in the same order, and the worst of them.
    pub conclusion: Conclusion,
    /// Each model with planted faults, if they were asked for.
    pub planted: Vec<Planted>,
    /// Each model with foreign KV, if that was asked for. The verdict does not depend on it.
    pub foreign: Vec<Foreign>,
    /// The verdict on all: the conclusion's, unless planted faults say that it cannot be relied on.
    pub verdict: Verdict,
}

/// Runs the bench's suite; what is in the store already is not run again.
///
/// # Errors
/// When a stage does not finish: there is no verdict then. A route that cannot run on this machine is none, as long as
/// another one can.
pub async fn run(bench: &Bench) -> Result<Findings, StageError> {
    run_part(bench, Part::whole(bench)).await
}

async fn run_part(bench: &Bench, part: Part<'_>) -> Result<Findings, StageError> {
    bench.environment.require_lmcache()?;
    admit_routes(bench)?;
    let questions = extract(bench).await?;
    // What a later model lacks is said before the first one's engines start.
    let models = prepare_models(bench, part.models, &questions).await?;
    let of_models =
        stream::iter(models).map(|(model, prompts)| run_model(bench, part, &questions, model, prompts));
    let of_models: Vec<OfModel> = of_models.buffered(bench.models_at_a_time()).try_collect().await?;
    let (mut compared, mut not_run) = (Vec::new(), Vec::new());
    let (mut planted, mut foreign) = (Vec::new(), Vec::new());
    for of_model in of_models {
        compared.extend(of_model.compared);
        not_run.extend(of_model.not_run);
        planted.extend(of_model.planted);
        foreign.extend(of_model.foreign);
    }
    if compared.is_empty()
        && let Some(first) = not_run.pop()
    {
        return Err(first.reason);
    }
    let conclusion = conclude(compared.iter().map(|compared| &compared.comparison));
    let doubts = planted.iter().filter_map(|planted| planted.findings.doubt());
    let verdict = doubts.map(|doubt| doubt.verdict).fold(conclusion.overall, Verdict::min);
    Ok(Findings { compared, not_run, conclusion, planted, foreign, verdict })
}

/// What a run shows of one model.
#[derive(Debug, Default)]
struct OfModel {
    compared: Vec<Compared>,
    not_run: Vec<NotRun>,
    planted: Vec<Planted>,
    foreign: Option<Foreign>,
}

async fn run_model(
    bench: &Bench,
    part: Part<'_>,
    questions: &Artifact,
    model: Model,
    prompts: Artifact,
) -> Result<OfModel, StageError> {
    let mut of_model = OfModel::default();
    let without = (baseline(bench, &model, &prompts), control(bench, &model, &prompts));
    // Neither needs anything of the other.
    let (baseline, control) = if bench.engines_of_a_model() > 1 {
        tokio::try_join!(without.0, without.1)?
    } else {
        (without.0.await?, without.1.await?)
    };
    for &route in part.routes {
        let watched = Watched { questions, baseline: &baseline };
        let cached = match cached(bench, &model, &prompts, route, watched).await {
            Err(reason @ StageError::Route(_)) => {
                bench.events.warn(format!(
                    "{} over {route} is not run: failed to {}",
                    model.name(),
                    reason.in_full()
                ));
                of_model.not_run.push(NotRun { model: model.clone(), route, reason });
                continue;
            }
            cached => cached?,
        };
        let arms =
            Arms { questions, prompts: &prompts, baseline: &baseline, control: &control, cached: &cached };
        let compare = compare(bench, &model, route, arms).await?;
        let comparison = read_comparison(&compare)?;
        let location = locate(bench, &model, route, &prompts, watched, &comparison).await;
        let artifacts = [questions, &prompts, &baseline, &control, &cached, &compare].map(Artifact::clone);
        let artifacts = StageName::ALL.into_iter().zip(artifacts).collect();
        of_model.compared.push(Compared { model: model.clone(), route, artifacts, comparison, location });
    }
    if bench.planting == Planting::Asked {
        let undamaged = Undamaged { questions, prompts: &prompts, baseline: &baseline, control: &control };
        let missing = |route| of_model.not_run.iter().any(|not_run| not_run.route == route);
        for route in grounds(part.routes).into_iter().filter(|route| !missing(*route)) {
            let artifact = faults(bench, &model, undamaged, route).await?;
            let findings = read_faults(&artifact)?;
            of_model.planted.push(Planted { findings, model: model.clone(), route, artifact });
        }
    }
    if bench.foreign == ForeignReading::Asked {
        let artifact = foreign(bench, &model, &prompts).await?;
        let findings = read_foreign(&artifact)?;
        for finding in findings.findings() {
            bench.events.warn(format!("finding about LMCache, {}: {finding}", model.name()));
        }
        of_model.foreign = Some(Foreign { model: model.clone(), artifact, findings });
    }
    Ok(of_model)
}

/// Where faults are planted: on disk in any case, and in Redis where that is tested.
fn grounds(routes: &[Route]) -> Vec<Route> {
    let redis = routes.contains(&Route::MpRedis).then_some(Route::MpRedis);
    [Route::MpFs].into_iter().chain(redis).collect()
}

/// Finds each model and makes its prompts.
async fn prepare_models(
    bench: &Bench,
    wanted: &[ModelSettings],
    questions: &Artifact,
) -> Result<Vec<(Model, Artifact)>, StageError> {
    let mut models = Vec::new();
    for settings in wanted {
        let model = Model::find(settings, &bench.cache)?;
        model.check_weights(&bench.suite)?;
        require_letters(&model)?;
        model.check_parallelism(&bench.device, bench.environment.identity().version("ray").is_some())?;
        let prompts = prompts(bench, &model, questions).await?;
        admit_prompts(bench, &model, &prompts)?;
        models.push((model, prompts));
    }
    Ok(models)
}

/// Runs the bench's suite up to one stage, and returns that stage's artifacts with what each is of.
///
/// # Errors
/// When a stage does not finish.
pub async fn run_stage(bench: &Bench, stage: StageName) -> Result<Vec<(String, Artifact)>, StageError> {
    run_stage_of(bench, Part::whole(bench), stage).await
}

async fn run_stage_of(
    bench: &Bench,
    part: Part<'_>,
    stage: StageName,
) -> Result<Vec<(String, Artifact)>, StageError> {
    let questions = extract(bench).await?;
    if stage == StageName::Extract {
        return Ok(vec![(String::new(), questions)]);
    }
    if stage == StageName::Compare {
        let compared = run_part(bench, part).await?.compared;
        let last = |compared: Compared| {
            let (_, artifact) = compared.artifacts.into_iter().last()?;
            Some((format!("{} {}", compared.model.name(), compared.route), artifact))
        };
        return Ok(compared.into_iter().filter_map(last).collect());
    }
    let mut artifacts = Vec::new();
    for (model, prompts) in prepare_models(bench, part.models, &questions).await? {
        let name = model.name().to_owned();
        match stage {
            StageName::Prompts => artifacts.push((name, prompts)),
            StageName::Baseline => artifacts.push((name, baseline(bench, &model, &prompts).await?)),
            StageName::Control => artifacts.push((name, control(bench, &model, &prompts).await?)),
            StageName::Cached => {
                let baseline = baseline(bench, &model, &prompts).await?;
                for &route in part.routes {
                    let watched = Watched { questions: &questions, baseline: &baseline };
                    let cached = cached(bench, &model, &prompts, route, watched).await?;
                    artifacts.push((format!("{name} {route}"), cached));
                }
            }
            StageName::Faults => {
                let baseline = baseline(bench, &model, &prompts).await?;
                let control = control(bench, &model, &prompts).await?;
                let undamaged = Undamaged {
                    questions: &questions,
                    prompts: &prompts,
                    baseline: &baseline,
                    control: &control,
                };
                for route in grounds(part.routes) {
                    artifacts
                        .push((format!("{name} {route}"), faults(bench, &model, undamaged, route).await?));
                }
            }
            StageName::Foreign => artifacts.push((name, foreign(bench, &model, &prompts).await?)),
            StageName::Extract | StageName::Compare => {}
        }
    }
    Ok(artifacts)
}

/// The keys that a run would look for, with what each is of, in the order of looking. Runs nothing: what comes after
/// a stage that is not there has no key yet.
///
/// # Errors
/// When an input or an artifact cannot be read.
pub async fn wanted_keys(mut bench: Bench) -> Result<Vec<(String, StageKey)>, StageError> {
    let asked = Mode::Ask(RefCell::default());
    bench.mode = asked;
    for model in bench.suite.models.chunks(1) {
        for route in bench.suite.routes.chunks(1) {
            for stage in StageName::ALL {
                let asked = match stage {
                    StageName::Faults => bench.planting == Planting::Asked,
                    StageName::Foreign => bench.foreign == ForeignReading::Asked,
                    _ => true,
                };
                if !asked {
                    continue;
                }
                match run_stage_of(&bench, Part { models: model, routes: route }, stage).await {
                    Ok(_) | Err(StageError::NotRun { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    let Mode::Ask(asked) = bench.mode else { return Ok(Vec::new()) };
    let mut keys: Vec<(String, StageKey)> = Vec::new();
    for (label, key) in asked.into_inner() {
        if !keys.iter().any(|(_, known)| known.digest() == key.digest()) {
            keys.push((label, key));
        }
    }
    Ok(keys)
}
