//! What all carriers over an LMCache server share: its settings, its start, and an engine's side of it. Main type:
//! [`ServerPort`].

use std::io::Write;

use camino::Utf8Path;
use serde_json::{Value, json};

use super::{CarrierError, Doing, Here, Port, RouteError, Side, Surroundings};
use crate::cache::Bucket;
use crate::engine::environment::Environment;
use crate::engine::{
    Connector, Halting, Halts, LmcacheServer, SecondTier, ServerCounters, ServerSettings, Tiers,
};
use crate::event::{Event, Events};
use crate::options::{NotOffered, Serde, StoringOptions};
use crate::suite::LmcacheSettings;

const WHOLE_CHUNKS: &str = "an LMCache server stores whole chunks only";
const ALL_LAYERS: &str = "an LMCache server stores all layers of a chunk together";
const NO_TIER: &str =
    "it translates what leaves a server for a tier behind its memory, and this route has no such tier";
const IN_PROCESS_ONLY: &str =
    "LMCache has it for the remote storage of its in-process mode only, and no route here has that";
const UNTRIED: &str = "it needs a GPU and settings of the model, and was never tried with this program";

/// Whether bytes leave a server for a tier in which a serde can translate them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Translation {
    /// They do.
    Offered,
    /// They do not.
    NotOffered,
}

/// The first option that a route over a server does not offer.
pub(super) fn refused_by_server(options: StoringOptions, translation: Translation) -> Option<NotOffered> {
    [
        ("save_unfull_chunk", options.save_unfull_chunk.then_some(WHOLE_CHUNKS)),
        ("layerwise", options.layerwise.then_some(ALL_LAYERS)),
        ("serde", refused_serde(options, translation)),
    ]
    .into_iter()
    .find_map(|(option, reason)| Some(NotOffered { option, reason: reason? }))
}

/// Why the route does not offer the serde that is asked for.
pub(super) fn refused_serde(options: StoringOptions, translation: Translation) -> Option<&'static str> {
    match options.serde? {
        Serde::Cachegen => Some(IN_PROCESS_ONLY),
        Serde::Turboquant => Some(UNTRIED),
        Serde::Aesgcm | Serde::Fp8 => (translation == Translation::NotOffered).then_some(NO_TIER),
    }
}

/// Refuses an environment without LMCache.
pub(super) fn require_lmcache(here: &Here<'_>) -> Result<(), RouteError> {
    here.environment.map_or(Ok(()), Environment::require_lmcache).map_err(RouteError::NoLmcache)
}

/// Refuses an environment without LMCache's server program, as one that was put together by hand may be.
pub(super) fn require_server(here: &Here<'_>) -> Result<(), RouteError> {
    require_lmcache(here)?;
    match here.environment.map(|environment| environment.executable("lmcache")) {
        Some(program) if !program.exists() => Err(RouteError::NoServer { program }),
        _ => Ok(()),
    }
}

/// Settings of a server, without a tier besides memory.
#[must_use]
pub fn server_settings(surroundings: &Surroundings<'_>, log: &str) -> ServerSettings {
    ServerSettings {
        program: surroundings.environment.executable("lmcache"),
        python: surroundings.environment.python(),
        fork_servers: surroundings.fork_servers.clone(),
        guard: surroundings.executable.to_owned(),
        variables: surroundings.variables.clone(),
        log: surroundings.notes.join(log),
        chunk_tokens: surroundings.lmcache.chunk_tokens,
        shards_of_chunk: surroundings.shards_of_chunk,
        memory_gib: surroundings.lmcache.memory_gib,
        scarce_memory_mib: surroundings.scarce_memory_mib,
        tiers: Tiers::default(),
        patience: surroundings.patience,
    }
}

/// What a server's second tier is told of the suite's serde.
///
/// # Errors
/// When its key cannot be written.
pub fn serde_settings(lmcache: &LmcacheSettings, cache: &Utf8Path) -> Result<Option<Value>, CarrierError> {
    let Some(serde) = lmcache.options.serde else { return Ok(None) };
    let mut settings = json!({ "type": serde.name() });
    if serde == Serde::Aesgcm {
        // Nothing secret is encrypted, so the key is none either; both servers must have the same.
        let path = Bucket::Serde.folder(cache).join("aesgcm.key");
        keep_key(&path, &[b'k'; 32]).map_err(|source| CarrierError::Write { path: path.clone(), source })?;
        settings["master_key_path"] = path.as_str().into();
    }
    Ok(Some(settings))
}

/// Writes a file that other runs may be reading, unless it holds just that.
fn keep_key(path: &Utf8Path, key: &[u8]) -> std::io::Result<()> {
    if fs_err::read(path).is_ok_and(|present| present == key) {
        return Ok(());
    }
    let folder = path.parent().expect("a file has a folder");
    fs_err::create_dir_all(folder)?;
    let mut draft = tempfile::NamedTempFile::new_in(folder)?;
    draft.write_all(key)?;
    draft.persist(path)?;
    Ok(())
}

