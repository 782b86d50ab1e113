//! Finds the first bad revision or release of LMCache or vLLM, one run of the suite a step.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use camino::Utf8Path;
use fs_err as fs;

use super::arguments::BisectArguments;
use super::hint::report_error;
use super::output::{print, write_whole};
use super::prepare::{bring_environment, prepare, stack};
use super::run::run_prepared;
use super::run_arguments::RunArguments;
use super::stack::{Replacement, replace};
use super::untestable::{why_unbuildable, why_unjudged};
use super::write_report::write_report;
use crate::bisect::{Entry, Header, Log, Mark, Next, Search, StepResult};
use crate::comparison::Verdict;
use crate::digest::digest_json;
use crate::engine::environment::{Commit, Environment, LayerKind, first_parents};
use crate::event::Event;
use crate::pipeline::{Bench, Findings, Inputs, Locating, prepare_inputs, run, run_stage};
use crate::report::{Known, Report};
use crate::stage::StageError;
use crate::stage_name::StageName;

/// An end of the range is not as it was said to be.
const VOID: u8 = 1;
/// The range cannot be narrowed to one revision.
const NOT_NARROWED: u8 = 3;

/// What `git bisect run` takes for "skip this revision".
const UNTESTABLE: u8 = 125;
/// What ends `git bisect run`.
const ABORT: u8 = 128;

/// What is searched: revisions with what each is called, and how each is made.
struct Line {
    what: &'static str,
    /// Full commits, or versions; oldest first.
    revisions: Vec<String>,
    subjects: Vec<String>,
    merges: Vec<bool>,
    replacement: Box<dyn Fn(&str) -> Replacement>,
}

impl Line {
    fn of(arguments: &BisectArguments) -> anyhow::Result<Self> {
        if let Some(list) = &arguments.vllm {
            return Self::of_releases("vLLM", LayerKind::Vllm, list);
        }
        let wanted = arguments.lmcache.as_deref().unwrap_or_default();
        let Some(checkout) = &arguments.run.stack.lmcache_src else {
            return Self::of_releases("LMCache", LayerKind::Lmcache, wanted);
        };
        let Some((good, bad)) = wanted.split_once("..") else {
            bail!("read the range {wanted:?}: it is not of the form GOOD..BAD");
        };
        let commits = first_parents(checkout, good, bad)?;
        let of = |field: fn(&Commit) -> String| commits.iter().map(field).collect();
        let folder = checkout.clone();
        Ok(Self {
            what: "LMCache",
            revisions: of(|commit| commit.revision.clone()),
            subjects: of(|commit| commit.subject.clone()),
            merges: commits.iter().map(|commit| commit.is_merge).collect(),
            replacement: Box::new(move |revision| Replacement::LmcacheSource {
                folder: folder.clone(),
                revision: Some(revision.to_owned()),
            }),
        })
    }

    fn of_releases(what: &'static str, kind: LayerKind, list: &str) -> anyhow::Result<Self> {
        if list.contains("..") {
            bail!(
                "read the releases {list:?}: a range of revisions needs --lmcache-src CHECKOUT; releases are listed, \
                 oldest first: 0.5.3,0.5.4,0.5.6"
            );
        }
        let revisions: Vec<String> = list.split(',').map(|version| version.trim().to_owned()).collect();
        let distinct: BTreeSet<&String> = revisions.iter().filter(|version| !version.is_empty()).collect();
        if revisions.len() < 2 || distinct.len() < revisions.len() {
            bail!(
                "read the releases {list:?}: at least two different ones are needed, oldest first, with commas between"
            );
        }
        Ok(Self {
            what,
            subjects: vec![String::new(); revisions.len()],
            merges: vec![false; revisions.len()],
            replacement: Box::new(move |version| Replacement::Release { kind, version: version.to_owned() }),
            revisions,
        })
    }

    fn name(&self, place: usize) -> &str {
        self.revisions[place].get(..12).unwrap_or(&self.revisions[place])
    }

    fn describe(&self, place: usize) -> String {
        format!("{} {}", self.name(place), self.subjects[place]).trim_end().to_owned()
    }
}

