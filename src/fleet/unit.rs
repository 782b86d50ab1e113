//! What there is to do, and in which order. Main types: [`FleetPlan`], [`Unit`].

use std::collections::BTreeMap;

use serde::Serialize;

use crate::dataset::Shard;
use crate::digest::Digest;
use crate::model::Route;
use crate::stage_name::StageName;

const SCHEMA: u32 = 1;

/// A run in units.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetPlan {
    /// Number of this format.
    pub schema: u32,
    /// What the run is called in the depot.
    pub run: String,
    /// Where the depot is, if it was named.
    pub depot: Option<String>,
    /// What there is to do, each behind what it waits for.
    pub units: Vec<Unit>,
}

/// Something that one machine does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unit {
    /// Its name: lower-case letters, digits and dashes.
    pub id: String,
    /// What kind of work it is.
    pub kind: Kind,
    /// The model, but for a merge.
    pub model: Option<String>,
    /// The route, of a cell.
    pub route: Option<Route>,
    /// The part of the questions, but for a merge.
    pub shard: Option<Shard>,
    /// Units that end before it begins.
    pub needs: Vec<String>,
    /// GPUs that it takes.
    pub gpus: u32,
    /// Digests of the keys that it looks for, as far as they are known here.
    pub keys: BTreeMap<StageName, Digest>,
    /// Command lines, one after the other, each as its words.
    pub commands: Vec<Vec<String>>,
}

/// What kind of work a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The arms without a connector, which several cells share.
    Arms,
    /// One model on one route.
    Cell,
    /// The report of all.
    Merge,
}

/// What a plan is made of.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// What the run is called.
    pub run: String,
    /// Where the depot is.
    pub depot: Option<String>,
    /// Models, with the GPUs that each takes.
    pub models: Vec<(String, u32)>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Parts of the questions.
    pub shards: Vec<Shard>,
    /// Words of `run` and `stage` that all units share.
    pub arguments: Vec<String>,
}

impl FleetPlan {
    /// Each model on each route in each part; before them, where there are several routes, what they share; behind them the merge.
    #[must_use]
    pub fn of(wishes: &Wishes) -> Self {
        let (mut units, mut cells) = (Vec::new(), Vec::new());
        for (model, gpus) in &wishes.models {
            for &shard in &wishes.shards {
                let name = |what: &str| id(&[model, what, &part(shard)]);
                let unit = |kind, what: &str, route, needs, commands| Unit {
                    id: name(what),
                    kind,
                    model: Some(model.clone()),
                    route,
                    shard: Some(shard),
                    needs,
                    gpus: *gpus,
                    keys: BTreeMap::new(),
                    commands,
                };
                let mut needs = Vec::new();
                if let [first, _, ..] = wishes.routes.as_slice() {
                    let commands = ["baseline", "control"].map(|stage| {
                        wishes.command(&["stage", stage], model, *first, shard, &format!("out-{stage}"))
                    });
                    units.push(unit(Kind::Arms, "arms", None, Vec::new(), commands.to_vec()));
                    needs.push(name("arms"));
                }
                for &route in &wishes.routes {
                    let out = format!("out/{}", name(route.name()));
                    let mut command = wishes.command(&["run"], model, route, shard, &out);
                    command.extend(["--run-name".to_owned(), wishes.run.clone()]);
                    units.push(unit(Kind::Cell, route.name(), Some(route), needs.clone(), vec![command]));
                    cells.push(name(route.name()));
                }
            }
        }
        let merge = ["kv-correctness", "merge", "--run-name", &wishes.run, "--out", "out/merged"];
        units.push(Unit {
            id: "merge".to_owned(),
            kind: Kind::Merge,
            model: None,
            route: None,
            shard: None,
            needs: cells,
            gpus: 0,
            keys: BTreeMap::new(),
            commands: vec![merge.map(str::to_owned).to_vec()],
        });
        Self { schema: SCHEMA, run: wishes.run.clone(), depot: wishes.depot.clone(), units }
    }

    /// The units of one kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Unit> {
        self.units.iter().filter(move |unit| unit.kind == kind)
    }
}

impl Wishes {
    fn command(&self, what: &[&str], model: &str, route: Route, shard: Shard, out: &str) -> Vec<String> {
        let cell = format!("{model}/{route}");
        let shard = shard.to_string();
        let own = ["--cell", &cell, "--shard", &shard, "--out", out];
        let words = ["kv-correctness"].into_iter().chain(what.iter().copied());
        words.chain(self.arguments.iter().map(String::as_str)).chain(own).map(str::to_owned).collect()
    }
}

impl Unit {
    /// Its command lines as a shell reads them, joined so that the first one that fails ends them.
    #[must_use]
    pub fn script(&self) -> String {
        let line = |words: &Vec<String>| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        self.commands.iter().map(line).collect::<Vec<_>>().join(" && ")
    }
}

fn part(shard: Shard) -> String {
    format!("{}-of-{}", shard.number(), shard.of())
}

/// Lower-case letters, digits and dashes, as all executors take them.
fn id(words: &[&str]) -> String {
    let letter =
        |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    words.join("-").chars().map(letter).collect()
}

/// A word as a POSIX shell reads it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,+@".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
