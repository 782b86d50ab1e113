//! What can be asked for on the command line, as clap reads it.

use std::num::NonZeroUsize;

use camino::Utf8PathBuf;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::stack::StackArguments;
use crate::carrier::routes;
use crate::dataset::SubjectSelection;
use crate::model::Route;
use crate::stage_name::StageName;

const AFTER_HELP: &str = "\
Examples:
  kv-correctness run                                 the embedded suite on this machine
  kv-correctness run --suite mmlu --subjects 2       two subjects of MMLU on a GPU
  kv-correctness run --faults                        prove that the test sees faults
  kv-correctness report --format html                the last run as a page
  kv-correctness doctor                              what can run here, and what is missing

Exit codes: 0 equivalent, 1 degraded, 2 error (no verdict), 3 inconclusive, 4 not exercised, 5 insensitive";

const BISECT_EXIT_CODES: &str = "\
Exit codes: 0 the first bad revision is named, 1 an end is not as it was said to be, 2 error, \
3 the range cannot be narrowed to one revision";
const REPRODUCE_EXIT_CODES: &str = "\
Exit codes: 0 reproduced, 1 not reproduced, 2 error, 3 cannot be reproduced here";
const RUN_EXAMPLES: &str = "\
Examples:
  kv-correctness run --subjects 1 --device cpu       the shortest whole run
  kv-correctness run --route mp,in-process           two routes against one baseline
  kv-correctness run --data mmlu.tar.xz --subjects 5 other questions, in MMLU's layout
  kv-correctness run --json > report.json            the report to a program

Writes report.json, report.html, junit.xml, summary.md, summary.txt and log.jsonl to --out.
Exit codes: 0 equivalent, 1 degraded, 2 error (no verdict), 3 inconclusive, 4 not exercised, 5 insensitive";

const REPORT_EXAMPLES: &str = "\
Examples:
  kv-correctness report                              the summary of the last run here
  kv-correctness report nightly --format html --out page.html
  kv-correctness report --format junit > junit.xml
  kv-correctness report --format lmcache-jsonl --out results    the files of LMCache's own summary scripts";

const DOCTOR_EXIT_CODES: &str = "\
Exit codes: 0 the suite can run here on at least one of its routes (without --suite: some suite can), 2 it cannot";

const ENV_EXAMPLES: &str = "\
Examples:
  kv-correctness env                                 what `run` would make here on first use
  kv-correctness env --device cuda                   for a GPU machine, as when an image is built on one without

Prints the environment's Python.";

const SUITE_EXAMPLES: &str = "\
Examples:
  kv-correctness suite show canary > mine.toml       a suite of your own begins with one that works
  kv-correctness suite check mine.toml               its mistakes, with line and column; runs nothing";

const GC_EXAMPLES: &str = "\
Examples:
  kv-correctness gc --dry-run                        what would go, and how much that is
  kv-correctness gc --unused-days 0                  everything that no run uses now

Leaves what `fetch` got, and environments that others name. Leftovers are stores of `--no-cache` and unfinished folders of runs that
ended early, embedded models, caches of engines, and shared memory of servers that were killed.";

