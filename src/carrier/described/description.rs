//! A connector in words of a TOML file: the format, and what is wrong with a file. Main type: [`Description`].

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::places::{is_place, places_in};
use crate::carrier::Topology;
use crate::engine::{ConnectorRole, Halts, PrefixCaching};
use crate::machine::DeviceKind;
use crate::model::HitRule;

/// Milliseconds for which a process may be stopped: longer, and it counts as gone.
const LATEST: u16 = 5000;

/// Arguments of `KVTransferConfig` that other fields say.
const RESERVED: [&str; 4] =
    ["kv_connector", "kv_connector_module_path", "kv_role", "kv_connector_extra_config"];

/// That which has vLLM compute again what was not loaded, instead of failing the request.
/// Variables of engines that a run sets itself, or that Python reads before it hears of a connector.
pub(crate) const RESERVED_VARIABLES: [&str; 10] = [
    "GOMP_SPINCOUNT",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONHOME",
    "PYTHONPATH",
    "VLLM_BATCH_INVARIANT",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_USE_FLASHINFER_SAMPLER",
];
const FAILURE_POLICY: &str = "kv_load_failure_policy";

/// One way for KV to travel, as a file describes it. Strings may hold places, as in `{folder}`: see [`PLACES`](super::places).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    /// The name of its route.
    pub name: String,
    /// One line for people.
    #[serde(rename = "description")]
    pub words: String,
    /// Which engine loads what an engine stored.
    pub topology: Topology,
    /// Why it does not run on such a device.
    #[serde(default)]
    pub refused: BTreeMap<DeviceKind, String>,
    /// Whether it needs LMCache in the environment.
    #[serde(default)]
    pub needs_lmcache: bool,
    /// How long storing may go on after the last answer.
    #[serde(default)]
    pub settle_seconds: u32,
    /// What it needs besides the environment.
    #[serde(default)]
    pub packages: Option<Packages>,
    /// The connector, on both sides; LMCache's, where there is a tier.
    #[serde(default)]
    pub connector: Option<ConnectorText>,
    /// What lies between two LMCache servers, in place of a connector.
    #[serde(default)]
    pub tier: Option<TierText>,
    /// What differs on the side that stores.
    #[serde(default)]
    pub store: SideText,
    /// What differs on the side that loads.
    #[serde(default)]
    pub load: SideText,
    /// What is stored and served of a prompt.
    #[serde(default)]
    pub hits: HitRule,
    /// Whether loads are made to fail: what is not loaded must be computed.
    #[serde(default)]
    pub loads_fail: bool,
    /// Whether it stores a prompt that is computed piece by piece; one that does not is asked for whole prompts alone.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub takes_pieces: bool,
    /// Why a request that lost its blocks cannot be taken up again with it, if so: no engine is then brought to take blocks away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuses_resumption: Option<String>,
    /// What is started before the engines and ends after them, in this order.
    #[serde(default)]
    pub processes: Vec<ProcessText>,
}

fn yes() -> bool {
    true
}

/// Packages that a connector imports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Packages {
    /// The one by which an environment is known to have them.
    pub name: String,
    /// A file of requirements with hashes, which are installed beside an environment that has not.
    #[serde(default)]
    pub lock: Option<String>,
    /// Programs among what is installed.
    #[serde(default)]
    pub programs: Vec<String>,
}

/// A tier behind the memory of LMCache's servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TierText {
    /// LMCache's name of it in the servers' counters.
    pub name: String,
    /// What `--l2-adapter` is given.
    pub adapter: BTreeMap<String, Value>,
    /// Whether engines are told a model by the name of its folder instead of by its path, which LMCache's keys begin with: the
    /// tier takes none that begins with `/`.
    #[serde(default)]
    pub model_by_name: bool,
    /// Of the files in the folder, each how many-th cannot be read once all is stored.
    #[serde(default)]
    pub unreadable_each: Option<NonZeroUsize>,
}