pub(super) async fn bisect(arguments: &BisectArguments) -> anyhow::Result<ExitCode> {
    let (run_arguments, line) = (&arguments.run, Line::of(arguments)?);
    let mut kept = run_arguments.stack.replacements();
    if arguments.lmcache.is_some() {
        kept.retain(|kept| matches!(kept, Replacement::Release { kind: LayerKind::Vllm, .. }));
    }
    let (mut bench, _store) = prepare(run_arguments)?;
    bench.request.locating = Locating::NotAsked;
    let inputs = prepare_inputs(&bench).await?;
    bring_environment(&mut bench, kept).await?;
    let base = bench.desk.environment.clone().context("it was just made")?;
    let out = &run_arguments.out;
    fs::create_dir_all(out).context("write the log; name another folder with `--out DIR`")?;
    let settings = digest_json(&(
        &bench.request.suite,
        &bench.request.device,
        base.identity_of_baseline(),
        arguments.vllm.as_ref().map(|_| base.identity()), // LMCache stays as it is
        (run_arguments.not_exercised_is_bad, run_arguments.faults, run_arguments.no_early_stop),
    ));
    let header = Header::new(line.what, line.revisions.clone(), settings.to_string());
    let mut log = Log::open(&out.join("bisect.jsonl"), &header)?;
    let mut search = Search::over(line.revisions.len());
    for entry in log.entries() {
        let place = line.revisions.iter().position(|revision| *revision == entry.revision);
        search.mark(place.context("a log has revisions of its search alone")?, entry.mark);
    }
    if arguments.lmcache.is_some() {
        run_without_lmcache(&bench, &inputs).await?; // what fails here is no fault of a revision
    }
    let end = loop {
        let untested = search.marks().iter().position(Option::is_none).filter(|_| arguments.all);
        let place = match (search.next(), untested) {
            (Next::Test(place), _) | (_, Some(place)) => place,
            (end, None) => break end,
        };
        let left = if arguments.all {
            search.marks().iter().filter(|mark| mark.is_none()).count()
        } else {
            search.tests_left()
        };
        let words = format!(
            "testing {} ({} of {}; at most {left} to test)",
            line.describe(place),
            place + 1,
            line.revisions.len()
        );
        bench.desk.events.emit(Event::BisectStep { words });
        let started = Instant::now();
        let result = if line.merges[place] && place != 0 && place + 1 != line.revisions.len() {
            StepResult::Merge
        } else {
            let replacement = (line.replacement)(&line.revisions[place]);
            let steps = out.join("steps").join(line.name(place));
            test(&mut bench, &inputs, &base, replacement, &steps).await?
        };
        let entry = Entry {
            revision: line.revisions[place].clone(),
            mark: mark(&result, run_arguments),
            result,
            seconds: started.elapsed().as_secs(),
        };
        bench
            .desk
            .events
            .emit(Event::BisectStep { words: format!("{} is {}", line.name(place), entry.describe()) });
        search.mark(place, entry.mark);
        log.add(entry)?;
    };
    let (table, code) = conclude(&line, &log, &end);
    write_whole(&out.join("bisect.txt"), &table)?;
    print(&table)?;
    Ok(ExitCode::from(code))
}

