//! Runs a suite or one stage of it, and writes what it shows.

use std::process::ExitCode;

use anyhow::Context;
use camino::Utf8Path;
use fs_err as fs;

use super::arguments::{PublishArguments, RunArguments};
use super::bisect::{judged_report, mark, run_without_lmcache};
use super::log;
use super::output::{OutputError, export_folder, print, report_error, write_whole};
use super::prepare::{TemporaryStore, prepare};
use super::publish::Publishing;
use super::report::to_json;
use super::untestable::{why_unbuildable, why_unjudged};
use crate::bisect::Mark;
use crate::exit_code::exit_code_of_run;
use crate::pipeline::{Findings, run, run_stage};
use crate::report::{
    Finding, ForeignKv, NotRun, PAGE_LIMIT, PlantedFaults, Report, SCHEMA, summarise, tabulate_faults,
    to_html, to_junit, to_markdown,
};
use crate::stage::{Bench, Locating, StageError, read_dataset, read_ready};
use crate::stage_name::StageName;
use crate::suite::Route;

/// What `git bisect run` takes for "skip this revision".
const UNTESTABLE: u8 = 125;
/// What ends `git bisect run`.
const ABORT: u8 = 128;

pub(super) async fn run_suite(
    arguments: &RunArguments,
    publish: &PublishArguments,
) -> anyhow::Result<ExitCode> {
    let publishing = Publishing::prepare(publish)?;
    let (bench, store) = prepare(arguments).await?;
    let report = run_prepared(&bench, store, arguments).await?;
    publishing.publish(&report, &bench.events);
    Ok(ExitCode::from(report.exit_code))
}

/// A step of `git bisect run`: what cannot be tested is skipped, and where nothing can be tested the bisection ends.
pub(super) async fn run_step(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let step = async {
        let (mut bench, store) = prepare(arguments).await?;
        bench.locating = Locating::NotAsked;
        if arguments.stack.vllm_version.is_none() {
            let error = |error: StageError| anyhow::anyhow!("run the arms without LMCache: {error}");
            run_without_lmcache(&bench).await.map_err(error)?; // no fault of a revision
        }
        run_prepared(&bench, store, arguments).await
    };
    let code = match step.await {
        Ok(report) => match mark(&judged_report(&report), arguments) {
            Mark::Good => 0,
            Mark::Bad => 1,
            Mark::Skipped => UNTESTABLE,
        },
        Err(error) => {
            report_error(&error);
            let unbuildable = error.downcast_ref().and_then(why_unbuildable);
            if unbuildable.or_else(|| error.downcast_ref().and_then(why_unjudged)).is_some() {
                UNTESTABLE
            } else {
                ABORT
            }
        }
    };
    Ok(ExitCode::from(code))
}

async fn run_prepared(
    bench: &Bench,
    mut store: Option<TemporaryStore>,
    arguments: &RunArguments,
) -> anyhow::Result<Report> {
    // Said before hours of work rather than after them.
    fs::create_dir_all(&arguments.out).map_err(OutputError::at(&arguments.out))?;
    let findings = run(bench).await.inspect_err(|_| store.iter_mut().for_each(TemporaryStore::keep))?;
    let (report, json, summary) = write_report(bench, findings, &arguments.out, store.is_some())?;
    let log = log::place().map_or_else(String::new, |path| format!("log: {path}\n"));
    print(&if arguments.json { json } else { summary + &log })?;
    Ok(report)
}

/// Writes what a run leaves behind; the report, and its text as JSON and for people.
pub(super) fn write_report(
    bench: &Bench,
    findings: Findings,
    out: &Utf8Path,
    logs_end_with_run: bool,
) -> anyhow::Result<(Report, String, String)> {
    let mut report = make_report(bench, findings)?;
    if logs_end_with_run {
        report.findings.iter_mut().for_each(|finding| finding.logs.clear());
    }
    let (json, summary) = (to_json(&report), summarise(&report));
    for (name, text) in [
        ("report.json", &json),
        ("summary.txt", &summary),
        ("summary.md", &to_markdown(&report, PAGE_LIMIT)),
        ("report.html", &to_html(&report)),
        ("junit.xml", &to_junit(&report)),
    ] {
        write_whole(&out.join(name), text)?;
    }
    for planted in &report.planted_faults {
        let name = match planted.route {
            Route::MpRedis => format!("faults-{}-redis.md", planted.model),
            _ => format!("faults-{}.md", planted.model),
        };
        let path = out.join(name);
        write_whole(&path, &tabulate_faults(&planted.findings))?;
    }
    Ok((report, json, summary))
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
    let Findings { compared, not_run, conclusion, planted, foreign, verdict } = outcome;
    let not_run: Vec<NotRun> = not_run
        .into_iter()
        .map(|not_run| NotRun {
            model: not_run.model.name().to_owned(),
            route: not_run.route,
            reason: format!("failed to {}", not_run.reason.in_full()),
            next_step: not_run.reason.hint().unwrap_or_default(),
        })
        .collect();
    let planted_faults = planted
        .into_iter()
        .map(|planted| PlantedFaults {
            model: planted.model.name().to_owned(),
            route: planted.route,
            doubt: planted.findings.doubt(),
            findings: planted.findings,
            artifact: planted.artifact.output_digest(),
            log: planted.artifact.note_path(""),
        })
        .collect();
    let foreign_kv: Vec<ForeignKv> = foreign
        .into_iter()
        .map(|foreign| ForeignKv {
            model: foreign.model.name().to_owned(),
            findings: foreign.findings,
            artifact: foreign.artifact.output_digest(),
            log: foreign.artifact.note_path(""),
        })
        .collect();
    let void = foreign_kv.iter().filter(|foreign| !foreign.findings.control_holds()).count();
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
        exit_code: exit_code_of_run(verdict, not_run.len() + void),
        suite: bench.suite.clone(),
        device: bench.device.clone(),
        environment: bench.environment.identity().clone(),
        findings,
        not_run,
        planted_faults,
        foreign_kv,
    })
}
