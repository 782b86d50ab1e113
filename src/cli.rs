//! The command line: what can be asked for, and where errors become exit codes.
//!
//! Standard output carries data (the summary, or the report with `--json`), standard error everything else.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args, Parser, Subcommand, ValueEnum};
use fs_err as fs;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::dataset::SubjectSelection;
use crate::engine::environment::{Environment, EnvironmentError, EnvironmentRequest, Stack};
use crate::engine::{Device, DeviceKind};
use crate::event::{Event, Events};
use crate::exit_code::{ERROR, exit_code};
use crate::fetch::{ArchivePin, FetchError, FetchSettings, Fetcher, ModelPin, Needs};
use crate::pipeline::{Outcome, run, run_stage, wanted_keys};
use crate::progress::{Progress, Verbosity};
use crate::report::{Finding, PlantedFaults, Report, SCHEMA, describe_catalogue, summarise, tabulate_faults};
use crate::stage::{Bench, EarlyStopping, Mode, Planting, StageError, read_dataset, read_ready};
use crate::stage_name::StageName;
use crate::store::{Store, explain};
use crate::suite::{Route, Suite};

const EXIT_CODES: &str = "\
Exit codes: 0 equivalent, 1 degraded, 2 error (no verdict), 3 inconclusive, 4 not exercised, 5 insensitive";
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// Proves that KV which passed through LMCache does not change what a transformer served by vLLM answers.
#[derive(Debug, Parser)]
#[command(name = "kv-correctness", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a suite: baseline, control, LMCache twice, comparison, verdict
    Run(RunArguments),
    /// Run a suite up to one stage, and put that stage's artifacts under --out
    Stage {
        /// extract, prompts, baseline, control, cached, compare or faults
        name: StageName,
        #[command(flatten)]
        arguments: RunArguments,
    },
    /// Say which field of a stage's key changed since the stage last ran, and so why it would run again
    Explain {
        /// The stage; all of them if it is left out
        stage: Option<StageName>,
        #[command(flatten)]
        arguments: RunArguments,
    },
    /// Get pinned models and datasets, verified by digest, and say where each is
    Fetch(FetchArguments),
    /// List the faults that `run --faults` plants: what each does, stands for, and what must see it
    Faults,
    /// Make the Python environment of vLLM and LMCache, and say where it is
    Env {
        /// Folder of everything that is kept between runs
        #[arg(long, env = "KV_CORRECTNESS_CACHE")]
        cache: Option<Utf8PathBuf>,
    },
    #[command(hide = true)]
    InternalGuard {
        #[arg(long)]
        driver: u32,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct RunArguments {
    /// An embedded suite's name, or the path of a suite's TOML file
    #[arg(long, default_value = "canary")]
    suite: String,
    /// What computes: auto takes a GPU if there is one
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// How KV travels; may be repeated or separated by commas. Left out: the suite's routes
    #[arg(long, value_delimiter = ',')]
    route: Vec<Route>,
    /// How many subjects, by name, or `all`. Left out: the suite's number
    #[arg(long)]
    subjects: Option<SubjectSelection>,
    /// A .tar, .tar.xz or .tar.gz in MMLU's layout, instead of the suite's dataset
    #[arg(long)]
    data: Option<Utf8PathBuf>,
    /// Folder of everything that is kept between runs
    #[arg(long, env = "KV_CORRECTNESS_CACHE")]
    cache: Option<Utf8PathBuf>,
    /// Folder for the report, or the stage's artifacts
    #[arg(long, default_value = "kv-correctness-out")]
    out: Utf8PathBuf,
    /// Run this stage even if its artifact is there; later stages run if its output changed
    #[arg(long, value_name = "STAGE")]
    force: Option<StageName>,
    /// Ask every question, even when harm is beyond doubt
    #[arg(long)]
    no_early_stop: bool,
    /// Keep no stage between runs: everything runs in a store of its own that is removed afterwards
    #[arg(long)]
    no_cache: bool,
    /// Plant faults in what LMCache stored: each must be seen, or the verdict is insensitive
    #[arg(long)]
    faults: bool,
    /// With --faults: how many times bytes are written again unchanged. Left out: the suite's number
    #[arg(long, value_name = "N", requires = "faults")]
    identity: Option<u32>,
    /// Print the report as JSON instead of the summary
    #[arg(long)]
    json: bool,
    /// Show warnings only
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Show where logs go as well
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
struct FetchArguments {
    /// What this suite needs
    #[arg(long, value_name = "NAME|FILE", group = "what")]
    suite: Option<String>,
    /// Models by their names in data/models.lock.toml
    #[arg(value_name = "MODEL", group = "what")]
    models: Vec<String>,
    /// A dataset by its name in data/archive.lock.toml
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "mmlu", group = "what")]
    data: Option<String>,
    /// Only say what the suite needs and what of it is missing here; exit 2 if anything is
    #[arg(long, requires = "suite")]
    check: bool,
    /// The device that --check is for: auto takes a GPU if there is one
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// Folder of everything that is kept between runs
    #[arg(long, env = "KV_CORRECTNESS_CACHE")]
    cache: Option<Utf8PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
}