/// Proves that KV which passed through LMCache does not change what a transformer served by vLLM answers.
#[derive(Debug, Parser)]
#[command(name = "kv-correctness", version, after_help = AFTER_HELP)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a suite: baseline, control, LMCache twice, comparison, verdict
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        #[command(flatten)]
        arguments: RunArguments,
        #[command(flatten)]
        publish: PublishArguments,
    },
    /// Write the report of a finished run in another format
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArguments),
    /// Run a suite up to one stage, and put that stage's artifacts under --out
    Stage {
        /// The stage
        #[arg(value_parser = stage_parser())]
        name: StageName,
        #[command(flatten)]
        arguments: RunArguments,
    },
    /// Say which field of a stage's key changed since the stage last ran, and so why it would run again
    Explain {
        /// The stage; all of them if it is left out
        #[arg(value_parser = stage_parser())]
        stage: Option<StageName>,
        #[command(flatten)]
        arguments: RunArguments,
    },
    /// Find the first bad revision or release of LMCache or vLLM
    #[command(after_help = BISECT_EXIT_CODES)]
    Bisect(BisectArguments),
    /// Run again what a report found wrong, on the questions that differed first
    #[command(after_help = REPRODUCE_EXIT_CODES)]
    Reproduce(ReproduceArguments),
    /// Show a suite, or check one of your own
    #[command(subcommand, after_help = SUITE_EXAMPLES)]
    Suite(SuiteCommand),
    /// Get pinned models and datasets, verified by digest, and say where each is
    Fetch(FetchArguments),
    /// List the faults that `run --faults` plants: what each does, stands for, and what must see it
    Faults,
    /// Make the Python environment of vLLM and LMCache, and say where it is
    #[command(after_help = ENV_EXAMPLES)]
    Env {
        /// The device that it is for: auto takes a GPU if there is one. cuda needs none to be there, so that an image can be
        /// made elsewhere
        #[arg(long, value_enum, default_value = "auto")]
        device: DeviceChoice,
        /// Folder of everything that is kept between runs
        #[arg(long, env = "KV_CORRECTNESS_CACHE")]
        cache: Option<Utf8PathBuf>,
    },
    /// Say what this machine has, which suites can run on it, and which command mends what is missing
    #[command(after_help = DOCTOR_EXIT_CODES)]
    Doctor {
        /// Only this suite: an embedded one's name, or the path of a TOML file
        #[arg(long, value_name = "NAME|FILE")]
        suite: Option<String>,
        /// The device to ask for: auto takes a GPU if there is one
        #[arg(long, value_enum, default_value = "auto")]
        device: DeviceChoice,
        /// Folder of everything that is kept between runs
        #[arg(long, env = "KV_CORRECTNESS_CACHE")]
        cache: Option<Utf8PathBuf>,
    },
    /// List what is kept between runs, with sizes and when it last served
    Ls {
        /// Folder of everything that is kept between runs
        #[arg(long, env = "KV_CORRECTNESS_CACHE")]
        cache: Option<Utf8PathBuf>,
    },
    /// Remove artifacts, environments, builds, tools and leftovers that have not served for a while, unless a run goes on
    #[command(after_help = GC_EXAMPLES)]
    Gc {
        /// Remove what has not served for so many days
        #[arg(long, value_name = "DAYS", default_value_t = 30)]
        unused_days: u64,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Folder of everything that is kept between runs
        #[arg(long, env = "KV_CORRECTNESS_CACHE")]
        cache: Option<Utf8PathBuf>,
    },
    /// Print the JSON Schema of report.json
    Schema,
    /// Print a shell's completions, as in `kv-correctness completions bash > /etc/bash_completion.d/kv-correctness`
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command into a folder
    Man {
        /// The folder, which is made if need be
        folder: Utf8PathBuf,
    },
    #[command(hide = true)]
    InternalGuard {
        #[arg(long)]
        driver: u32,
        #[arg(long)]
        fork_server: Option<Utf8PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SuiteCommand {
    /// Print a suite's text
    Show {
        /// An embedded suite's name, or the path of a TOML file
        #[arg(value_name = "NAME|FILE")]
        name: String,
    },
    /// Read a suite, its questions and its models, and say what is wrong and where
    Check {
        /// The path of a TOML file, or an embedded suite's name
        #[arg(value_name = "FILE|NAME")]
        name: String,
        /// Folder of everything that is kept between runs
        #[arg(long, env = "KV_CORRECTNESS_CACHE")]
        cache: Option<Utf8PathBuf>,
    },
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct RunArguments {
    /// An embedded suite's name, or the path of a suite's TOML file
    #[arg(long, default_value = "canary")]
    pub(super) suite: String,
    /// What computes: auto takes a GPU if there is one
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) device: DeviceChoice,
    /// How KV travels; may be repeated or separated by commas. Left out: the suite's routes
    #[arg(long, value_delimiter = ',', value_parser = route_choice_parser())]
    pub(super) route: Vec<RouteChoice>,
    /// A TOML file that describes a connector, whose route is tested besides those of --route, or alone; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(super) connector: Vec<Utf8PathBuf>,
    /// For mp+redis: a server to use instead of one of our own, redis://[USER@]HOST[:PORT]. Its password comes from
    /// `KV_CORRECTNESS_REDIS_PASSWORD`
    #[arg(long, value_name = "URL", env = "KV_CORRECTNESS_REDIS_URL", hide_env_values = true)]
    pub(super) redis_url: Option<String>,
    /// How many subjects, by name, or `all`, with every question of theirs. Left out: the suite's subjects and its number of
    /// questions of each
    #[arg(long)]
    pub(super) subjects: Option<SubjectSelection>,
    /// A .tar, .tar.xz, .tar.gz or folder in MMLU's layout, instead of the suite's dataset; every question of it is asked
    #[arg(long)]
    pub(super) data: Option<Utf8PathBuf>,
    /// Folder of everything that is kept between runs
    #[arg(long, env = "KV_CORRECTNESS_CACHE")]
    pub(super) cache: Option<Utf8PathBuf>,
    /// Folder for the report, or the stage's artifacts
    #[arg(long, default_value = "kv-correctness-out")]
    pub(super) out: Utf8PathBuf,
    /// Run this stage even if its artifact is there; later stages run if its output changed
    #[arg(long, value_name = "STAGE", value_parser = stage_parser())]
    pub(super) force: Option<StageName>,
    /// Ask every question, even when harm is beyond doubt
    #[arg(long)]
    pub(super) no_early_stop: bool,
    /// Keep no stage between runs: everything runs in a store of its own that is removed afterwards
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Engines that may run beside each other. Left out: as many as fit on the GPU, one on a CPU
    #[arg(long, value_name = "N")]
    pub(super) engines: Option<NonZeroUsize>,
    /// Plant faults in what LMCache stored: each must be seen, or the verdict is insensitive
    #[arg(long)]
    pub(super) faults: bool,
    /// With --faults: how many times bytes are written again unchanged. Left out: the suite's number
    #[arg(long, value_name = "N", requires = "faults")]
    pub(super) identity: Option<u32>,
    /// With --faults: at how many sampled places a single bit is flipped; 0 flips none. Left out: the suite's number
    #[arg(long, value_name = "N", requires = "faults")]
    pub(super) flips: Option<u16>,
    /// Ask LMCache for KV that was stored under another salt, chunk size, data type or other weights: it must serve none of
    /// it, and what it serves is reported as a finding about LMCache, without a change of the verdict
    #[arg(long)]
    pub(super) foreign: bool,
    /// Print the report as JSON instead of the summary
    #[arg(long)]
    pub(super) json: bool,
    /// Show warnings only
    #[arg(short, long, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Show where logs go as well
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// End as a command of `git bisect run` must: 0 good, 1 bad, 125 cannot be tested, 128 nothing can
    #[arg(long)]
    pub(super) as_bisect_step: bool,
    /// With --as-bisect-step, and for `bisect`: a revision that does not serve what it must is bad, and not skipped
    #[arg(long)]
    pub(super) not_exercised_is_bad: bool,
    #[command(flatten)]
    pub(super) stack: StackArguments,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("searched").required(true))]
