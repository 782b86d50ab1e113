//! What keeps the KV that readers of another identity ask for: an LMCache server, or the LMCache in an engine's own process. Main type:
//! [`Keeping`].

use camino::{Utf8Path, Utf8PathBuf};

use crate::carrier::{
    CarrierError, Surroundings, in_process_variables, launch_server, remote_variables, serde_settings,
    server_settings, settle_files, with_options,
};
use crate::engine::{Connector, LmcacheServer, SecondTier, ServerCounters, Tiers};
use crate::foreign::Way;
use crate::options::{StoringOptions, TransferMode};
use crate::stage::StageError;
use crate::suite::LmcacheSettings;

/// One that keeps KV, as engines are connected to it.
pub(super) struct Keeping<'a> {
    surroundings: &'a Surroundings<'a>,
    over: Way,
    chunks: Chunks,
    kept: Kept,
}

/// The chunks that an engine stores, and finds.
#[derive(Clone, Copy)]
pub(super) struct Chunks {
    /// Tokens of one.
    pub(super) tokens: u32,
    /// In how many shards the engine's ranks store one.
    pub(super) shards: u32,
}

enum Kept {
    /// By a server.
    Server(Box<LmcacheServer>),
    /// By the LMCache in an engine: which variables it is given, and the folder of its files, if it has one.
    Engine { variables: Vec<(String, String)>, folder: Option<Utf8PathBuf> },
}

/// What was there at some time: what a server had counted, or files in a folder.
#[derive(Clone, Copy)]
pub(super) enum Before {
    Counted(ServerCounters),
    Files(u64),
}

impl<'a> Keeping<'a> {
    /// Starts a server of such chunks, over this folder where it has one; in process there is nothing to start.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) async fn start(
        surroundings: &'a Surroundings<'a>,
        over: Way,
        folder: &Utf8Path,
        chunks: Chunks,
        name: &str,
    ) -> Result<Self, StageError> {
        let lmcache = LmcacheSettings { chunk_tokens: chunks.tokens, ..surroundings.lmcache };
        let kept = match over {
            Way::Process => Kept::Engine { variables: in_process_variables(&lmcache), folder: None },
            Way::ProcessFiles => Kept::Engine {
                variables: remote_variables(&lmcache, folder),
                folder: Some(folder.to_owned()),
            },
            Way::Tier | Way::Memory | Way::DrivenMemory => {
                let mut settings = server_settings(surroundings, &format!("lmcache-server-{name}.log"));
                settings.chunk_tokens = chunks.tokens;
                settings.shards_of_chunk = chunks.shards;
                if over == Way::Tier {
                    settings.tiers = Tiers {
                        second: Some(SecondTier::Disk(folder.to_owned())),
                        serde: serde_settings(&surroundings.lmcache, surroundings.cache)?,
                        segment: None,
                    };
                }
                let what = format!("lmcache server of the foreign KV {name}");
                Kept::Server(Box::new(launch_server(surroundings.events, &settings, &what).await?))
            }
        };
        Ok(Self { surroundings, over, chunks, kept })
    }

    /// What an engine is told of it.
    pub(super) fn connector(&self) -> Connector {
        match &self.kept {
            Kept::Server(server) => {
                let options = self.surroundings.lmcache.options;
                let driven = (self.over == Way::DrivenMemory).then_some(TransferMode::LmcacheDriven);
                let options = StoringOptions { transfer_mode: driven.or(options.transfer_mode), ..options };
                with_options(server.connector(None), options)
            }
            Kept::Engine { .. } => {
                Connector { name: "LMCacheConnectorV1".to_owned(), ..Connector::default() }
            }
        }
    }

    /// Variables of an engine's process.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        match &self.kept {
            Kept::Server(_) => Vec::new(),
            Kept::Engine { variables, .. } => variables.clone(),
        }
    }

    /// What is there now.
    pub(super) async fn now(&self) -> Result<Before, StageError> {
        Ok(match &self.kept {
            Kept::Server(server) => Before::Counted(server.counters().await?),
            Kept::Engine { folder, .. } => Before::Files(folder.as_deref().map_or(Ok(0), count_files)?),
        })
    }

    /// Tokens that a server found behind its memory since.
    pub(super) async fn second_tier_tokens(&self, before: Before) -> Result<u64, StageError> {
        Ok(match (&self.kept, before) {
            (Kept::Server(server), Before::Counted(before)) => {
                server.counters().await?.since(before).hit_second_tier_tokens
            }
            _ => 0,
        })
    }

    /// Waits until so many chunks have arrived since, which go on arriving after the last answer; memory in process has them by then.
    ///
    /// # Errors
    /// When a server does not answer, or nothing comes into a folder.
    pub(super) async fn settle(&self, before: Before, chunks: u64) -> Result<(), StageError> {
        let (shards, patience) = (chunks * u64::from(self.chunks.shards), self.surroundings.patience);
        match (&self.kept, before) {
            (Kept::Server(server), Before::Counted(before)) => {
                server.settle(before, shards, patience).await.map_err(CarrierError::from)?;
            }
            (Kept::Engine { folder: Some(folder), .. }, Before::Files(before)) => {
                settle_files(folder, before + shards, patience).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn count_files(folder: &Utf8Path) -> Result<u64, StageError> {
    let entries = folder.read_dir_utf8();
    let count = entries.map(|entries| entries.count() as u64);
    count.map_err(|source| StageError::Write { path: folder.to_owned(), source })
}