/// A step of `git bisect run`: what cannot be tested is skipped, and where nothing can be tested the bisection ends.
pub(super) async fn run_step(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let step = async {
        let (mut bench, store) = prepare(arguments)?;
        bench.request.locating = Locating::NotAsked;
        let inputs = prepare_inputs(&bench).await?;
        bring_environment(&mut bench, arguments.stack.replacements()).await?;
        if arguments.stack.vllm_version.is_none() {
            let error = |error: StageError| anyhow::anyhow!("run the arms without LMCache: {error}");
            run_without_lmcache(&bench, &inputs).await.map_err(error)?; // no fault of a revision
        }
        run_prepared(&bench, &inputs, store, arguments).await
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

/// Runs what every step of a search over LMCache shares.
async fn run_without_lmcache(bench: &Bench, inputs: &Inputs) -> Result<(), StageError> {
    run_stage(bench, inputs, StageName::Baseline).await?;
    run_stage(bench, inputs, StageName::Control).await?;
    Ok(())
}

/// Tests one revision: builds it, runs the suite, keeps the report.
async fn test(
    bench: &mut Bench,
    inputs: &Inputs,
    base: &Environment,
    replacement: Replacement,
    out: &Utf8Path,
) -> anyhow::Result<StepResult> {
    let (device, desk) = (&bench.request.device, &mut bench.desk);
    match replace(base, vec![replacement], stack(device), &desk.cache, &desk.events).await? {
        Ok(environment) => desk.environment = Some(environment),
        Err(error) => match why_unbuildable(&error) {
            Some(why) => return Ok(StepResult::Unbuildable(why)),
            None => return Err(error.into()),
        },
    }
    let findings = run(bench, inputs).await.and_then(Findings::of_comparisons);
    bench.desk.fork_servers.end().await; // they have imported this revision
    match findings {
        Ok(findings) => {
            fs::create_dir_all(out)?;
            let (report, _, _) = write_report(bench, findings, out, false)?;
            Ok(judged_report(&report))
        }
        Err(error) => match why_unjudged(&error) {
            Some(why) => Ok(StepResult::Failed(why)),
            None => Err(error.into()),
        },
    }
}

/// What a report comes to.
fn judged_report(report: &Report) -> StepResult {
    // A model or route that failed hides what it would have shown, unless another one shows harm.
    let failed = report.not_run.iter().find(|not_run| not_run.known == Known::AfterTrying);
    if let Some(failed) = failed.filter(|_| report.verdict != Verdict::Degraded) {
        return StepResult::Failed(failed.reason.trim_start_matches("failed to ").to_owned());
    }
    let doubts = report.planted_faults.iter().filter_map(|planted| planted.doubt.as_ref());
    let pressed = report.pressure.iter().map(|pressed| &pressed.judgement);
    let judgements = report.findings.iter().map(|finding| &finding.judgement).chain(doubts).chain(pressed);
    let rung = judgements.into_iter().find(|judgement| judgement.verdict == report.verdict);
    StepResult::Judged {
        verdict: report.verdict,
        rung: rung.map_or(crate::comparison::Rung::Exercised, |judgement| judgement.decided_by),
    }
}

/// What a step means for the search.
fn mark(result: &StepResult, arguments: &RunArguments) -> Mark {
    match result {
        StepResult::Judged { verdict: Verdict::Equivalent, .. } => Mark::Good,
        StepResult::Judged { verdict: Verdict::Degraded, .. } => Mark::Bad,
        StepResult::Judged { verdict: Verdict::NotExercised, .. } if arguments.not_exercised_is_bad => {
            Mark::Bad
        }
        _ => Mark::Skipped,
    }
}

/// The table of verdicts with what was found, and the exit status.
fn conclude(line: &Line, log: &Log, end: &Next) -> (String, u8) {
    let mut text = format!("{}, {} revisions, oldest first\n\n", line.what, line.revisions.len());
    let entry = |place: usize| log.entries().iter().find(|entry| entry.revision == line.revisions[place]);
    for place in 0..line.revisions.len() {
        let words = entry(place).map_or_else(
            || "not tested".to_owned(),
            |entry| format!("{} ({} s)", entry.describe(), entry.seconds),
        );
        writeln!(text, "  {:<12} {words}", line.name(place)).expect("a string can be written to");
        if !line.subjects[place].is_empty() {
            writeln!(text, "  {:<12} {}", "", line.subjects[place]).expect("a string can be written to");
        }
    }
    let (words, code) = match end {
        Next::Found(range) if range.len() == 1 => {
            (format!("the first bad revision is {}", line.describe(range.start)), 0)
        }
        Next::Found(range) => {
            let names: Vec<&str> = range.clone().map(|place| line.name(place)).collect();
            (
                format!(
                    "the first bad revision is one of {}; all but the last cannot be tested",
                    names.join(", ")
                ),
                NOT_NARROWED,
            )
        }
        Next::Void { revision, .. } => {
            let held = if *revision == 0 { "good" } else { "bad" };
            let is = entry(*revision).map_or_else(String::new, Entry::describe);
            (format!("nothing to find: {} was said to be {held}, and is {is}", line.name(*revision)), VOID)
        }
        Next::Contradiction { bad, good } => (
            format!(
                "there is no first bad revision: {} is bad, and the later {} is good",
                line.name(*bad),
                line.name(*good)
            ),
            NOT_NARROWED,
        ),
        Next::Test(_) => ("the search is not finished".to_owned(), NOT_NARROWED),
    };
    writeln!(text, "\n{words}").expect("a string can be written to");
    (text, code)
}
