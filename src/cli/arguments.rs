//! What can be asked for on the command line, as clap reads it.

use std::num::NonZeroU32;

use camino::Utf8PathBuf;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::atlas_arguments::{ATLAS_EXAMPLES, AtlasCommand};
use super::fleet_arguments::{DepotCommand, MergeArguments};
use super::help::{
    AFTER_HELP, BISECT_EXIT_CODES, DOCTOR_EXIT_CODES, ENV_EXAMPLES, GC_EXAMPLES, MERGE_EXAMPLES,
    PLAN_EXAMPLES, REPORT_EXAMPLES, REPRODUCE_EXIT_CODES, RUN_EXAMPLES, SUITE_EXAMPLES,
};
use super::run_arguments::{DeviceChoice, RunArguments, route_parser, stage_parser};
use crate::model::Route;
use crate::stage_name::StageName;

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
