//! What a run leaves behind in its folder: the report in every format.

use anyhow::Context;
use camino::Utf8Path;

use super::output::write_whole;
use super::report::to_json;
use crate::carrier::{Carrier, PlantingGround, find_carrier};
use crate::dataset::Shard;
use crate::exit_code::{ERROR, exit_code_of_run};
use crate::pipeline::{Bench, Findings, Pressed, Talked};
use crate::report::{
    Finding, ForeignKv, PAGE_LIMIT, PlantedFaults, Report, SCHEMA, Talk, UnderPressure, summarise,
    tabulate_faults, to_html, to_junit, to_markdown,
};
use crate::stage::{read_dataset, read_ready};
use crate::stage_name::StageName;

/// Writes what a run leaves behind; the report, and its text as JSON and for people. What is `read_elsewhere` holds no place of this
/// machine.
pub(super) fn write_report(
    bench: &Bench,
    findings: Findings,
    out: &Utf8Path,
    read_elsewhere: bool,
) -> anyhow::Result<(Report, String, String)> {
    let mut report = make_report(bench, findings)?;
    if read_elsewhere {
        report.findings.iter_mut().for_each(|finding| finding.logs.clear());
        report = serde_json::from_str(&without_places(&to_json(&report), bench)?)?;
    }
    let (json, summary) = write_formats(&report, out)?;
    Ok((report, json, summary))
}

/// A text with words for the folders that engines name in their errors.
pub(super) fn without_places(text: &str, bench: &Bench) -> anyhow::Result<String> {
    let environment = bench.desk.environment.as_ref().context("a run has an environment")?.folder();
    let text = text.replace(&format!("{environment}/"), "<environment>/");
    Ok(text.replace(&format!("{}/", bench.desk.cache), "<cache>/"))
}

/// Writes a report in every format; its text as JSON and for people.
pub(super) fn write_formats(report: &Report, out: &Utf8Path) -> anyhow::Result<(String, String)> {
    let (json, summary) = (to_json(report), summarise(report));
    for (name, text) in [
        ("report.json", &json),
        ("summary.txt", &summary),
        ("summary.md", &to_markdown(report, PAGE_LIMIT)),
        ("report.html", &to_html(report)),
        ("junit.xml", &to_junit(report)),
    ] {
        write_whole(&out.join(name), text)?;
    }
    for planted in &report.planted_faults {
        let name = match find_carrier(planted.route).ok().and_then(Carrier::planting_ground) {
            Some(PlantingGround::Redis) => format!("faults-{}-redis.md", planted.model),
            Some(PlantingGround::Folder) | None => format!("faults-{}.md", planted.model),
        };
        let path = out.join(name);
        write_whole(&path, &tabulate_faults(&planted.findings))?;
    }
    Ok((json, summary))
}

fn talk(talked: Talked) -> Talk {
    Talk {
        model: talked.model.name().to_owned(),
        route: talked.route,
        judgement: talked.findings.judge(),
        findings: talked.findings,
        artifact: talked.artifact.output_digest(),
        log: talked.artifact.note_path(""),
    }
}

fn under_pressure(pressed: Pressed, shard: Option<Shard>) -> UnderPressure {
    UnderPressure {
        model: pressed.model.name().to_owned(),
        route: pressed.route,
        shard,
        judgement: pressed.findings.judgement(),
        findings: pressed.findings,
        artifact: pressed.artifact.output_digest(),
        log: pressed.artifact.note_path(""),
    }
}

fn make_report(bench: &Bench, outcome: Findings) -> anyhow::Result<Report> {
    let Findings { compared, not_run, conclusion, planted, foreign, talked, pressed, verdict, failure: _ } =
        outcome;
    let environment = bench.desk.environment.as_ref().context("a run has an environment")?;
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
            kv_shape: compared.model.files().kv_shape()?,
            route: compared.route,
            connector_digest: find_carrier(compared.route)?.content(),
            judgement,
            flipped_questions,
            engine: read_ready(cached)?,
            keys: compared
                .artifacts
                .iter()
                .filter_map(|(stage, found)| Some((*stage, found.key()?)))
                .collect(),
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
        exit_code: match bench.request.shard {
            _ if findings.is_empty() => ERROR,
            // The verdict is that of all shards together.
            Some(_) if not_run.is_empty() => 0,
            Some(_) => ERROR,
            None => exit_code_of_run(verdict, not_run.len() + void),
        },
        shard: bench.request.shard,
        merged_from: Vec::new(),
        suite: bench.request.suite.clone(),
        device: bench.request.device.clone(),
        environment: environment.identity().clone(),
        findings,
        not_run,
        planted_faults,
        foreign_kv,
        talks: talked.into_iter().map(talk).collect(),
        pressure: pressed.into_iter().map(|pressed| under_pressure(pressed, bench.request.shard)).collect(),
    })
}