/// A connector as vLLM's `KVTransferConfig` names it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectorText {
    /// Its class.
    pub class: String,
    /// The module that has the class, where vLLM does not know it.
    #[serde(default)]
    pub module: Option<String>,
    /// A file of Python that has the class.
    #[serde(default)]
    pub file: Option<String>,
    /// Whether vLLM's own prefix caching is on beside it.
    #[serde(default)]
    pub prefix_caching: PrefixCaching,
    /// vLLM's name of the place from which KV must come that no earlier request had.
    #[serde(default)]
    pub served_from: Option<String>,
    /// The connector's own settings.
    #[serde(default)]
    pub extra: BTreeMap<String, Value>,
    /// Further arguments of `KVTransferConfig`.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
    /// Variables of the engines' processes.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
}

/// What one side has besides.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SideText {
    /// vLLM's name of what its engine does.
    pub role: ConnectorRole,
    /// As of the connector.
    pub extra: BTreeMap<String, Value>,
    /// As of the connector.
    pub settings: BTreeMap<String, Value>,
    /// As of the connector.
    pub variables: BTreeMap<String, String>,
}

/// A process that the connector needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProcessText {
    /// For messages and its log.
    pub name: String,
    /// Program, looked for on PATH, and arguments.
    pub command: Vec<String>,
    /// Its variables.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// An address that answers with success once it is ready; without one, its ports do once they take connections.
    #[serde(default)]
    pub ready: Option<String>,
    /// How it is made to answer late once all is stored.
    #[serde(default)]
    pub late: Option<LateText>,
}

/// How long a process is stopped each time, and how long it runs in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LateText {
    /// Milliseconds.
    pub stopped_ms: u16,
    /// Milliseconds.
    pub running_ms: u16,
}

/// What is wrong with a description, and where.
pub(super) struct Flaw {
    /// The setting, as in `connector.class`.
    pub path: String,
    pub problem: String,
}

impl Description {
    /// The first thing that is well formed and cannot be.
    pub(super) fn first_flaw(&self) -> Option<Flaw> {
        let flaw = |path: &str, problem: String| Some(Flaw { path: path.to_owned(), problem });
        if !is_plain(&self.name) || self.name == "all" {
            return flaw(
                "name",
                format!("{:?} is no name of letters, digits and `+-._`, or is `all`", self.name),
            );
        }
        match (&self.connector, &self.tier) {
            (Some(connector), None) => {
                if let Some(flaw) = connector.first_flaw() {
                    return Some(flaw);
                }
            }
            (None, Some(_)) if self.topology != Topology::AnotherEngine => {
                return flaw("topology", "a tier lies between two engines: `another-engine`".to_owned());
            }
            (None, Some(tier)) if tier.name.trim().is_empty() => {
                return flaw("tier.name", "the tier's name is empty".to_owned());
            }
            (None, Some(tier)) if tier.unreadable_each.is_some() && !self.places().contains("folder") => {
                let problem = "no file is known: the `adapter` has no `{folder}`".to_owned();
                return flaw("tier.unreadable_each", problem);
            }
            (None, Some(_)) => {}
            (None, None) => {
                return flaw("name", "it needs either a `connector` or a `tier` of LMCache's".to_owned());
            }
            (Some(_), Some(_)) => {
                return flaw(
                    "tier",
                    "it needs either a `connector` or a `tier` of LMCache's, not both".to_owned(),
                );
            }
        }
        if self.hits.asked_less < self.hits.stored_less {
            let problem =
                "`asked_less` is below `stored_less`: more would be looked for than is stored".to_owned();
            return flaw("hits.asked_less", problem);
        }
        if self.hits.rest && self.hits.stored_less > 0 {
            let problem =
                "tokens that `stored_less` leaves out are not stored and cannot be served".to_owned();
            return flaw("hits.rest", problem);
        }
        if let Some(flaw) = self.first_unheard() {
            return Some(flaw);
        }
        let flaw_of =
            |(index, process): (usize, &ProcessText)| process.first_flaw(&format!("processes.{index}"));
        if let Some(flaw) = self.processes.iter().enumerate().find_map(flaw_of) {
            return Some(flaw);
        }
        let sides = [
            ("connector", self.connector.as_ref().map(|connector| &connector.settings)),
            ("store", Some(&self.store.settings)),
            ("load", Some(&self.load.settings)),
        ];
        for (side, settings) in sides {
            let path = |name: &str| format!("{side}.settings.{name}");
            let has = |name: &&&str| settings.is_some_and(|settings| settings.contains_key(**name));
            if let Some(name) = RESERVED.iter().find(has) {
                let problem = "it is what `class`, `module`, `file`, `role` and `extra` say".to_owned();
                return flaw(&path(name), problem);
            }
            if has(&&FAILURE_POLICY) {
                let problem = "vLLM counts as served what it looked up, so loads that fail and are computed again would be told by \
                               nothing"
                    .to_owned();
                return flaw(&path(FAILURE_POLICY), problem);
            }
        }
        let sides = [
            ("connector", self.connector.as_ref().map(|connector| &connector.variables)),
            ("store", Some(&self.store.variables)),
            ("load", Some(&self.load.variables)),
        ];
        for (side, variables) in sides {
            let is_reserved = |name: &&String| {
                RESERVED_VARIABLES.contains(&name.as_str()) || name.starts_with("KV_WORKER_")
            };
            if let Some(name) = variables.and_then(|variables| variables.keys().find(is_reserved)) {
                let problem = "the program sets it, the same for every engine of a run, or it comes too late"
                    .to_owned();
                return flaw(&format!("{side}.variables.{name}"), problem);
            }
        }
        if self.loads_fail && self.tier.is_none() {
            let problem =
                "nothing counts loads that fail but the servers of a `tier`, and there is none".to_owned();
            return flaw("loads_fail", problem);
        }
        self.texts().into_iter().find_map(|(path, text)| {
            let unknown = places_in(&text).into_iter().find(|place| !is_place(place))?;
            flaw(&path, format!("`{{{unknown}}}` is no place; there are {}", super::places::NAMES.join(", ")))
        })
    }

