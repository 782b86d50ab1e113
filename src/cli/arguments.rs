//! What can be asked for on the command line, as clap reads it.

use std::ffi::OsStr;
use std::num::{NonZeroU32, NonZeroUsize};

use camino::Utf8PathBuf;
use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::atlas_arguments::{ATLAS_EXAMPLES, AtlasCommand};
use super::fleet_arguments::{DepotArguments, DepotCommand, MergeArguments, RunName};
use super::stack::StackArguments;
use crate::carrier::routes;
use crate::dataset::{Shard, SubjectSelection};
use crate::foreign::ReaderGroup;
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

const PLAN_EXAMPLES: &str = "\
Examples:
  kv-correctness plan --shards 8                     what there is to do, with keys, as JSON
  kv-correctness plan --shards 8 --format buildkite | buildkite-agent pipeline upload
  kv-correctness plan --format kubernetes --image registry/kv:1 --run-name nightly-7 | kubectl apply -f -

Starts nothing. Units pass artifacts and reports on through the depot: KV_CORRECTNESS_DEPOT must reach each.";
const MERGE_EXAMPLES: &str = "\
Examples:
  kv-correctness run --shard 1/2 --out one           the same with 2/2 elsewhere, and then
  kv-correctness merge one two                       the report of the whole, and its exit code
  kv-correctness merge --depot s3://bucket/prefix --run-name nightly-7

Parts must be of one suite, on machines and in environments of one kind; the field that differs is named.";

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

/// What a JSON Schema is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Document {
    /// report.json
    Report,
    /// atlas.json
    Atlas,
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
    /// Print a run as units that Buildkite, GitHub Actions, Kubernetes or Nix start: a model on a route for a part of the questions each,
    /// what they share before them, and the merge behind them
    #[command(after_help = PLAN_EXAMPLES)]
    Plan(Box<PlanArguments>),
    /// Fold the parts of a run, shards and cells, into one report with the statistics of the whole
    #[command(after_help = MERGE_EXAMPLES)]
    Merge {
        #[command(flatten)]
        arguments: MergeArguments,
        #[command(flatten)]
        publish: PublishArguments,
    },
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
    /// Find out which releases of vLLM and LMCache are right together, and chart it
    #[command(subcommand, after_help = ATLAS_EXAMPLES)]
    Atlas(AtlasCommand),
    /// List and clean a depot, which many machines share
    #[command(subcommand)]
    Depot(DepotCommand),
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
    /// Print the JSON Schema of report.json, or of atlas.json
    Schema {
        /// Which of them
        #[arg(value_enum, default_value_t = Document::Report)]
        of: Document,
    },
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
    /// How KV travels: one of these, or a route that the suite's own connectors give; may be repeated or separated by commas. Left
    /// out: the suite's routes
    #[arg(long, value_delimiter = ',', value_parser = RouteChoiceParser)]
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
    #[command(flatten)]
    pub(super) depot: DepotArguments,
    /// Ask one of several parts of the questions, as in 3/8: whole subjects, dealt so that parts are about as large. `merge` gives
    /// the verdict on all; a part ends with 0 once its evidence is there
    #[arg(long, value_name = "K/N", conflicts_with_all = ["faults", "foreign", "turns", "as_bisect_step"])]
    pub(super) shard: Option<Shard>,
    /// Only these models on these routes of the suite; the chance of a false alarm stays divided among all of the suite's
    #[arg(long, value_name = "MODEL/ROUTE", value_delimiter = ',')]
    pub(super) cell: Vec<CellChoice>,
    /// Put the report of a part into the depot under this name, where `merge` finds it
    #[arg(long, value_name = "NAME", env = "KV_CORRECTNESS_RUN")]
    pub(super) run_name: Option<RunName>,
    /// Folder for the report, or the stage's artifacts
    #[arg(long, default_value = "kv-correctness-out")]
    pub(super) out: Utf8PathBuf,
    /// Run this stage even if its artifact is there; later stages run if its output changed
    #[arg(long, value_name = "STAGE", value_parser = stage_parser())]
    pub(super) force: Option<StageName>,
    /// Ask every question, even when harm is beyond doubt
    #[arg(long)]
    pub(super) no_early_stop: bool,
    /// Keep no stage between runs: everything runs in a store of its own that is removed afterwards, and no depot is used
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
    /// Ask LMCache for KV that was stored under another identity (salt, chunk size, data type, weights, configuration, LoRA
    /// adapter and more): it must serve none of it, and what it serves is reported as a finding about LMCache, without a change of
    /// the verdict. Some minutes for each model; or one or more kinds of readers alone, as in --foreign=lora,fp8
    #[arg(
        long, value_name = "READERS", num_args = 0..=1, require_equals = true, value_delimiter = ',',
        default_missing_value = "all", value_parser = readers_parser()
    )]
    pub(super) foreign: Vec<ReadersChoice>,
    /// Ask conversations over each route of LMCache: sixteen turns, each of which holds the answers of those before, once with the KV of
    /// answers stored and once without. They have verdicts of their own
    #[arg(long)]
    pub(super) turns: bool,
    /// Stop LMCache's server and let it run in turn while it stores and loads, 50 ms of each 70: what is right only as long as
    /// it is quick then shows
    #[arg(long)]
    pub(super) slow: bool,
    /// Put each model and route under pressure, too: many sequences, few blocks, little memory, requests that are broken off. A suite
    /// with a table `[pressure]` does so anyway
    #[arg(long)]
    pub(super) pressure: bool,
    /// Under pressure: how many schedules are asked, each by a seed of its own. Left out: the suite's number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) pressure_seeds: Option<u32>,
    /// Under pressure: ask the schedule of this seed alone, as after one that failed
    #[arg(long, value_name = "S", conflicts_with = "pressure_seeds")]
    pub(super) pressure_seed: Option<u32>,
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
pub(super) struct PlanArguments {
    /// For which executor
    #[arg(long, value_enum, default_value = "json")]
    pub(super) format: PlanFormat,
    /// Ask the questions in so many parts
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) shards: NonZeroU32,
    /// For buildkite: the queue of the agents that run models
    #[arg(long, value_name = "NAME", default_value = "gpu")]
    pub(super) queue: String,
    /// For kubernetes: the image with this program and one stack's environment
    #[arg(long, value_name = "NAME", default_value = "kv-correctness:latest")]
    pub(super) image: String,
    /// For kubernetes: the secret whose entries are the depot's address and credentials, as variables
    #[arg(long, value_name = "NAME", default_value = "kv-correctness-depot")]
    pub(super) secret: String,
    #[command(flatten)]
    pub(super) run: RunArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PlanFormat {
    /// The units as data, with the keys that are known here
    Json,
    /// A pipeline for `buildkite-agent pipeline upload`
    Buildkite,
    /// Matrices for jobs of GitHub Actions, on one line
    Github,
    /// Indexed Jobs for `kubectl apply`, in JSON
    Kubernetes,
    /// A function that gives derivations, for remote builders
    Nix,
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

impl RunArguments {
    /// The words by which all units of a plan are told what to run; models, routes and parts come with each.
    pub(super) fn shared_words(&self) -> Vec<String> {
        let device =
            self.device.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let mut words = vec!["--suite".to_owned(), self.suite.clone(), "--device".to_owned(), device];
        let mut add = |name: &str, value: Option<String>| {
            words.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
        };
        let routes: Vec<&str> =
            self.route.iter().flat_map(|choice| choice.routes()).map(Route::name).collect();
        add("--route", Some(routes.join(",")).filter(|routes| !routes.is_empty()));
        for connector in &self.connector {
            add("--connector", Some(connector.to_string()));
        }
        add("--subjects", self.subjects.map(String::from));
        add("--data", self.data.as_ref().map(ToString::to_string));
        add("--lmcache-src", self.stack.lmcache_src.as_ref().map(ToString::to_string));
        add("--lmcache-rev", self.stack.lmcache_rev.clone());
        add("--lmcache-version", self.stack.lmcache_version.clone());
        add("--vllm-version", self.stack.vllm_version.clone());
        if self.no_early_stop {
            words.push("--no-early-stop".to_owned());
        }
        if self.slow {
            words.push("--slow".to_owned());
        }
        words
    }
}

/// A model on a route, by their names; whether a suite has them is seen when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CellChoice {
    pub(super) model: String,
    pub(super) route: String,
}

