//! Runs the cells of an atlas, one pair of releases after the other, and charts what each came to.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use clap::Parser;
use fs_err as fs;

use super::atlas_arguments::{AtlasCommand, AtlasRunArguments};
use super::atlas_environments::Environments;
use super::output::{OutputError, print, write_whole};
use super::prepare::{changed_suite, prepare};
use super::report::read_report;
use super::run_arguments::RunArguments;
use super::untestable::why_unjudged;
use super::write_report::{without_places, write_report};
use crate::atlas::{Cell, Chart, Description, Made, Outcome, Pair, Row, pairs, plan, to_page};
use crate::carrier::find_carrier;
use crate::event::Event;
use crate::lock::FileLock;
use crate::machine::DeviceKind;
use crate::pipeline::{Bench, Inputs, Locating, prepare_inputs, run};
use crate::stage::Compare;
use crate::suite::Suite;

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
            print(&(serde_json::to_string_pretty(&plan(&description, &suite, Compare::SCHEMA))? + "\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        AtlasCommand::Run(arguments) => run_atlas(&arguments).await,
        AtlasCommand::Add { chart, reports } => add_reports(&chart, &reports),
        AtlasCommand::Page { charts, out } => {
            let load = |path: &Utf8PathBuf| -> anyhow::Result<Chart> {
                let mut chart = load_chart(path)?;
                let folder = folder_of(path);
                for made in chart.rows.iter_mut().filter_map(|row| row.made.as_mut()) {
                    made.report = link(&out, &folder.join(&made.report));
                }
                Ok(chart)
            };
            let charts: Vec<Chart> = charts.iter().map(load).collect::<anyhow::Result<_>>()?;
            write_whole(&out, &to_page(&charts))?;
            print(&format!("{out}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A chart that must be there.
fn load_chart(path: &Utf8Path) -> anyhow::Result<Chart> {
    let missing =
        || format!("read the chart {path}: there is none\n\nhint: `atlas run` and `atlas add` write one");
    Chart::load(path)?.with_context(missing)
}

/// What a `run` of the description's cells would be told.
fn run_arguments(
    description: &Description,
    cache: Option<&Utf8Path>,
    quiet: bool,
) -> anyhow::Result<RunArguments> {
    for &route in &description.routes {
        find_carrier(route).map_err(|error| {
            anyhow::anyhow!("understand the atlas {}: {error}\n\nhint: {}", description.name, error.hint())
        })?;
    }
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
    let what = format!("the atlas in {out}");
    let _lock = FileLock::take(&out.join("atlas.lock"), &what, Duration::ZERO, &bench.desk.events)?;
    let path = out.join(CHART);
    let named = || Chart::new(&description.name, &description.description, description.device);
    let mut chart = Chart::load(&path)?.unwrap_or_else(named);
    anyhow::ensure!(
        (&chart.name, chart.device) == (&description.name, description.device),
        "go on with {path}: it is of the atlas {} on {}\n\nhint: name another folder with `--out DIR`",
        chart.name,
        chart.device
    );
    for version in &arguments.vllm {
        anyhow::ensure!(
            description.torch_of(version).is_some(),
            "run vLLM {version}: the atlas {} names no such release\n\nhint: `atlas plan {}` lists its cells",
            description.name,
            arguments.atlas
        );
    }
    let cells = plan(&description, &bench.request.suite, Compare::SCHEMA);
    let vllm = description.vllm().map(|(version, _)| version.clone()).collect();
    chart.follow(vllm, description.lmcache.clone(), cells.clone());
    save(&chart, out)?;
    let inputs = prepare_inputs(&bench).await?;
    let mut environments = Environments::of(&description, arguments, &bench)?;
    let is_todo = |cell: &&Cell| {
        let row = chart.rows.iter().find(|row| row.cell == **cell);
        let may = |outcome: &Outcome| {
            *outcome == Outcome::Waiting || (arguments.again && outcome.may_be_tried_again())
        };
        row.is_some_and(|row| may(&row.outcome))
    };
    let is_asked = |cell: &&Cell| arguments.vllm.is_empty() || arguments.vllm.contains(&cell.vllm);
    let todo: Vec<Cell> = cells.iter().filter(is_todo).filter(is_asked).cloned().collect();
    let mut work: Vec<Pair> = pairs(&todo);
    // Its report holds all cells of a pair: those that are finished take no time.
    for pair in &mut work {
        pair.cells = cells.iter().filter(|cell| pair.is_of(cell)).cloned().collect();
    }
    let (started, limit) =
        (Instant::now(), arguments.hours.map(|hours| Duration::from_secs_f64(hours * 3600.0)));
    for (place, pair) in work.iter().enumerate() {
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            break;
        }
        let left = if place == 0 {
            String::new()
        } else {
            let each = started.elapsed() / u32::try_from(place)?;
            format!("; about {} min left", each.as_secs() * u64::try_from(work.len() - place)? / 60)
        };
        let words = format!(
            "pair {} of {}: vLLM {} with LMCache {}{left}",
            place + 1,
            work.len(),
            pair.vllm,
            pair.lmcache
        );
        bench.desk.events.emit(Event::AtlasStep { words });
        for (cell, outcome, made) in run_pair(&mut bench, &inputs, &mut environments, pair, out).await? {
            if todo.contains(&cell) {
                chart.set(&cell, outcome, made);
            }
        }
        save(&chart, out)?;
    }
    let waits = |row: &&Row| row.outcome == Outcome::Waiting;
    let waiting = chart.rows.iter().filter(waits).filter(|row| is_asked(&&row.cell)).count();
    let of_others = chart.rows.iter().filter(waits).count() - waiting;
    print(&summary(&chart, waiting, of_others, out))?;
    Ok(ExitCode::from(if waiting == 0 { 0 } else { WAITING }))
}

/// Writes the chart and its page.
fn save(chart: &Chart, out: &Utf8Path) -> anyhow::Result<()> {
    write_whole(&out.join(CHART), &(serde_json::to_string_pretty(chart)? + "\n"))?;
    write_whole(&out.join("atlas.html"), &to_page(std::slice::from_ref(chart)))?;
    Ok(())
}

/// Runs the cells of one pair: what each came to, and how.
async fn run_pair(
    bench: &mut Bench,
    inputs: &Inputs,
    environments: &mut Environments<'_>,
    pair: &Pair,
    out: &Utf8Path,
) -> anyhow::Result<Vec<(Cell, Outcome, Option<Made>)>> {
    let started = Instant::now();
    let all =
        |outcome: &Outcome| pair.cells.iter().map(|cell| (cell.clone(), outcome.clone(), None)).collect();
    match environments.provide(bench, pair).await? {
        Ok(environment) => bench.desk.environment = Some(environment),
        Err(reason) => return Ok(all(&Outcome::NoEnvironment { reason })),
    }
    bench.request.cells = Some(pair.cells.iter().map(|cell| (cell.model.clone(), cell.route)).collect());
    let found = run(bench, inputs).await;
    bench.desk.fork_servers.end().await; // they have imported these releases
    let mut findings = match found {
        Ok(findings) => findings,
        Err(error) => match why_unjudged(&error) {
            Some(reason) => {
                let reason = without_places(&reason, bench)?;
                return Ok(all(&Outcome::NotRun { reason }));
            }
            None => return Err(error.into()),
        },
    };
    if let Some(error) = findings.failure.take()
        && why_unjudged(&error).is_none()
    {
        return Err(error.into()); // the next pair would meet it, too
    }
    let folder = format!("pairs/{}", pair.name());
    // It is read on other machines, where no log of this one is.
    let (report, _, _) = write_report(bench, findings, &out.join(&folder), true)?;
    let made = Made::of(&report, &format!("{folder}/report.html"), Some(started.elapsed().as_secs()));
    let outcome = |cell: &Cell| {
        let is_of = |model: &str, route| model == cell.model && route == cell.route;
        let finding = report.findings.iter().find(|finding| is_of(&finding.model, finding.route));
        let not_run = report.not_run.iter().find(|not_run| is_of(&not_run.model, not_run.route));
        match (finding, not_run) {
            (Some(finding), _) => Outcome::of_finding(finding),
            (None, Some(not_run)) => Outcome::NotRun { reason: not_run.reason.clone() },
            (None, None) => Outcome::NotRun { reason: "failed to find it in the report".to_owned() },
        }
    };
    Ok(pair.cells.iter().map(|cell| (cell.clone(), outcome(cell), Some(made.clone()))).collect())
}

fn summary(chart: &Chart, waiting: usize, of_others: usize, out: &Utf8Path) -> String {
    let mut lines = Vec::new();
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
            let place =
                format!("{:<10} {:<10} {:<16} {:<10}", cell.vllm, cell.lmcache, cell.model, cell.route);
            lines.push(format!("{place} {words}"));
        }
    }
    if waiting > 0 {
        lines.push(format!("\n{waiting} of {} cells wait: the same command goes on", chart.rows.len()));
    }
    if of_others > 0 {
        lines.push(format!("\n{of_others} cells of other releases of vLLM wait: leave out --vllm, or add charts of other machines (atlas add)"));
    }
    lines.push(format!("\npage: {}\n", out.join("atlas.html")));
    lines.join("\n")
}

/// Adds reports to a chart, which links to them from where it is.
fn add_reports(path: &Utf8Path, reports: &[Utf8PathBuf]) -> anyhow::Result<ExitCode> {
    let mut chart = Chart::load(path)?;
    for place in reports {
        let hint = "add reports of whole runs with released versions, and charts of this atlas";
        let refused = |why: String| anyhow::anyhow!("add {place} to {path}: {why}\n\nhint: {hint}");
        if let Ok(Some(other)) = Chart::load(place) {
            let new = || Chart::new(&other.name, &other.description, other.device);
            let leads = |report: &str| link(path, &folder_of(place).join(report));
            chart.get_or_insert_with(new).add_chart(other, leads).map_err(refused)?;
            continue;
        }
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
        let file = if place.is_dir() { place.join("report.json") } else { place.clone() };
        chart.add_report(&report, &link(path, &file)).map_err(refused)?;
    }
    let chart = chart.context("clap asks for a report")?;
    write_whole(path, &(serde_json::to_string_pretty(&chart)? + "\n"))?;
    print(&format!("{path}: {} cells\n", chart.rows.len()))?;
    Ok(ExitCode::SUCCESS)
}

/// How a file's folder leads to another file: by the shortest way up and down.
fn link(from: &Utf8Path, to: &Utf8Path) -> String {
    let whole = |path: &Utf8Path| {
        let path = camino::absolute_utf8(path).unwrap_or_else(|_| path.to_owned());
        path.components().fold(Utf8PathBuf::new(), |mut whole, part| {
            if part == Utf8Component::ParentDir {
                whole.pop();
            } else {
                whole.push(part);
            }
            whole
        })
    };
    let (from, to) = (whole(folder_of(from)), whole(to));
    let shared = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(shared).map(|_| "..".to_owned());
    let down = to.components().skip(shared).map(|part| part.as_str().to_owned());
    up.chain(down).collect::<Vec<_>>().join("/")
}

fn folder_of(file: &Utf8Path) -> &Utf8Path {
    file.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(Utf8Path::new("."))
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
