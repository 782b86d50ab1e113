//! A process that a connector needs beside the engines: started, watched until it is ready, ended. Main type: [`Companion`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use camino::Utf8PathBuf;

use super::error::EngineError;
use super::halting::{Halting, Halts};
use super::lmcache_server::answers;
use super::process::{Launch, OwnedProcess, Streams};
use crate::thread::on_thread;

/// How to run one.
#[derive(Debug, Clone)]
pub struct CompanionSettings {
    /// For messages.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its variables.
    pub variables: Vec<(String, String)>,
    /// The driver's own executable, for the guard.
    pub guard: Utf8PathBuf,
    /// Where its output goes.
    pub log: Utf8PathBuf,
    /// The ports that it listens on.
    pub ports: Vec<u16>,
    /// An address that answers with success once it is ready; without one, its ports do once they take connections.
    pub ready: Option<String>,
    /// How long it may take to be ready.
    pub patience: Duration,
}

/// A process that is ready; it ends with this value.
#[derive(Debug)]
pub struct Companion {
    /// Before the process, which could not end while it is stopped; fields are dropped in their order.
    halting: Mutex<Option<Halting>>,
    process: OwnedProcess,
    name: String,
    ports: Vec<u16>,
    ready: Option<String>,
}

impl Companion {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready in time.
    pub async fn start(settings: &CompanionSettings) -> Result<Self, EngineError> {
        let launch = Launch {
            guard: settings.guard.clone(),
            command: settings.command.clone(),
            variables: settings.variables.clone(),
            log: settings.log.clone(),
            fork_server: None,
        };
        let mut process = OwnedProcess::start(&launch, Streams::Logged)?;
        let (ports, ready) = (settings.ports.clone(), settings.ready.clone());
        let is_ready = async || is_ready(ready.clone(), ports.clone()).await;
        process.until_ready(&settings.name, settings.patience, &settings.ports, is_ready).await?;
        Ok(Self { halting: Mutex::default(), process, name: settings.name.clone(), ports, ready })
    }

    /// Makes it answer late from now on.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn halt(&self, halts: Halts) -> Result<(), EngineError> {
        let halting = Halting::begin(self.process.group(), halts)
            .map_err(|source| EngineError::Spawn { command: self.name.clone(), source })?;
        *self.halting.lock().unwrap_or_else(PoisonError::into_inner) = Some(halting);
        Ok(())
    }

    /// Sees that it still answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn require_alive(&self) -> Result<(), EngineError> {
        if is_ready(self.ready.clone(), self.ports.clone()).await {
            return Ok(());
        }
        let (what, log) = (self.name.clone(), self.process.log().to_owned());
        Err(EngineError::Gone { what, problem: "it no longer answers".to_owned(), log })
    }
}

async fn is_ready(address: Option<String>, ports: Vec<u16>) -> bool {
    match address {
        Some(address) => answers(address).await,
        None => on_thread(move || {
            ports
                .iter()
                .all(|&port| std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_ok())
        })
        .await
        .unwrap_or(false),
    }
}
