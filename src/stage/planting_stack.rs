//! The engine and the LMCache server that faults are planted under. Main type: [`PlantingStack`].

use camino::Utf8PathBuf;

use super::StageError;
use super::engine_run::{EngineRun, EngineSetup};
use crate::carrier::{Surroundings, launch_server, server_settings};
use crate::engine::{LmcacheServer, SecondTier, Tiers, Worker, pool_path};
use crate::fault::segment_fits;

/// How to start them over the second tier.
pub(super) struct PlantingStack<'a> {
    pub(super) run: EngineRun<'a>,
    pub(super) surroundings: &'a Surroundings<'a>,
    pub(super) second: SecondTier,
    /// Variables that reach the second tier.
    pub(super) secrets: Vec<(String, String)>,
    /// Of the requests.
    pub(super) salt: Option<String>,
    /// A name that no other run's memory pool has.
    pub(super) pool: String,
}

/// A server, and an engine in front of it that ends first.
pub(super) struct Started {
    pub(super) worker: Worker,
    pub(super) server: LmcacheServer,
    /// Where the server's memory can be reached, if there is room for such.
    pub(super) segment: Option<Utf8PathBuf>,
}

impl PlantingStack<'_> {
    /// Starts both.
    pub(super) async fn start(&self) -> Result<Started, StageError> {
        let mut settings = server_settings(self.surroundings, "lmcache-server.log");
        let segment = segment_fits(u64::from(self.surroundings.lmcache.memory_gib) << 30)
            .then(|| format!("kv-correctness-{}", self.pool));
        settings.tiers = Tiers { second: Some(self.second.clone()), serde: None, segment: segment.clone() };
        settings.variables.extend(self.secrets.iter().cloned());
        let server = launch_server(self.surroundings.events, &settings, "lmcache server").await?;
        let worker = self.start_engine(&server, None).await?;
        Ok(Started { worker, server, segment: segment.map(|segment| pool_path(&segment)) })
    }

    /// Another engine in front of the same server: what an answer that was no number has left in blocks, no other may meet.
    pub(super) async fn renew_engine(&self, stack: Started, number: usize) -> Result<Started, StageError> {
        let Started { worker, server, segment } = stack;
        worker.finish().await?;
        let worker = self.start_engine(&server, Some(number)).await?;
        Ok(Started { worker, server, segment })
    }

    async fn start_engine(
        &self,
        server: &LmcacheServer,
        number: Option<usize>,
    ) -> Result<Worker, StageError> {
        let setup = EngineSetup::connected("faults", server.connector(self.salt.clone()));
        self.run.start(setup.numbered(number)).await
    }
}