    /// The first thing that nobody would ever act upon.
    fn first_unheard(&self) -> Option<Flaw> {
        let flaw =
            |path: &str, problem: &str| Some(Flaw { path: path.to_owned(), problem: problem.to_owned() });
        let one_engine = self.topology == Topology::SameEngine;
        for (path, side) in [("store", &self.store), ("load", &self.load)] {
            if *side != SideText::default() && one_engine {
                return flaw(path, "with `same-engine` no side has an engine of its own");
            }
            if *side != SideText::default() && self.tier.is_some() {
                return flaw(path, "LMCache's connector is told nothing by side");
            }
        }
        for (index, process) in self.processes.iter().enumerate() {
            if process.late.is_some() && self.topology != Topology::AnotherEngine {
                let problem = "all is stored before anything is loaded with `another-engine` alone";
                return flaw(&format!("processes.{index}.late"), problem);
            }
        }
        if self.settle_seconds > 0 && (self.tier.is_some() || self.topology == Topology::ProducerAndConsumer)
        {
            return flaw(
                "settle_seconds",
                "nobody waits so long: what is stored is counted or handed over here",
            );
        }
        if let Some(tier) = &self.tier {
            if self.hits != HitRule::default() {
                return flaw("hits", "LMCache's connector stores and serves by a rule of its own");
            }
            if tier.unreadable_each.is_some() && !self.loads_fail {
                return flaw("tier.unreadable_each", "loads then fail, which `loads_fail = true` has to say");
            }
        }
        let sided = |text: &str| places_in(text).contains(&"side");
        self.texts().into_iter().filter(|(_, text)| sided(text)).find_map(|(path, _)| {
            if path.starts_with("processes.") {
                flaw(&path, "`{side}` stands for nothing here: a process serves both sides")
            } else if one_engine {
                flaw(&path, "`{side}` stands for nothing here: with `same-engine` one engine is both sides")
            } else {
                None
            }
        })
    }