pub(super) struct BisectArguments {
    /// GOOD..BAD, two revisions of the checkout that --lmcache-src names; or releases, oldest first: 0.5.3,0.5.4,0.5.6
    #[arg(long, value_name = "GOOD..BAD|LIST", group = "searched")]
    #[arg(conflicts_with_all = ["lmcache_rev", "lmcache_version"])]
    pub(super) lmcache: Option<String>,
    /// Releases of vLLM, oldest first
    #[arg(long, value_name = "LIST", group = "searched", conflicts_with = "vllm_version")]
    pub(super) vllm: Option<String>,
    /// Test every revision, for a table of verdicts, even those that the search does not need
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) run: RunArguments,
}

#[derive(Debug, Args)]
pub(super) struct ReproduceArguments {
    /// A report.json, from this machine or another
    pub(super) report: Utf8PathBuf,
    /// A git checkout of LMCache, for a report of an LMCache that was built from source
    #[arg(long, value_name = "PATH")]
    pub(super) lmcache_src: Option<Utf8PathBuf>,
    /// The archive that the report was made with, where it lies somewhere else here
    #[arg(long)]
    pub(super) data: Option<Utf8PathBuf>,
    /// How many of the questions that differed are asked
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u8).range(1..))]
    pub(super) questions: u8,
    /// Then look for the fewest questions and the shortest context that still differ, and write a script that needs vLLM
    /// and LMCache alone
    #[arg(long)]
    pub(super) minimise: bool,
    /// Folder of everything that is kept between runs
    #[arg(long, env = "KV_CORRECTNESS_CACHE")]
    pub(super) cache: Option<Utf8PathBuf>,
    /// Folder for the report and the script
    #[arg(long, default_value = "kv-correctness-out/reproduced")]
    pub(super) out: Utf8PathBuf,
    /// Show warnings only
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct PublishArguments {
    /// Add the summary to GitHub's step summary; auto: if `GITHUB_STEP_SUMMARY` is set
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", default_missing_value = "on", num_args = 0..=1, require_equals = true)]
    pub(super) github: Switch,
    /// Annotate the Buildkite build with the summary; auto: if BUILDKITE is true
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", default_missing_value = "on", num_args = 0..=1, require_equals = true)]
    pub(super) buildkite: Switch,
}

