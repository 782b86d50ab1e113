//! A process that a connector needs beside the engines: started, watched until it is ready, ended. Main type: [`Companion`].

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use camino::Utf8PathBuf;
use rustix::process::Signal;

use super::error::EngineError;
use super::group::signal_group;
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

/// How a process is made to answer late: it is stopped and let run in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halts {
    /// How long it is stopped each time.
    pub stopped: Duration,
    /// How long it runs in between.
    pub running: Duration,
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

/// A thread that stops a process group and lets it run, until this value is dropped; then the group runs.
#[derive(Debug)]
struct Halting {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Halting {
    fn begin(group: u32, halts: Halts) -> std::io::Result<Self> {
        let (end, ended) = channel();
        let waits = move |duration| ended.recv_timeout(duration) == Err(RecvTimeoutError::Timeout);
        let halt = move || {
            loop {
                signal_group(group, Signal::STOP);
                let goes_on = waits(halts.stopped);
                signal_group(group, Signal::CONT);
                if !goes_on || !waits(halts.running) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("halting".to_owned()).spawn(halt)?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Halting {
    fn drop(&mut self) {
        self.end.take();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("a process that was made to answer late may be stopped still");
        }
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
