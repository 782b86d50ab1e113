//! What `run` and all that begin like it can be asked for.

use std::ffi::OsStr;
use std::num::NonZeroUsize;

use camino::Utf8PathBuf;
use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

use super::fleet_arguments::{DepotArguments, RunName};
use super::stack::StackArguments;
use crate::carrier::routes;
use crate::dataset::{Shard, SubjectSelection};
use crate::foreign::ReaderGroup;
use crate::model::Route;
use crate::stage_name::StageName;

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
    /// the verdict. Asked of LMCache's server where a route has one, and of LMCache in vLLM's process on the route in-process. Some
    /// minutes for each model; or one or more kinds of readers alone, as in --foreign=lora,fp8
    #[arg(
        long, value_name = "READERS", num_args = 0..=1, require_equals = true, value_delimiter = ',',
        default_missing_value = "all", value_parser = readers_parser()
    )]
    pub(super) foreign: Vec<ReadersChoice>,
    /// With --foreign: with how many salts of its own, one after the other, each reader asks again that was served what is not its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), requires = "foreign")]
    pub(super) foreign_salts: u32,
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
        add("--redis-url", self.redis_url.clone());
        add("--engines", self.engines.map(|engines| engines.to_string()));
        add("--pressure-seeds", self.pressure_seeds.map(|seeds| seeds.to_string()));
        add("--pressure-seed", self.pressure_seed.map(|seed| seed.to_string()));
        add("--data", self.data.as_ref().map(ToString::to_string));
        add("--lmcache-src", self.stack.lmcache_src.as_ref().map(ToString::to_string));
        add("--lmcache-rev", self.stack.lmcache_rev.clone());
        add("--lmcache-version", self.stack.lmcache_version.clone());
        add("--vllm-version", self.stack.vllm_version.clone());
        for (is_asked, name) in
            [(self.no_early_stop, "--no-early-stop"), (self.slow, "--slow"), (self.pressure, "--pressure")]
        {
            words.extend(is_asked.then(|| name.to_owned()));
        }
        words
    }

    /// The options that were given and that the units of a plan cannot have.
    pub(super) fn not_for_units(&self) -> Vec<&'static str> {
        let given = [
            (self.shard.is_some(), "--shard"),
            (!self.cell.is_empty(), "--cell"),
            (self.force.is_some(), "--force"),
            (self.no_cache, "--no-cache"),
            (self.faults, "--faults"),
            (!self.foreign.is_empty(), "--foreign"),
            (self.turns, "--turns"),
            (self.as_bisect_step, "--as-bisect-step"),
            (self.not_exercised_is_bad, "--not-exercised-is-bad"),
        ];
        given.into_iter().filter_map(|(is_given, name)| is_given.then_some(name)).collect()
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

pub(super) fn stage_parser() -> impl TypedValueParser<Value = StageName> {
    PossibleValuesParser::new(StageName::ALL.map(StageName::as_str)).try_map(|name| name.parse::<StageName>())
}

pub(super) fn route_parser() -> impl TypedValueParser<Value = Route> {
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
