//! Runs a suite or one stage of it, and writes what it shows.

use std::process::ExitCode;

use anyhow::Context;
use fs_err as fs;

use super::arguments::{PublishArguments, RunArguments};
use super::output::{export_folder, print, write_whole};
use super::prepare::{TemporaryStore, prepare};
use super::publish::Publishing;
use super::report::to_json;
use crate::exit_code::exit_code;
use crate::pipeline::{Findings, run, run_stage};
use crate::report::{
    Finding, PAGE_LIMIT, PlantedFaults, Report, SCHEMA, summarise, tabulate_faults, to_html, to_junit,
    to_markdown,
};
use crate::stage::{Bench, read_dataset, read_ready};
use crate::stage_name::StageName;

pub(super) async fn run_suite(
    arguments: &RunArguments,
    publish: &PublishArguments,
) -> anyhow::Result<ExitCode> {
    let publishing = Publishing::prepare(publish)?;
    let (bench, mut store) = prepare(arguments).await?;
    // Said before hours of work rather than after them.
    fs::create_dir_all(&arguments.out).map_err(|error| {
        anyhow::anyhow!("write the report: {error}\n\nhint: name another folder with `--out DIR`")
    })?;
    let outcome = run(&bench).await.inspect_err(|_| store.iter_mut().for_each(TemporaryStore::keep))?;
    let mut report = make_report(&bench, outcome)?;
    if store.is_some() {
        report.findings.iter_mut().for_each(|finding| finding.logs.clear()); // they end with this run
    }
    let (json, summary) = (to_json(&report), summarise(&report));
    for (name, text) in [
        ("report.json", &json),
        ("summary.txt", &summary),
        ("summary.md", &to_markdown(&report, PAGE_LIMIT)),
        ("report.html", &to_html(&report)),
        ("junit.xml", &to_junit(&report)),
    ] {
        write_whole(&arguments.out.join(name), text)?;
    }
    for planted in &report.planted_faults {
        let path = arguments.out.join(format!("faults-{}.md", planted.model));
        write_whole(&path, &tabulate_faults(&planted.findings))?;
    }
    publishing.publish(&report, &bench.events);
    print(if arguments.json { &json } else { &summary })?;
    Ok(ExitCode::from(exit_code(report.verdict)))
}

pub(super) async fn export_stage(stage: StageName, arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let (bench, mut store) = prepare(arguments).await?;
    let artifacts =
        run_stage(&bench, stage).await.inspect_err(|_| store.iter_mut().for_each(TemporaryStore::keep))?;
    for (label, artifact) in artifacts {
        let folder = arguments.out.join(stage.as_str()).join(label.replace(' ', "-"));
        export_folder(&artifact.path(""), bench.store.durability(), &folder)?;
        print(&format!("{folder} {}\n", artifact.output_digest()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn make_report(bench: &Bench, outcome: Findings) -> anyhow::Result<Report> {
    let Findings { compared, conclusion, planted, verdict } = outcome;
    let planted_faults = planted
        .into_iter()
        .map(|planted| PlantedFaults {
            model: planted.model.name().to_owned(),
            doubt: planted.findings.doubt(),
            findings: planted.findings,
            artifact: planted.artifact.output_digest(),
            log: planted.artifact.note_path(""),
        })
        .collect();
    let mut findings = Vec::new();
    for (compared, judgement) in compared.into_iter().zip(conclusion.judgements) {
        let artifact =
            |wanted| compared.artifacts.iter().find(|(stage, _)| *stage == wanted).map(|(_, found)| found);
        let flips = &compared.comparison.answers.flips;
        let mut flipped_questions = Vec::new();
        if let Some(questions) = artifact(StageName::Extract).filter(|_| !flips.is_empty()) {
            let dataset = read_dataset(questions)?;
            for flip in flips {
                flipped_questions
                    .extend(dataset.questions().find(|question| question.id == flip.question).cloned());
            }
        }
        let cached = artifact(StageName::Cached).context("a comparison has a cached arm")?;
        let engines = [StageName::Baseline, StageName::Control, StageName::Cached];
        findings.push(Finding {
            model: compared.model.name().to_owned(),
            model_digest: compared.model.digest(),
            kv_shape: compared.model.kv_shape()?,
            route: compared.route,
            judgement,
            flipped_questions,
            engine: read_ready(cached)?,
            logs: engines.into_iter().filter_map(artifact).map(|arm| arm.note_path("")).collect(),
            artifacts: compared
                .artifacts
                .iter()
                .map(|(stage, artifact)| (*stage, artifact.output_digest()))
                .collect(),
            comparison: compared.comparison,
            location: compared.location,
        });
    }
    Ok(Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        verdict,
        exit_code: exit_code(verdict),
        suite: bench.suite.clone(),
        device: bench.device.clone(),
        environment: bench.environment.identity().clone(),
        findings,
        planted_faults,
    })
}