/// Starts a server and tells of it.
///
/// # Errors
/// When it does not start.
pub async fn launch_server(
    events: &Events,
    settings: &ServerSettings,
    name: &str,
) -> Result<LmcacheServer, CarrierError> {
    events.emit(Event::ServerStarting { server: name.to_owned(), log: settings.log.clone() });
    let started = std::time::Instant::now();
    let server = LmcacheServer::start(settings).await?;
    events.emit(Event::ServerHealthy { server: name.to_owned(), elapsed: started.elapsed() });
    Ok(server)
}

/// The connector with those of the suite's options that the engine's side of an LMCache server has.
#[must_use]
pub fn with_options(mut connector: Connector, options: StoringOptions) -> Connector {
    connector.extra.extend(options.connector_settings());
    connector
}

/// An engine's side of an LMCache server.
pub(super) struct ServerPort<'a> {
    pub(super) server: LmcacheServer,
    pub(super) surroundings: &'a Surroundings<'a>,
    /// What sets requests of this run apart from those of others.
    pub(super) salt: Option<String>,
    /// Whether engines are told a model by the name of its folder.
    pub(super) model_by_name: bool,
}

impl<'a> ServerPort<'a> {
    /// That of a server that no other run uses.
    pub(super) fn of(server: LmcacheServer, surroundings: &'a Surroundings<'a>) -> Self {
        Self { server, surroundings, salt: None, model_by_name: false }
    }
}

impl Port for ServerPort<'_> {
    fn connector(&self) -> Connector {
        let mut connector = self.server.connector(self.salt.clone());
        connector.model_by_name = self.model_by_name;
        with_options(connector, self.surroundings.lmcache.options)
    }

    fn counters(&self) -> Doing<'_, ServerCounters> {
        Box::pin(async { Ok(self.server.counters().await?) })
    }

    fn settle(&self, before: ServerCounters, chunks: u64) -> Doing<'_, ServerCounters> {
        Box::pin(settle(&self.server, self.surroundings, before, chunks))
    }

    fn clear(&self) -> Doing<'_, ()> {
        Box::pin(async { Ok(self.server.clear().await?) })
    }

    fn require_alive(&self) -> Doing<'_, ()> {
        Box::pin(async { Ok(self.server.require_alive().await?) })
    }

    fn require_content(&self) -> Result<(), CarrierError> {
        Ok(self.server.require_content()?)
    }

    fn halt(&self, halts: Halts) -> Result<Option<Halting>, CarrierError> {
        Ok(Some(self.server.halt(halts)?))
    }
}

/// Starts the server of one side, with empty memory and a tier behind it, and with what `change` makes of its settings.
pub(super) async fn launch_side<'a>(
    surroundings: &'a Surroundings<'a>,
    side: Side,
    tier: SecondTier,
    salt: Option<String>,
    change: impl FnOnce(&mut ServerSettings),
) -> Result<ServerPort<'a>, CarrierError> {
    let (log, what) = match side {
        Side::Both => ("lmcache-server.log".to_owned(), "lmcache server".to_owned()),
        Side::Store | Side::Load => {
            (format!("lmcache-server-{}.log", side.name()), format!("lmcache server that {}s", side.name()))
        }
    };
    let mut settings = server_settings(surroundings, &log);
    let serde = serde_settings(&surroundings.lmcache, surroundings.cache)?;
    settings.tiers = Tiers { second: Some(tier), serde, segment: None };
    change(&mut settings);
    let server = launch_server(surroundings.events, &settings, &what).await?;
    Ok(ServerPort { salt, ..ServerPort::of(server, surroundings) })
}

/// Waits for chunks, which go on arriving after the last answer.
///
/// # Errors
/// When the server does not answer.
async fn settle(
    server: &LmcacheServer,
    surroundings: &Surroundings<'_>,
    before: ServerCounters,
    chunks: u64,
) -> Result<ServerCounters, CarrierError> {
    let objects = chunks * u64::from(surroundings.shards_of_chunk);
    Ok(server.settle(before, objects, surroundings.patience).await?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_key_that_others_may_read_is_never_seen_by_half() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("serde/key");
        let file = || fs_err::metadata(&path).unwrap().ino();
        keep_key(&path, b"one").unwrap();
        let first = file();
        keep_key(&path, b"one").unwrap();
        assert_eq!(file(), first, "what is the same is left alone");
        let reader = fs_err::File::open(&path).unwrap();
        keep_key(&path, b"another").unwrap();
        assert_eq!(std::io::read_to_string(reader).unwrap(), "one", "whoever reads it reads it whole");
        assert_eq!(fs_err::read(&path).unwrap(), b"another");
        assert_eq!(path.parent().unwrap().read_dir_utf8().unwrap().count(), 1);
    }
}
