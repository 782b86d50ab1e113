//! Prints a run as units for executors of others.

use std::process::ExitCode;

use anyhow::{Context, bail};

use super::arguments::{PlanArguments, PlanFormat};
use super::output::print;
use super::prepare::{bring_environment, changed_suite, choose_device, find_environment, prepare};
use super::run_arguments::RunArguments;
use crate::engine::Parallelism;
use crate::event::Events;
use crate::fleet::{FleetPlan, Kind, Kubernetes, Wishes, to_buildkite, to_github, to_kubernetes, to_nix};
use crate::machine::DeviceKind;
use crate::pipeline::{Bench, look_up};
use crate::progress::{Progress, Verbosity};

pub(super) async fn print_plan(arguments: &PlanArguments) -> anyhow::Result<ExitCode> {
    let refused = arguments.run.not_for_units();
    if !refused.is_empty() {
        bail!(
            "plan a run: its units cannot have {}\n\nhint: leave that out: a plan parts the questions itself and hands artifacts on; \
             what is asked of all questions at once, `kv-correctness run` does beside it",
            refused.join(", ")
        );
    }
    let mut plan = FleetPlan::of(&wishes(arguments)?);
    let text = match arguments.format {
        PlanFormat::Json => {
            add_keys(&mut plan, &arguments.run).await?;
            serde_json::to_string_pretty(&plan)? + "\n"
        }
        PlanFormat::Buildkite => serde_json::to_string_pretty(&to_buildkite(&plan, &arguments.queue))? + "\n",
        PlanFormat::Github => {
            let matrices = to_github(&plan).map_err(|why| {
                anyhow::anyhow!(
                    "plan for GitHub: {why}\n\nhint: make fewer shards, or plan models and routes apart"
                )
            })?;
            matrices.to_string() + "\n"
        }
        PlanFormat::Kubernetes => {
            let suite = changed_suite(&arguments.run)?;
            let cluster = Kubernetes {
                image: arguments.image.clone(),
                secret: arguments.secret.clone(),
                shm_gib: suite.lmcache.memory_gib.saturating_add(2),
            };
            serde_json::to_string_pretty(&to_kubernetes(&plan, &cluster))? + "\n"
        }
        PlanFormat::Nix => to_nix(&plan),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn wishes(arguments: &PlanArguments) -> anyhow::Result<Wishes> {
    let suite = changed_suite(&arguments.run)?;
    // GPUs are asked for where the units will run, unless they are said to have none.
    let has_gpus = match choose_device(arguments.run.device) {
        Ok(device) => device.kind() == DeviceKind::Cuda,
        Err(_) => true,
    };
    let gpus = |model| if has_gpus { Parallelism::of(model).ranks() } else { 0 };
    let shard = |number| format!("{number}/{}", arguments.shards).parse().context("name a shard");
    let address = arguments.run.depot.address()?;
    Ok(Wishes {
        run: arguments
            .run
            .run_name
            .as_ref()
            .map_or_else(|| suite.name.clone(), |name| name.as_str().to_owned()),
        depot: address.map(|address| address.to_string()),
        models: suite.models.iter().map(|model| (model.name.clone(), gpus(model))).collect(),
        routes: suite.routes.clone(),
        shards: (1..=arguments.shards.get()).map(shard).collect::<anyhow::Result<_>>()?,
        arguments: arguments.run.shared_words(),
    })
}

/// The keys that each unit looks for, as far as this machine has what they are made of.
async fn add_keys(plan: &mut FleetPlan, arguments: &RunArguments) -> anyhow::Result<()> {
    let (mut bench, _store) = match prepare(arguments) {
        Ok(prepared) => prepared,
        Err(error) => {
            Progress::events(Verbosity::Normal).warn(format!("keys are not known here: {error:#}"));
            return Ok(());
        }
    };
    bench.desk.events = Events::ignored();
    if find_environment(&bench)? {
        bring_environment(&mut bench, arguments.stack.replacements()).await?;
    }
    let mut shard = None;
    let mut wanted = Vec::new();
    for unit in plan.units.iter_mut().filter(|unit| unit.kind != Kind::Merge) {
        if shard != unit.shard || wanted.is_empty() {
            shard = unit.shard;
            wanted = look_up_part(&mut bench, shard).await?;
        }
        let (model, route) = (unit.model.clone().unwrap_or_default(), unit.route);
        let on_route = route.map(|route| format!("{model} {route}"));
        for one in &wanted {
            if one.label.is_empty() || one.label == model || Some(&one.label) == on_route.as_ref() {
                unit.keys.insert(one.key.stage(), one.key.digest());
            }
        }
    }
    Ok(())
}

async fn look_up_part(
    bench: &mut Bench,
    shard: Option<crate::dataset::Shard>,
) -> anyhow::Result<Vec<crate::pipeline::Wanted>> {
    bench.request.shard = shard;
    Ok(look_up(bench).await?)
}
