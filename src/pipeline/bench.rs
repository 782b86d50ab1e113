//! What a run is asked for, and what it has to do it with. Main types: [`Request`], [`Bench`].

use std::collections::BTreeSet;

use crate::carrier::{find_carrier, planting_routes};
use crate::dataset::Shard;
use crate::depot::Depot;
use crate::foreign::{Keeper, ReaderGroup};
use crate::job::{Ended, Executor, JobId};
use crate::machine::Device;
use crate::model::Route;
use crate::stage::{Desk, Excerpt};
use crate::stage_name::StageName;
use crate::store::{Artifact, Store};
use crate::suite::{PressureSettings, Suite};

/// What was asked for: with sources and environment, all that a run's graph is made of.
#[derive(Debug, Clone)]
pub struct Request {
    /// The suite that is run.
    pub suite: Suite,
    /// What computes.
    pub device: Device,
    /// The questions to ask, if not all of the suite's.
    pub excerpt: Option<Excerpt>,
    /// The part of the questions that this run asks, if others ask the rest.
    pub shard: Option<Shard>,
    /// The models and routes that this run takes of the suite's, if others take the rest: the chance of a false alarm stays
    /// divided among all.
    pub cells: Option<BTreeSet<(String, Route)>>,
    /// Whether load passes may end before their last question.
    pub early_stopping: EarlyStopping,
    /// Whether faults are planted once the comparison is done.
    pub planting: Planting,
    /// Who asks LMCache for KV that was stored under another identity, of every model; none where that is not asked for.
    pub foreign: BTreeSet<ReaderGroup>,
    /// With how many salts, one after the other, each of those asks again that was served what is not its own; at least one.
    pub foreign_salts: u32,
    /// Whether conversations are asked.
    pub turns: Turning,
    /// Whether the chunk that is served wrong is looked for after a mismatch.
    pub locating: Locating,
    /// Engines that may run beside each other. It is in no key: what one computes does not depend on others.
    pub engines_at_a_time: usize,
}

/// Whether a load pass may end before its last question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as harm is beyond doubt.
    Allowed,
    /// Never.
    Refused,
}

/// Whether faults are planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planting {
    /// All that apply, on every model.
    Asked,
    /// None.
    NotAsked,
}

/// Whether conversations are asked, whose turns hold the answers of those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turning {
    /// Over each route of LMCache, of every model.
    Asked,
    /// Over none.
    NotAsked,
}

/// Whether the chunk that is served wrong is looked for, which takes two more engine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locating {
    /// After a mismatch.
    Asked,
    /// Never: the verdict is enough.
    NotAsked,
}

impl Request {
    /// Whether this run takes a model on a route.
    pub(super) fn takes(&self, model: &str, route: Route) -> bool {
        let taken = |(wanted, on): &(String, Route)| wanted == model && *on == route;
        self.cells.as_ref().is_none_or(|cells| cells.iter().any(taken))
    }

    /// The suite's routes that this run takes, in its order.
    pub(super) fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        let taken = |route: &Route| self.suite.models.iter().any(|model| self.takes(&model.name, *route));
        self.suite.routes.iter().copied().filter(taken)
    }

    /// Those of them that it takes of a model.
    pub(super) fn routes_of<'a>(&'a self, model: &'a str) -> impl Iterator<Item = Route> + 'a {
        self.routes().filter(move |&route| self.takes(model, route))
    }

    /// The routes in whose tiers faults are planted of a model; none of a model of which nothing is taken.
    pub(super) fn planting_routes(&self, model: &str) -> Vec<Route> {
        let taken: Vec<Route> = self.routes_of(model).collect();
        let is_asked = self.planting == Planting::Asked && !taken.is_empty();
        if is_asked { planting_routes(&taken) } else { Vec::new() }
    }

    /// What keeps the KV of a model that readers of another identity ask for, on the routes that are taken of it.
    pub(super) fn foreign_keepers(&self, model: &str) -> BTreeSet<Keeper> {
        let keeper = |route| find_carrier(route).ok()?.keeper().ok();
        if self.foreign.is_empty() {
            BTreeSet::new()
        } else {
            self.routes_of(model).filter_map(keeper).collect()
        }
    }

    /// Among how many load passes the budget for early stops is divided: each part of the questions has its share.
    pub(super) fn early_stop_among(&self) -> u32 {
        self.suite.comparisons().saturating_mul(self.shard.map_or(1, Shard::of))
    }

    /// What engines are put under pressure by, if they are.
    pub(super) fn pressure(&self) -> Option<PressureSettings> {
        self.suite.pressure
    }

    pub(super) fn stops_early(&self) -> bool {
        self.early_stopping == EarlyStopping::Allowed
    }

    /// Models that are gone through beside each other: each takes two engines at least.
    fn models_at_a_time(&self) -> usize {
        (self.engines_at_a_time / 2).clamp(1, self.suite.models.len().max(1))
    }

    /// Engines that one model may have at a time, and that its arm with a carrier shares its rounds among.
    pub(super) fn engines_of_a_model(&self) -> usize {
        (self.engines_at_a_time / self.models_at_a_time()).max(1)
    }

    /// Of a model's engines, those of the baseline, while others are the control's.
    pub(super) fn engines_of_baseline(&self) -> usize {
        (self.engines_of_a_model() / 2).max(1)
    }

    /// Of a model's engines, those of the control, which has two passes.
    pub(super) fn engines_of_control(&self) -> usize {
        self.engines_of_a_model().div_ceil(2)
    }
}

/// Questions and prompts of a run: all that is made without an environment. None by default.
#[derive(Debug, Clone, Default)]
pub struct Inputs(pub(super) Vec<(JobId, Artifact)>);

impl Inputs {
    pub(super) fn ended(&self) -> Ended {
        self.0.iter().cloned().collect()
    }
}

/// A run's request with the store and the desk: everything but the environment, which is made when it is needed.
#[derive(Debug)]
pub struct Bench {
    /// What was asked for.
    pub request: Request,
    /// Finished artifacts.
    pub store: Store,
    /// Those that many machines share, if there are such.
    pub depot: Option<Depot>,
    /// What jobs work with.
    pub desk: Desk,
    /// The stage that runs even if its artifact is there.
    pub force: Option<StageName>,
}

impl Bench {
    /// What finds or makes its jobs' artifacts.
    #[must_use]
    pub fn executor(&self) -> Executor<'_> {
        let engines = self.request.engines_at_a_time;
        let depot = self.depot.as_ref();
        Executor { store: &self.store, depot, desk: &self.desk, force: self.force, engines }
    }
}
