//! What a job's making is handed: its inputs, a draft to fill, and a desk that changes no output. Main types: [`Context`],
//! [`Desk`], [`Inputs`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use camino::Utf8PathBuf;

use super::Sources;
use crate::digest::Digest;
use crate::engine::environment::{Environment, EnvironmentIdentity};
use crate::engine::{ForkServers, RedisAddress};
use crate::event::{Events, JobName};
use crate::model::Route;
use crate::stage_name::StageName;
use crate::store::{Artifact, Draft};
use crate::suite::PatienceSettings;

/// What a job is of, for people: a model, a route; neither where it runs once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Label {
    /// The model's name in the suite.
    pub model: Option<String>,
    /// The route.
    pub route: Option<Route>,
}

impl Label {
    /// Of a model, on all routes.
    #[must_use]
    pub fn of_model(model: &str) -> Self {
        Self { model: Some(model.to_owned()), route: None }
    }

    /// Of a model on a route.
    #[must_use]
    pub fn on_route(model: &str, route: Route) -> Self {
        Self { model: Some(model.to_owned()), route: Some(route) }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.model.as_deref().into_iter().chain(self.route.map(Route::name)).collect();
        formatter.write_str(&words.join(" "))
    }
}

/// The artifacts that a job is made from, each by the stage that made it.
#[derive(Debug, Clone, Default)]
pub struct Inputs(BTreeMap<StageName, Artifact>);

impl Inputs {
    /// Adds one.
    pub fn add(&mut self, stage: StageName, artifact: Artifact) {
        self.0.insert(stage, artifact);
    }

    /// Whether there is one of this stage.
    #[must_use]
    pub fn get(&self, stage: StageName) -> Option<&Artifact> {
        self.0.get(&stage)
    }

    /// The one of this stage.
    pub(super) fn of(&self, stage: StageName) -> &Artifact {
        self.0.get(&stage).expect("the graph gives each job the inputs that its work reads")
    }

    /// Digests of their outputs: what a job's key holds.
    #[must_use]
    pub fn digests(&self) -> BTreeMap<StageName, Digest> {
        self.0.iter().map(|(stage, artifact)| (*stage, artifact.output_digest())).collect()
    }
}

/// What `fill` of a job is handed besides its parameters.
pub struct Context<'a> {
    /// The job's stage.
    pub stage: StageName,
    /// What the job is of, for messages.
    pub label: &'a Label,
    /// What it is made from.
    pub inputs: &'a Inputs,
    /// Where its output goes.
    pub draft: &'a Draft,
    /// Engines that may share its rounds.
    pub engines: usize,
    /// Places and processes.
    pub desk: &'a Desk,
}

impl Context<'_> {
    /// The model's name, for messages.
    pub(super) fn model_name(&self) -> &str {
        self.label.model.as_deref().unwrap_or_default()
    }

    /// The job's name, for those who are told of it.
    pub(super) fn job_name(&self) -> JobName {
        JobName::new(self.stage, &self.label.to_string())
    }
}

/// What all jobs of a run work with and none depends on: places, processes, who is told. What an output depends on is in a
/// job's parameters, and what these name by digest is found here.
#[derive(Debug)]
pub struct Desk {
    /// Who is told what happens.
    pub events: Events,
    /// Folder of everything that is kept between runs.
    pub cache: Utf8PathBuf,
    /// The driver's own executable.
    pub executable: Utf8PathBuf,
    /// A Redis server to use instead of one of our own: only bytes pass through it.
    pub redis: Option<RedisAddress>,
    /// Where engines are forked from.
    pub fork_servers: Arc<ForkServers>,
    /// When a process counts as hung: an error, and no output.
    pub patience: PatienceSettings,
    /// The dataset's archive and the models' files, by digest.
    pub sources: Sources,
    /// The environment that keys name.
    pub environment: Option<Environment>,
}

impl Desk {
    /// The environment of this identity, or the one beneath it without LMCache.
    pub(super) fn environment(&self, identity: &EnvironmentIdentity) -> &Environment {
        let environment =
            self.environment.as_ref().expect("a graph has engines only where it was made of an environment");
        if environment.identity() == identity { environment } else { environment.of_baseline() }
    }
}
