//! Runs the cells of an atlas, one pair of releases after the other, and charts what each came to.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use clap::Parser;
use fs_err as fs;

use super::arguments::RunArguments;
use super::atlas_arguments::{AtlasCommand, AtlasRunArguments};
use super::output::{OutputError, print, write_whole};
use super::prepare::{changed_suite, prepare, stack};
use super::report::read_report;
use super::stack::{Replacement, replace};
use super::untestable::why_unjudged;
use super::write_report::write_report;
use crate::atlas::{Cell, Chart, Description, Made, Outcome, Pair, pairs, plan, to_page};
use crate::engine::environment::{
    Environment, EnvironmentError, EnvironmentRequest, LayerKind, Releases, Stack, lock_releases,
};
use crate::event::{Event, Events};
use crate::machine::DeviceKind;
use crate::pipeline::{Bench, Inputs, Locating, prepare_inputs, run};
use crate::suite::Suite;
use crate::thread::on_thread;

/// Cells are left that were not tried.
const WAITING: u8 = 3;
const CHART: &str = "atlas.json";

/// The words of a `run` as its arguments.
#[derive(Debug, Parser)]
struct RunWords {
    #[command(flatten)]
    arguments: RunArguments,
}

pub(super) async fn tend_atlas(command: AtlasCommand) -> anyhow::Result<ExitCode> {
    match command {
        AtlasCommand::Plan { atlas } => {
            let description = Description::load(&atlas)?;
            let suite = suite_of(&description, &run_arguments(&description, None, false)?)?;
            print(&(serde_json::to_string_pretty(&plan(&description, &suite))? + "\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        AtlasCommand::Run(arguments) => run_atlas(&arguments).await,
        AtlasCommand::Add { chart, reports } => add_reports(&chart, &reports),
        AtlasCommand::Page { charts, out } => {
            let missing = |path: &Utf8Path| {
                format!("read the chart {path}: there is none\n\nhint: `atlas run` and `atlas add` write one")
            };
            let charts: Vec<Chart> = charts
                .iter()
                .map(|path| Chart::load(path)?.with_context(|| missing(path)))
                .collect::<anyhow::Result<_>>()?;
            write_whole(&out, &to_page(&charts))?;
            print(&format!("{out}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What a `run` of the description's cells would be told.
fn run_arguments(
    description: &Description,
    cache: Option<&Utf8Path>,
    quiet: bool,
) -> anyhow::Result<RunArguments> {
    let routes: Vec<&str> = description.routes.iter().map(|route| route.name()).collect();
    let mut words = vec!["run".to_owned(), "--suite".to_owned(), description.suite.clone()];
    words.extend([
        "--device".to_owned(),
        description.device.to_string(),
        "--route".to_owned(),
        routes.join(","),
    ]);
    words.extend(cache.into_iter().flat_map(|cache| ["--cache".to_owned(), cache.to_string()]));
    words.extend(quiet.then(|| "--quiet".to_owned()));
    let arguments = RunWords::try_parse_from(words).map_err(|error| {
        let problem = error.to_string();
        let problem = problem.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        anyhow::anyhow!(
            "understand the atlas {}: {problem}\n\nhint: `kv-correctness run --help` lists what a run can be told",
            description.name
        )
    })?;
    Ok(arguments.arguments)
}

fn suite_of(description: &Description, arguments: &RunArguments) -> anyhow::Result<Suite> {
    let mut suite = changed_suite(arguments)?;
    suite.questions = description.questions.or(suite.questions);
    Ok(suite)
}

async fn run_atlas(arguments: &AtlasRunArguments) -> anyhow::Result<ExitCode> {
    let description = Description::load(&arguments.atlas)?;
    let run_arguments = run_arguments(&description, arguments.cache.as_deref(), arguments.quiet)?;
    let suite = suite_of(&description, &run_arguments)?;
    let (mut bench, _store) = prepare(&run_arguments)?;
    (bench.request.suite, bench.request.locating) = (suite, Locating::NotAsked);
    let out = &arguments.out;
    fs::create_dir_all(out).map_err(OutputError::at(out))?;
    let path = out.join(CHART);
    let named = || Chart::new(&description.name, &description.description, description.device);
    let mut chart = Chart::load(&path)?.unwrap_or_else(named);
    let vllm = description.vllm().map(|(version, _)| version.clone()).collect();
    chart.follow(vllm, description.lmcache.clone(), plan(&description, &bench.request.suite));
    save(&chart, out)?;
    let inputs = prepare_inputs(&bench).await?;
    let mut environments = Environments {
        description: &description,
        out,
        at_most: usize::try_from(arguments.disk_gib.get() << 30).unwrap_or(usize::MAX)
            / usize::try_from(stack(&bench.request.device).disk_bytes())?,
        kept: Vec::new(),
    };
    let wanted =
        |outcome: &Outcome| *outcome == Outcome::Waiting || (arguments.again && outcome.may_be_tried_again());
    let todo: Vec<Pair> = pairs(chart.rows.iter().filter(|row| wanted(&row.outcome)).map(|row| &row.cell));
    let (started, limit) =
        (Instant::now(), arguments.hours.map(|hours| Duration::from_secs_f64(hours * 3600.0)));
    for (place, pair) in todo.iter().enumerate() {
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            break;
        }
        let left = if place == 0 {
            String::new()
        } else {
            let each = started.elapsed().as_secs_f64() / place as f64;
            format!("; about {:.0} min left", each * (todo.len() - place) as f64 / 60.0)
        };
        let words = format!(
            "pair {} of {}: vLLM {} with LMCache {}{left}",
            place + 1,
            todo.len(),
            pair.vllm,
            pair.lmcache
        );
        bench.desk.events.emit(Event::AtlasStep { words });
        run_pair(&mut bench, &inputs, &mut environments, pair, &mut chart).await?;
        save(&chart, out)?;
    }
    let waiting = chart.rows.iter().filter(|row| row.outcome == Outcome::Waiting).count();
    print(&summary(&chart, waiting, out))?;
    Ok(ExitCode::from(if waiting == 0 { 0 } else { WAITING }))
}

/// Writes the chart and its page.
fn save(chart: &Chart, out: &Utf8Path) -> anyhow::Result<()> {
    write_whole(&out.join(CHART), &(serde_json::to_string_pretty(chart)? + "\n"))?;
    write_whole(&out.join("atlas.html"), &to_page(std::slice::from_ref(chart)))?;
    Ok(())
}

/// Runs the cells of one pair, and notes what each came to.
async fn run_pair(
    bench: &mut Bench,
    inputs: &Inputs,
    environments: &mut Environments<'_>,
    pair: &Pair,
    chart: &mut Chart,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let cells: Vec<Cell> = chart
        .rows
        .iter()
        .map(|row| &row.cell)
        .filter(|cell| cell.vllm == pair.vllm && cell.lmcache == pair.lmcache)
        .filter(|cell| pair.cells.contains(&(cell.model.clone(), cell.route)))
        .cloned()
        .collect();
    match environments.provide(bench, pair).await? {
        Ok(environment) => bench.desk.environment = Some(environment),
        Err(reason) => {
            for cell in &cells {
                chart.set(cell, Outcome::NoEnvironment { reason: reason.clone() }, None);
            }
            return Ok(());
        }
    }
    bench.request.cells = Some(pair.cells.iter().cloned().collect());
    let found = run(bench, inputs).await;
    bench.desk.fork_servers.end().await; // they have imported these releases
    let mut findings = match found {
        Ok(findings) => findings,
        Err(error) => {
            let Some(reason) = why_unjudged(&error) else { return Err(error.into()) };
            for cell in &cells {
                chart.set(cell, Outcome::NotRun { reason: reason.clone() }, None);
            }
            return Ok(());
        }
    };
    if let Some(error) = findings.failure.take()
        && why_unjudged(&error).is_none()
    {
        return Err(error.into()); // the next pair would meet it, too
    }
    let folder = format!("pairs/vllm-{}-lmcache-{}", pair.vllm, pair.lmcache);
    let (report, _, _) = write_report(bench, findings, &environments.out.join(&folder), false)?;
    let made = Made::of(&report, &format!("{folder}/report.html"), Some(started.elapsed().as_secs()));
    for cell in &cells {
        let is_of = |model: &str, route| model == cell.model && route == cell.route;
        let finding = report.findings.iter().find(|finding| is_of(&finding.model, finding.route));
        let not_run = report.not_run.iter().find(|not_run| is_of(&not_run.model, not_run.route));
        let outcome = match (finding, not_run) {
            (Some(finding), _) => Outcome::of_finding(finding),
            (None, Some(not_run)) => Outcome::NotRun { reason: not_run.reason.clone() },
            (None, None) => Outcome::NotRun { reason: "failed to find it in the report".to_owned() },
        };
        chart.set(cell, outcome, Some(made.clone()));
    }
    Ok(())
}

/// Environments, each of one vLLM; every LMCache lies on top.
struct Environments<'a> {
    description: &'a Description,
    out: &'a Utf8Path,
    /// How many may be kept.
    at_most: usize,
    /// Those that were made, the one that served last behind the others.
    kept: Vec<(String, Utf8PathBuf)>,
}

impl Environments<'_> {
    /// The environment of a pair; or why there is none.
    async fn provide(&mut self, bench: &Bench, pair: &Pair) -> anyhow::Result<Result<Environment, String>> {
        let (cache, events) = (&bench.desk.cache, &bench.desk.events);
        let stack = stack(&bench.request.device);
        let known = self.kept.iter().position(|(vllm, _)| *vllm == pair.vllm);
        match known {
            Some(place) => {
                let used = self.kept.remove(place);
                self.kept.push(used);
            }
            None => {
                while self.kept.len() >= self.at_most.max(1) {
                    let (_, folder) = self.kept.remove(0);
                    fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
                        std::io::ErrorKind::NotFound => Ok(()),
                        _ => Err(error),
                    })?;
                }
            }
        }
        let base = match self.base(stack, pair, cache, events).await? {
            Ok(base) => base,
            Err(reason) => return Ok(Err(reason)),
        };
        if known.is_none() {
            self.kept.push((pair.vllm.clone(), base.folder().to_owned()));
        }
        let layer = Replacement::Release { kind: LayerKind::Lmcache, version: pair.lmcache.clone() };
        Ok(replace(&base, vec![layer], stack, cache, events)
            .await?
            .map_err(|error| format!("failed to {error}")))
    }

    /// The environment of a vLLM with what the newest LMCache that fits it depends on.
    async fn base(
        &self,
        stack: Stack,
        pair: &Pair,
        cache: &Utf8Path,
        events: &Events,
    ) -> anyhow::Result<Result<Environment, String>> {
        let torch = self.description.torch_of(&pair.vllm).context("a pair is of releases that are named")?;
        let mut request = EnvironmentRequest::from_variables(stack, cache.to_owned());
        (request.given, request.given_baseline) = (None, None);
        let path = self.out.join("packages").join(format!("vllm-{}.txt", pair.vllm));
        let releases = |lmcache: &String| Releases {
            vllm: pair.vllm.clone(),
            lmcache: lmcache.clone(),
            torch: torch.to_owned(),
        };
        let candidates: Vec<Releases> = self.description.lmcache.iter().rev().map(releases).collect();
        let events = events.clone();
        let work = move || -> Result<Environment, EnvironmentError> {
            let mut first_error = None;
            for releases in &candidates {
                match lock_releases(&request, releases, &path, &events) {
                    Ok(lock) => {
                        request.lock = Some(lock);
                        return request.provide(&events);
                    }
                    Err(error @ EnvironmentError::Step { .. }) => {
                        first_error.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(first_error.expect("an atlas names a release of LMCache"))
        };
        match on_thread(work).await? {
            Ok(environment) => Ok(Ok(environment)),
            Err(error @ EnvironmentError::Step { .. }) => {
                let EnvironmentError::Step { step, outcome, .. } = &error else {
                    unreachable!("just matched")
                };
                Ok(Err(format!("failed to {step}: {outcome}")))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn summary(chart: &Chart, waiting: usize, out: &Utf8Path) -> String {
    let mut text = String::new();
    for pair in pairs(chart.rows.iter().map(|row| &row.cell)) {
        let of_pair =
            chart.rows.iter().filter(|row| row.cell.vllm == pair.vllm && row.cell.lmcache == pair.lmcache);
        for row in of_pair.filter(|row| row.outcome != Outcome::Waiting) {
            let words = match &row.outcome {
                Outcome::Judged { verdict, decided_by, .. } => {
                    format!("{verdict}, decided by {}", decided_by.short_name())
                }
                Outcome::NotRun { reason } => {
                    format!("not run: {}", reason.lines().next().unwrap_or_default())
                }
                Outcome::NoEnvironment { reason } => {
                    format!("no environment: {}", reason.lines().next().unwrap_or_default())
                }
                Outcome::Waiting => continue,
            };
            let cell = &row.cell;
            text += &format!(
                "{:<10} {:<10} {:<16} {:<10} {words}\n",
                cell.vllm, cell.lmcache, cell.model, cell.route
            );
        }
    }
    if waiting > 0 {
        text += &format!("\n{waiting} of {} cells wait: the same command goes on\n", chart.rows.len());
    }
    text + &format!("\npage: {}\n", out.join("atlas.html"))
}

/// Adds reports to a chart, which links to them from where it is.
fn add_reports(path: &Utf8Path, reports: &[Utf8PathBuf]) -> anyhow::Result<ExitCode> {
    let mut chart = Chart::load(path)?;
    for place in reports {
        let report = read_report(place)?;
        let chart = chart.get_or_insert_with(|| {
            let name = path.file_stem().unwrap_or("atlas");
            let device = report.device.kind();
            let description = match device {
                DeviceKind::Cpu => "what was run on processors",
                DeviceKind::Cuda => "what was run on GPUs",
            };
            Chart::new(name, description, device)
        });
        anyhow::ensure!(
            report.device.kind() == chart.device,
            "add {place} to {path}: it was computed on {}, and the chart is of {}\n\nhint: name another chart",
            report.device.kind(),
            chart.device
        );
        chart.add_report(&report, &link(path, place));
    }
    let chart = chart.context("clap asks for a report")?;
    write_whole(path, &(serde_json::to_string_pretty(&chart)? + "\n"))?;
    print(&format!("{path}: {} cells\n", chart.rows.len()))?;
    Ok(ExitCode::SUCCESS)
}

/// How a chart's folder leads to a report: by the shortest way down or up, else by the report's own path.
fn link(chart: &Utf8Path, report: &Utf8Path) -> String {
    let whole = |path: &Utf8Path| camino::absolute_utf8(path).unwrap_or_else(|_| path.to_owned());
    let folder = chart.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    let (from, to) = (whole(folder), whole(report));
    let shared = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(shared).map(|_| "..".to_owned());
    let down = to.components().skip(shared).map(|part| part.as_str().to_owned());
    up.chain(down).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_links_to_reports_from_where_it_is() {
        let link = |chart: &str, report: &str| link(Utf8Path::new(chart), Utf8Path::new(report));
        assert_eq!(
            link("docs/atlas/gpu.json", "docs/evidence/h200/mp.json.xz"),
            "../evidence/h200/mp.json.xz"
        );
        assert_eq!(link("atlas.json", "out/report.json"), "out/report.json");
    }

    #[test]
    fn an_atlas_that_a_run_would_refuse_is_refused_with_its_name() {
        let mut description = Description::load("cpu").unwrap();
        assert!(run_arguments(&description, None, false).is_ok());
        description.routes.push(crate::model::Route::named("no-such-route"));
        let error = run_arguments(&description, None, false).unwrap_err().to_string();
        assert!(error.contains("the atlas cpu") && error.contains("no-such-route"), "{error}");
    }
}
