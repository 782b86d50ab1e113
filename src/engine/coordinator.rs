//! LMCache's coordinator, through which servers find their peers. Main type: [`Coordinator`].

use std::time::Duration;

use super::error::EngineError;
use super::lmcache_server::{ServerSettings, answers};
use super::ports::{free_ports, start_on_free_ports};
use super::process::{Launch, OwnedProcess, Streams};

const WHAT: &str = "LMCache's coordinator";

/// A healthy coordinator; its processes end with this value.
#[derive(Debug)]
pub struct Coordinator {
    _process: OwnedProcess,
    url: String,
}

impl Coordinator {
    /// Starts a coordinator with the program, variables and log of the servers that it is for.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not healthy in time.
    pub async fn start(settings: &ServerSettings, patience: Duration) -> Result<Self, EngineError> {
        start_on_free_ports(async || Self::try_start(settings, patience).await).await
    }

    async fn try_start(settings: &ServerSettings, patience: Duration) -> Result<Self, EngineError> {
        let program = settings.program.to_string();
        let [port] =
            free_ports().map_err(|source| EngineError::Spawn { command: program.clone(), source })?;
        let command = [&program, "coordinator", "--host", "127.0.0.1", "--port", &port.to_string()];
        let launch = Launch {
            guard: settings.guard.clone(),
            command: command.map(str::to_owned).to_vec(),
            variables: settings.variables.clone(),
            log: settings.log.clone(),
            fork_server: None,
        };
        let mut process = OwnedProcess::start(&launch, Streams::Logged)?;
        let url = format!("http://127.0.0.1:{port}");
        process
            .until_ready(WHAT, patience, &[port], async || answers(format!("{url}/healthz")).await)
            .await?;
        Ok(Self { _process: process, url })
    }

    /// Where servers register.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}
