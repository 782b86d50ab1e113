//! Runs a suite or one stage of it, and writes what it shows.

use std::process::ExitCode;

use fs_err as fs;

use super::arguments::PublishArguments;
use super::log;
use super::merge::hand_in;
use super::output::{OutputError, export_folder, print};
use super::prepare::{TemporaryStore, bring_environment, prepare};
use super::publish::Publishing;
use super::run_arguments::RunArguments;
use super::write_report::write_report;
use crate::pipeline::{Bench, Inputs, foretell, prepare_inputs, require_a_route, run, run_stage};
use crate::report::Report;
use crate::stage_name::StageName;
use crate::store::Artifact;

pub(super) async fn run_suite(
    arguments: &RunArguments,
    publish: &PublishArguments,
) -> anyhow::Result<ExitCode> {
    let publishing = Publishing::prepare(publish)?;
    let (mut bench, store) = prepare(arguments)?;
    require_a_route(&bench)?;
    let inputs = prepare_inputs(&bench).await?;
    foretell(&bench, &inputs);
    bring_environment(&mut bench, arguments.stack.replacements()).await?;
    let report = run_prepared(&bench, &inputs, store, arguments).await?;
    publishing.publish(&report, &bench.desk.events);
    Ok(ExitCode::from(report.exit_code))
}

/// Runs what is prepared, and writes and prints what it shows.
pub(super) async fn run_prepared(
    bench: &Bench,
    inputs: &Inputs,
    mut store: Option<TemporaryStore>,
    arguments: &RunArguments,
) -> anyhow::Result<Report> {
    // Said before hours of work rather than after them.
    fs::create_dir_all(&arguments.out).map_err(OutputError::at(&arguments.out))?;
    let mut findings =
        run(bench, inputs).await.inspect_err(|_| store.iter_mut().for_each(TemporaryStore::keep))?;
    let comparisons: Vec<Artifact> = findings
        .compared
        .iter()
        .flat_map(|compared| &compared.artifacts)
        .filter(|(stage, _)| *stage == StageName::Compare)
        .map(|(_, artifact)| artifact.clone())
        .collect();
    let failure = findings.failure.take();
    let logs_end_with_run = store.is_some() && failure.is_none();
    let (report, json, summary) = write_report(bench, findings, &arguments.out, logs_end_with_run)?;
    if let Some(error) = failure {
        store.iter_mut().for_each(TemporaryStore::keep);
        return Err(error.into());
    }
    let (depot, run_name) = (bench.depot.as_ref(), arguments.run_name.as_ref());
    hand_in(&report, &comparisons, &arguments.out, depot, run_name, &bench.desk.events).await?;
    let log = log::place().map_or_else(String::new, |path| format!("log: {path}\n"));
    print(&if arguments.json { json } else { summary + &log })?;
    Ok(report)
}

pub(super) async fn export_stage(stage: StageName, arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let (mut bench, mut store) = prepare(arguments)?;
    let mut inputs = Inputs::default();
    if !matches!(stage, StageName::Extract | StageName::Prompts) {
        inputs = prepare_inputs(&bench).await?;
        bring_environment(&mut bench, arguments.stack.replacements()).await?;
    }
    let artifacts = run_stage(&bench, &inputs, stage)
        .await
        .inspect_err(|_| store.iter_mut().for_each(TemporaryStore::keep))?;
    for (label, artifact) in artifacts {
        let folder = arguments.out.join(stage.as_str()).join(label.replace(' ', "-"));
        export_folder(&artifact.path(""), bench.store.durability(), &folder)?;
        print(&format!("{folder} {}\n", artifact.output_digest()))?;
    }
    Ok(ExitCode::SUCCESS)
}