impl std::str::FromStr for CellChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once('/') {
            Some((model, route)) if !model.is_empty() && !route.is_empty() => {
                Ok(Self { model: model.to_owned(), route: route.to_owned() })
            }
            _ => Err("a model's name and a route's, as in canary-dense/mp".to_owned()),
        }
    }
}

const ALL_ROUTES: &str = "all";

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

/// Reads any name, since a suite's connectors may give routes of their own; help and completions list those that there are
/// without one.
#[derive(Debug, Clone, Copy)]
struct RouteChoiceParser;

impl TypedValueParser for RouteChoiceParser {
    type Value = RouteChoice;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<RouteChoice, clap::Error> {
        let name = NonEmptyStringValueParser::new().parse_ref(command, argument, value)?;
        Ok(if name == ALL_ROUTES { RouteChoice::All } else { RouteChoice::One(Route::named(&name)) })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names = routes().into_iter().map(Route::name).chain([ALL_ROUTES]);
        Some(Box::new(names.map(PossibleValue::new)))
    }
}

/// Readers of KV of another identity, as chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadersChoice {
    /// Of every kind.
    All,
    /// Of one.
    Group(ReaderGroup),
}

impl ReadersChoice {
    /// The kinds.
    pub(super) fn groups(self) -> Vec<ReaderGroup> {
        match self {
            Self::All => ReaderGroup::ALL.to_vec(),
            Self::Group(group) => vec![group],
        }
    }
}

fn readers_parser() -> impl TypedValueParser<Value = ReadersChoice> {
    let names = ReaderGroup::ALL.map(ReaderGroup::name).into_iter().chain(["all"]);
    PossibleValuesParser::new(names).map(|name| {
        let group = ReaderGroup::ALL.into_iter().find(|group| group.name() == name);
        group.map_or(ReadersChoice::All, ReadersChoice::Group)
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