/// Runs the program with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            report_error(&error);
            ExitCode::from(ERROR)
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(arguments) => until_interrupted(run_suite(&arguments)),
        Command::Stage { name, arguments } => until_interrupted(export_stage(name, &arguments)),
        Command::Explain { stage, arguments } => until_interrupted(explain_stages(stage, &arguments)),
        Command::Fetch(arguments) => fetch_assets(&arguments),
        Command::Faults => {
            print(&describe_catalogue())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Env { cache } => {
            let events = Progress::events(Verbosity::Normal);
            let environment =
                EnvironmentRequest::from_variables(Stack::Cpu, cache_folder(cache)?).provide(&events)?;
            print(&format!("{}\n", environment.python()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::InternalGuard { driver, command } => crate::engine::guard(driver, &command),
    }
}

/// Drives the work on this thread alone, which its processes' guards watch. When the work is dropped, so are they.
fn until_interrupted(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let code = tokio::select! {
            finished = work => return finished,
            _ = interrupt.recv() => INTERRUPTED,
            _ = terminate.recv() => TERMINATED,
        };
        let message = "interrupted: finished stages are kept, and the same command goes on from there";
        writeln!(std::io::stderr(), "{message}").ok();
        Ok(ExitCode::from(code))
    });
    runtime.shutdown_background(); // a thread may still wait for another run's lock
    code
}

async fn run_suite(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let (bench, mut store) = prepare(arguments).await?;
    // Said before hours of work rather than after them.
    fs::create_dir_all(&arguments.out).map_err(|error| {
        anyhow::anyhow!("write the report: {error}\n\nhint: name another folder with `--out DIR`")
    })?;
    let outcome = run(&bench).await.inspect_err(|_| keep_logs(store.as_mut()))?;
    let mut report = make_report(&bench, outcome)?;
    if store.is_some() {
        report.findings.iter_mut().for_each(|finding| finding.logs.clear()); // they end with this run
    }
    let json = serde_json::to_string_pretty(&report).context("write the report")? + "\n";
    let summary = summarise(&report);
    write_whole(&arguments.out.join("report.json"), &json)?;
    write_whole(&arguments.out.join("summary.txt"), &summary)?;
    for planted in &report.planted_faults {
        let path = arguments.out.join(format!("faults-{}.md", planted.model));
        write_whole(&path, &tabulate_faults(&planted.findings))?;
    }
    print(if arguments.json { &json } else { &summary })?;
    Ok(ExitCode::from(exit_code(report.verdict)))
}