    /// All strings that may hold places, with where they stand.
    pub(super) fn texts(&self) -> Vec<(String, String)> {
        let mut texts = Vec::new();
        let (none, empty) = (ConnectorText::default(), BTreeMap::new());
        let connector = self.connector.as_ref().unwrap_or(&none);
        let adapter = self.tier.as_ref().map_or(&empty, |tier| &tier.adapter);
        for (name, value) in adapter {
            let path = format!("tier.adapter.{name}");
            strings_in(value, &mut |text| texts.push((path.clone(), text.to_owned())));
        }
        let sides = [
            ("connector", &connector.extra, &connector.settings, &connector.variables),
            ("store", &self.store.extra, &self.store.settings, &self.store.variables),
            ("load", &self.load.extra, &self.load.settings, &self.load.variables),
        ];
        for (side, extra, settings, variables) in sides {
            for (kind, values) in [("extra", extra), ("settings", settings)] {
                for (name, value) in values {
                    let path = format!("{side}.{kind}.{name}");
                    strings_in(value, &mut |text| texts.push((path.clone(), text.to_owned())));
                }
            }
            let of_side = variables.iter();
            texts.extend(of_side.map(|(name, value)| (format!("{side}.variables.{name}"), value.clone())));
        }
        for (index, process) in self.processes.iter().enumerate() {
            let path = |field: &str| format!("processes.{index}.{field}");
            texts.extend(process.command.iter().map(|word| (path("command"), word.clone())));
            texts.extend(process.variables.values().map(|value| (path("variables"), value.clone())));
            texts.extend(process.ready.iter().map(|address| (path("ready"), address.clone())));
        }
        texts
    }

    /// All places that its texts hold.
    pub(super) fn places(&self) -> BTreeSet<String> {
        self.texts().iter().flat_map(|(_, text)| places_in(text)).map(str::to_owned).collect()
    }
}

impl LateText {
    pub(super) fn halts(self) -> Halts {
        let milliseconds = |count: u16| Duration::from_millis(count.into());
        Halts { stopped: milliseconds(self.stopped_ms), running: milliseconds(self.running_ms), seed: None }
    }
}

impl ConnectorText {
    fn first_flaw(&self) -> Option<Flaw> {
        let connector = self;
        let flaw = |path: &str, problem: String| Some(Flaw { path: path.to_owned(), problem });
        if connector.class.trim().is_empty() {
            return flaw("connector.class", "the connector's class is empty".to_owned());
        }
        if connector.served_from.as_deref().is_some_and(|name| name.trim().is_empty()) {
            return flaw("connector.served_from", "the place has no name".to_owned());
        }
        if connector.module.is_some() && connector.file.is_some() {
            return flaw(
                "connector.file",
                "`connector.module` and `connector.file` name two places of one class".to_owned(),
            );
        }
        if let Some(file) = connector.file.as_deref().filter(|file| module_of(file).is_none()) {
            return flaw(
                "connector.file",
                format!("{file:?} is no name of a Python file that can be imported"),
            );
        }
        None
    }
}

impl ProcessText {
    /// The first thing that is well formed and cannot be, of the process at this path.
    fn first_flaw(&self, path: &str) -> Option<Flaw> {
        let flaw = |setting: &str, problem: String| Some(Flaw { path: format!("{path}{setting}"), problem });
        if self.command.first().is_none_or(|program| program.trim().is_empty()) {
            return flaw(".command", "it names no program".to_owned());
        }
        if !is_plain(&self.name) {
            return flaw(".name", format!("{:?} is no name of letters, digits and `+-._`", self.name));
        }
        let never = |late: LateText| late.stopped_ms == 0 || late.running_ms == 0 || late.stopped_ms > LATEST;
        if self.late.is_some_and(never) {
            return flaw(
                ".late",
                format!("it must be stopped for 1 to {LATEST} ms and run for 1 ms or more"),
            );
        }
        if self.ready.is_none() && ports_in(self).is_empty() {
            let problem = "nothing tells when it is ready: it has no `ready` and its command no `{port}`";
            return flaw("", problem.to_owned());
        }
        None
    }
}

/// Whether a name is one of files and of the command line alike.
fn is_plain(name: &str) -> bool {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "+-._".contains(character);
    !name.is_empty() && name.chars().all(allowed)
}

/// The places of ports in a process's command.
pub(super) fn ports_in(process: &ProcessText) -> BTreeSet<&str> {
    let words = process.command.iter().flat_map(|word| places_in(word));
    words.filter(|place| place.starts_with("port")).collect()
}

/// The module that a Python file is, if it can be imported.
pub(super) fn module_of(file: &str) -> Option<&str> {
    let stem = camino::Utf8Path::new(file).file_name()?.strip_suffix(".py")?;
    let is_identifier = stem.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && stem.chars().all(|character| character.is_ascii_alphanumeric() || character == '_');
    is_identifier.then_some(stem)
}

fn strings_in(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => found(text),
        Value::Array(items) => items.iter().for_each(|item| strings_in(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| strings_in(field, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