#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// A report.json, or the folder that `run` wrote it to
    #[arg(value_name = "DIR|FILE", default_value = "kv-correctness-out")]
    pub(super) path: Utf8PathBuf,
    /// The format
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: ReportFormat,
    /// Write to this file instead of standard output; for lmcache-jsonl to this folder instead of the current one
    #[arg(long, value_name = "PATH")]
    pub(super) out: Option<Utf8PathBuf>,
    /// For lmcache-jsonl: the route, where the report has several
    #[arg(long, value_parser = route_parser())]
    pub(super) route: Option<Route>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ReportFormat {
    /// The value that all others are made of
    Json,
    /// For a terminal
    Text,
    /// JUnit XML, one case a model, route and rung
    Junit,
    /// A page for GitHub or Buildkite
    Markdown,
    /// One file for a browser, or for paper
    Html,
    /// `MODEL-baseline.jsonl` and `MODEL-lmcache.jsonl`, which LMCache's summary scripts read
    LmcacheJsonl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    Auto,
    On,
    Off,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct FetchArguments {
    /// What this suite needs
    #[arg(long, value_name = "NAME|FILE", group = "what")]
    pub(super) suite: Option<String>,
    /// Models and datasets by their names in data/models.lock.toml and data/archive.lock.toml
    #[arg(value_name = "NAME", group = "what")]
    pub(super) names: Vec<String>,
    /// The same for a dataset; without a name, MMLU
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "mmlu", group = "what")]
    pub(super) data: Option<String>,
    /// Only say what the suite needs and what of it is missing here; exit 2 if anything is
    #[arg(long, requires = "suite")]
    pub(super) check: bool,
    /// The device that --check is for: auto takes a GPU if there is one
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) device: DeviceChoice,
    /// Folder of everything that is kept between runs
    #[arg(long, env = "KV_CORRECTNESS_CACHE")]
    pub(super) cache: Option<Utf8PathBuf>,
}

/// One route, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteChoice {
    All,
    One(Route),
}

impl RouteChoice {
    pub(super) fn routes(self) -> Vec<Route> {
        match self {
            Self::All => routes(),
            Self::One(route) => vec![route],
        }
    }
}

// Possible values are what help and completions list and what a mistyped one is held against.

fn stage_parser() -> impl TypedValueParser<Value = StageName> {
    PossibleValuesParser::new(StageName::ALL.map(StageName::as_str)).try_map(|name| name.parse::<StageName>())
}

fn route_parser() -> impl TypedValueParser<Value = Route> {
    PossibleValuesParser::new(routes().into_iter().map(Route::name)).map(|name| Route::named(&name))
}

fn route_choice_parser() -> impl TypedValueParser<Value = RouteChoice> {
    let names = routes().into_iter().map(Route::name).chain(["all"]);
    PossibleValuesParser::new(names).map(|name| match name.as_str() {
        "all" => RouteChoice::All,
        name => RouteChoice::One(Route::named(name)),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
}

impl DeviceChoice {
    /// The words of a command that asks for the same, with a space before them.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Auto => "",
            Self::Cpu => " --device cpu",
            Self::Cuda => " --device cuda",
        }
    }
}