async fn export_stage(stage: StageName, arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let (bench, mut store) = prepare(arguments).await?;
    let artifacts = run_stage(&bench, stage).await.inspect_err(|_| keep_logs(store.as_mut()))?;
    for (label, artifact) in artifacts {
        let folder = arguments.out.join(stage.as_str()).join(label.replace(' ', "-"));
        copy_folder(&artifact.path(""), &folder)?;
        print(&format!("{folder} {}\n", artifact.output_digest()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps the store of `--no-cache` after a failure, since the error message names a log in it.
fn keep_logs(store: Option<&mut tempfile::TempDir>) {
    if let Some(store) = store {
        store.disable_cleanup(true);
    }
}

/// Gets pinned models and datasets. A download goes on where an interrupted one ended, so nothing need be caught.
fn fetch_assets(arguments: &FetchArguments) -> anyhow::Result<ExitCode> {
    let cache = cache_folder(arguments.cache.clone())?;
    let device = choose_device(arguments.device)?;
    let (mut models, mut archives) = (Vec::new(), Vec::new());
    if let Some(name) = &arguments.suite {
        let suite = Suite::load(name)?;
        let needs = Needs::of(&suite, &cache, &device);
        if arguments.check {
            print(&(needs.lines().join("\n") + "\n"))?;
            return Ok(if needs.are_met() { ExitCode::SUCCESS } else { ExitCode::from(ERROR) });
        }
        Progress::events(Verbosity::Normal).emit(Event::SuiteNeeds { lines: needs.lines() });
        models.extend(suite.models.iter().filter_map(|model| ModelPin::find(&model.source)));
        archives.extend(ArchivePin::find(&suite.dataset));
    }
    for name in &arguments.models {
        models.push(ModelPin::find(name).ok_or_else(|| FetchError::unknown(name))?);
    }
    if let Some(name) = &arguments.data {
        archives.push(ArchivePin::find(name).ok_or_else(|| FetchError::unknown(name))?);
    }
    let events = Progress::events(Verbosity::Normal);
    let fetcher = Fetcher::new(FetchSettings::from_variables(cache.clone()), events)?;
    let environment = EnvironmentRequest::from_variables(stack(&device), cache);
    for path in fetcher.fetch(&models, &archives, &environment)? {
        print(&format!("{path}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares the last keys with those that a run would look for now, by looking for them without running anything.
async fn explain_stages(stage: Option<StageName>, arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let cache = cache_folder(arguments.cache.clone())?;
    let store = Store::open(&cache, Events::ignored())?;
    let stages = stage.map_or_else(|| StageName::ALL.to_vec(), |stage| vec![stage]);
    let mut before = Vec::new();
    for &stage in &stages {
        before.extend(store.last_keys(stage)?.into_iter().map(|(label, key)| (stage, label, key)));
    }
    let (bench, _store) = prepare(arguments).await?;
    let wanted = wanted_keys(bench).await?;
    for (label, key) in wanted {
        if !stages.contains(&key.stage()) {
            continue;
        }
        let previous = before.iter().find(|(stage, known, _)| *stage == key.stage() && *known == label);
        let name = format!("{} {label}", key.stage());
        let name = name.trim_end();
        match previous {
            None => print(&format!("{name}: has never run here\n"))?,
            Some((_, _, previous)) if previous.digest() == key.digest() => {
                print(&format!("{name}: unchanged, re-used\n"))?;
            }
            Some((_, _, previous)) => {
                print(&format!("{name}: runs again, since\n"))?;
                for change in explain(previous, &key) {
                    print(&format!("  {change}\n"))?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything that a run needs, and the temporary store of `--no-cache`, which lives as long as the run.
async fn prepare(arguments: &RunArguments) -> anyhow::Result<(Bench, Option<tempfile::TempDir>)> {
    let verbosity = match (arguments.quiet, arguments.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, true) => Verbosity::Verbose,
        (false, false) => Verbosity::Normal,
    };
    let events = Progress::events(verbosity);
    let mut suite = Suite::load(&arguments.suite)?;
    if let Some(data) = &arguments.data {
        suite.dataset = data.to_string();
    }
    if let Some(subjects) = arguments.subjects {
        suite.subjects = subjects;
    }
    if !arguments.route.is_empty() {
        let mut seen = BTreeSet::new();
        suite.routes = arguments.route.iter().copied().filter(|route| seen.insert(*route)).collect();
    }
    if let Some(identity) = arguments.identity {
        suite.faults.identity = identity;
    }
    let device = choose_device(arguments.device)?;
    let cache = cache_folder(arguments.cache.clone())?;
    let needs = Needs::of(&suite, &cache, &device);
    if needs.names_pins() {
        events.emit(Event::SuiteNeeds { lines: needs.lines() });
    }
    needs.require(&arguments.suite)?;
    let (store_folder, temporary) = if arguments.no_cache {
        fs::create_dir_all(&cache)?;
        let folder = tempfile::tempdir_in(&cache)?;
        (Utf8PathBuf::try_from(folder.path().to_owned())?, Some(folder))
    } else {
        (cache.clone(), None)
    };
    let bench = Bench {
        store: Store::open(&store_folder, events.clone())?,
        environment: provide_environment(&device, &cache, &events).await?,
        events,
        cache,
        executable: Utf8PathBuf::try_from(std::env::current_exe()?)?,
        suite,
        device,
        early_stopping: if arguments.no_early_stop { EarlyStopping::Refused } else { EarlyStopping::Allowed },
        planting: if arguments.faults { Planting::Asked } else { Planting::NotAsked },
        mode: Mode::Run { force: arguments.force },
    };
    Ok((bench, temporary))
}

/// Finds or makes the environment, on a thread of its own: that can take minutes, and must not hold up an interrupt.
async fn provide_environment(
    device: &Device,
    cache: &Utf8Path,
    events: &Events,
) -> anyhow::Result<Environment> {
    let (request, events) =
        (EnvironmentRequest::from_variables(stack(device), cache.to_owned()), events.clone());
    Ok(tokio::task::spawn_blocking(move || request.provide(&events)).await??)
}

fn choose_device(choice: DeviceChoice) -> anyhow::Result<Device> {
    let cuda = Device::cuda();
    match choice {
        DeviceChoice::Cpu => Ok(Device::cpu()),
        DeviceChoice::Auto => Ok(cuda.unwrap_or_else(Device::cpu)),
        DeviceChoice::Cuda => cuda.context(
            "find an NVIDIA GPU: the kernel's driver shows none\n\nhint: `--device cpu` runs the same suite on the processor",
        ),
    }
}

fn stack(device: &Device) -> Stack {
    match device.kind() {
        DeviceKind::Cpu => Stack::Cpu,
        DeviceKind::Cuda => Stack::Cuda,
    }
}

fn cache_folder(given: Option<Utf8PathBuf>) -> anyhow::Result<Utf8PathBuf> {
    let folder = match given {
        Some(folder) => folder,
        None => match (std::env::var("XDG_CACHE_HOME"), std::env::var("HOME")) {
            (Ok(cache), _) if !cache.is_empty() => Utf8PathBuf::from(cache).join("kv-correctness"),
            (_, Ok(home)) if !home.is_empty() => Utf8PathBuf::from(home).join(".cache/kv-correctness"),
            _ => anyhow::bail!("find a cache folder: HOME is not set\n\nhint: name one with `--cache DIR`"),
        },
    };
    Ok(camino::absolute_utf8(&folder)?)
}

fn make_report(bench: &Bench, outcome: Outcome) -> anyhow::Result<Report> {
    let Outcome { compared, conclusion, planted, verdict } = outcome;
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

fn copy_folder(from: &Utf8Path, to: &Utf8Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in from.read_dir_utf8()? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Writes a file so that no reader ever finds half of it.
fn write_whole(path: &Utf8Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a report has a folder")?;
    let mut draft = tempfile::NamedTempFile::new_in(folder)?;
    draft.write_all(text.as_bytes())?;
    draft.persist(path).with_context(|| format!("write {path}"))?;
    Ok(())
}

/// Prints data. A reader that has seen enough is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("write to standard output"),
    }
}

fn report_error(error: &anyhow::Error) {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let hint = hint(error).map_or_else(String::new, |hint| format!("\n\nhint: {hint}"));
    writeln!(std::io::stderr(), "error: failed to {}{hint}", causes.join(": ")).ok();
}

fn hint(error: &anyhow::Error) -> Option<String> {
    use crate::{store::StoreError, suite::SuiteError};
    error.chain().find_map(|cause| {
        (cause.downcast_ref::<StageError>().and_then(StageError::hint))
            .or_else(|| cause.downcast_ref::<SuiteError>().and_then(SuiteError::hint))
            .or_else(|| cause.downcast_ref::<StoreError>().and_then(StoreError::hint))
            .or_else(|| cause.downcast_ref::<FetchError>().and_then(FetchError::hint))
            .or_else(|| cause.downcast_ref::<EnvironmentError>().and_then(EnvironmentError::hint))
    })
}
