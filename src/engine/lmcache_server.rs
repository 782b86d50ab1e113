//! One `lmcache server` process: started on free ports, watched until healthy, asked for its counters, ended.
//! Main type: [`LmcacheServer`].
//!
//! Its keys carry neither the data type nor the weights, so one server serves one model at one data type, ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;

use super::error::{EngineError, quote};
use super::fork_server::{ForkServers, Imports};
use super::halting::{Halting, Halts};
use super::ports::{free_ports, start_on_free_ports};
use super::process::{Launch, OwnedProcess, Streams, line_with, telling_line};
use super::protocol::Connector;
use super::server_counters::{Counted, ServerCounters};
use crate::http::agent;
use crate::thread::on_thread;

const WHAT: &str = "the LMCache server";
/// What vLLM asks a server through.
pub(super) const CONNECTOR: &str = "LMCacheMPConnector";
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Words of errors of a server that leave the engine which asked it without an answer, until that gives up after minutes.
const REFUSALS: [&str; 2] =
    ["must be a multiple of tokens_per_block", "must be a multiple of slots_per_block"];
/// How long the memory tier, which takes chunks within milliseconds, may take none before it counts as done.
const MEMORY_PATIENCE: Duration = Duration::from_secs(20);
/// So many readings in turn must say that nothing is left to store: between taking a chunk up and counting it a server says so, too.
const IDLE_READINGS: u32 = 5;
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Seconds that an engine lets the server take to answer a ping. LMCache gives 10, which a server that copies for several
/// engines on busy cores can miss; until the next ping the engine then computes everything itself, as if nothing were stored.
/// The server forgets an engine after 120 s without one, and wants three pings within.
const HEARTBEAT_S: u64 = 40;

/// How to run the server.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The `lmcache` program of the environment.
    pub program: Utf8PathBuf,
    /// The environment's Python, which the program is of.
    pub python: Utf8PathBuf,
    /// Where it is forked from, if it is.
    pub fork_servers: Option<Arc<ForkServers>>,
    /// The driver's own executable, for the guard.
    pub guard: Utf8PathBuf,
    /// Variables of the process.
    pub variables: Vec<(String, String)>,
    /// Where its output goes.
    pub log: Utf8PathBuf,
    /// Tokens of one chunk.
    pub chunk_tokens: u32,
    /// In how many objects a chunk is stored, one a shard.
    pub shards_of_chunk: u32,
    /// Size of the memory tier, in GiB.
    pub memory_gib: u32,
    /// Size of it in MiB instead, all of which is there from the start, where it is to be too small.
    pub scarce_memory_mib: Option<u32>,
    /// Where else than in private memory it keeps chunks.
    pub tiers: Tiers,
    /// How long it may take to become healthy.
    pub patience: Duration,
}

impl ServerSettings {
    /// Size of the memory tier in GiB, as the server is told.
    fn memory(&self) -> String {
        match self.scarce_memory_mib {
            Some(mib) => (f64::from(mib) / 1024.0).to_string(),
            None => self.memory_gib.to_string(),
        }
    }
}

/// Tiers beside the server's private memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tiers {
    /// What it keeps chunks in besides, or gets them from.
    pub second: Option<SecondTier>,
    /// What turns KV into the bytes of the second tier, if not LMCache's plain form: an object with `type` and what that
    /// takes.
    pub serde: Option<serde_json::Value>,
    /// The name of a segment of shared memory that takes the place of private memory, so that it can be reached.
    pub segment: Option<String>,
}

/// A tier behind the server's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecondTier {
    /// A folder, one file a chunk.
    Disk(Utf8PathBuf),
    /// A Redis server, one value a chunk.
    Redis {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// The memory of other servers that are registered with a coordinator.
    Peers {
        /// The coordinator's address.
        coordinator: String,
        /// This server's name among its peers.
        name: String,
    },
    /// Whatever a description says.
    Described {
        /// LMCache's name for it.
        name: &'static str,
        /// What LMCache is told of it.
        adapter: serde_json::Value,
    },
}

impl SecondTier {
    /// LMCache's name for it, as in the server's counters.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Disk(_) => "fs",
            Self::Redis { .. } => "resp",
            Self::Peers { .. } => "p2p",
            Self::Described { name, .. } => name,
        }
    }

    /// The server's options.
    fn options(&self, transfer_port: u16, serde: Option<&serde_json::Value>) -> Vec<String> {
        let adapter = |mut settings: serde_json::Value| {
            if let Some(serde) = serde {
                settings["serde"] = serde.clone();
            }
            vec!["--l2-adapter".to_owned(), settings.to_string()]
        };
        match self {
            Self::Disk(folder) => adapter(serde_json::json!({ "type": "fs", "base_path": folder })),
            Self::Redis { host, port } => {
                adapter(serde_json::json!({ "type": "resp", "host": host, "port": port, "num_workers": 2 }))
            }
            Self::Described { adapter: described, .. } => adapter(described.clone()),
            Self::Peers { coordinator, name } => [
                ("--coordinator-url", coordinator.clone()),
                ("--coordinator-advertise-ip", "127.0.0.1".to_owned()),
                ("--coordinator-heartbeat-interval", "1".to_owned()),
                ("--instance-id", name.clone()),
                ("--p2p-advertise-url", format!("127.0.0.1:{transfer_port}")),
            ]
            .into_iter()
            .flat_map(|(option, value)| [option.to_owned(), value])
            .collect(),
        }
    }
}

/// A healthy server; its processes end with this value.
#[derive(Debug)]
pub struct LmcacheServer {
    process: OwnedProcess,
    port: u16,
    http_port: u16,
    counted: Counted,
    /// Behind the process, since fields are dropped in their order.
    _pools: Pools,
}

/// Where LMCache keeps a memory pool that can be shared, by its name.
#[must_use]
pub fn pool_path(name: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("/dev/shm/lmcache_l1_pool_{name}"))
}

/// Memory pools that a server may have made, which nobody removes if it is killed. They go with this value.
#[derive(Debug)]
struct Pools(Vec<Utf8PathBuf>);

impl Drop for Pools {
    fn drop(&mut self) {
        for pool in &self.0 {
            if let Err(error) = fs_err::remove_file(pool)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "a server's memory pool was not removed");
            }
        }
    }
}

impl LmcacheServer {
    /// Starts a server with empty tiers and waits until it is healthy.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not healthy in time.
    pub async fn start(settings: &ServerSettings) -> Result<Self, EngineError> {
        start_on_free_ports(async || Self::try_start(settings).await).await
    }

    async fn try_start(settings: &ServerSettings) -> Result<Self, EngineError> {
        let [port, http_port, metrics_port, transfer_port] = free_ports()
            .map_err(|source| EngineError::Spawn { command: settings.program.to_string(), source })?;
        let options = [
            ("--host", "127.0.0.1".to_owned()),
            ("--port", port.to_string()),
            ("--http-host", "127.0.0.1".to_owned()),
            ("--http-port", http_port.to_string()),
            ("--prometheus-port", metrics_port.to_string()),
            ("--chunk-size", settings.chunk_tokens.to_string()),
            ("--l1-size-gb", settings.memory()),
            ("--eviction-policy", "LRU".to_owned()),
            // The server's default and the default of a worker on a CPU differ.
            ("--supported-transfer-mode", "auto".to_owned()),
        ];
        let mut command = vec![settings.program.to_string(), "server".to_owned()];
        command.extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        if let Some(second) = &settings.tiers.second {
            command.extend(second.options(transfer_port, settings.tiers.serde.as_ref()));
        }
        // Memory that grows as it is needed, the default where it is pinned, begins larger than a scarce one and is never a segment.
        if settings.tiers.segment.is_some() || settings.scarce_memory_mib.is_some() {
            command.push("--no-l1-use-lazy".to_owned());
        }
        if let Some(segment) = &settings.tiers.segment {
            command.extend(["--shm-name".to_owned(), segment.clone()]);
        }
        let mut launch = Launch {
            guard: settings.guard.clone(),
            command,
            variables: settings.variables.clone(),
            log: settings.log.clone(),
            fork_server: None,
        };
        if let Some(fork_servers) = &settings.fork_servers {
            launch.fork_server = fork_servers.socket(Imports::Lmcache, &settings.python, &launch).await;
        }
        let mut process = OwnedProcess::start(&launch, Streams::Logged)?;
        let health = format!("http://127.0.0.1:{http_port}/healthcheck");
        let ports = [port, http_port];
        process.until_ready(WHAT, settings.patience, &ports, async || answers(health.clone()).await).await?;
        let counted = Counted {
            second_tier: settings.tiers.second.as_ref().map(SecondTier::name),
            chunk_tokens: settings.chunk_tokens,
            shards_of_chunk: settings.shards_of_chunk,
        };
        // Those without a name of ours bear the server's number.
        let names = process.members().into_iter().map(|process| process.to_string());
        let pools = Pools(names.chain(settings.tiers.segment.clone()).map(|name| pool_path(&name)).collect());
        Ok(Self { process, port, http_port, counted, _pools: pools })
    }

    /// How vLLM reaches this server, with requests that carry this salt.
    #[must_use]
    pub fn connector(&self, cache_salt: Option<String>) -> Connector {
        Connector {
            name: CONNECTOR.to_owned(),
            module_path: Some("lmcache.integration.vllm.lmcache_mp_connector".to_owned()),
            extra: BTreeMap::from([
                ("lmcache.mp.host".to_owned(), "tcp://127.0.0.1".into()),
                ("lmcache.mp.port".to_owned(), self.port.into()),
                ("lmcache.mp.heartbeat_interval".to_owned(), HEARTBEAT_S.into()),
            ]),
            cache_salt,
            ..Connector::default()
        }
    }

    /// Makes it slow, until the value that is returned is dropped.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn halt(&self, halts: Halts) -> Result<Halting, EngineError> {
        Halting::begin(self.process.group(), halts)
            .map_err(|source| EngineError::Spawn { command: WHAT.to_owned(), source })
    }

    /// What it says that keeps an engine waiting without end, as soon as it says it.
    ///
    /// # Errors
    /// When it said such a thing.
    pub fn require_content(&self) -> Result<(), EngineError> {
        let log = self.process.log();
        match line_with(log, &REFUSALS) {
            Some(said) => {
                Err(EngineError::Failed { what: WHAT.to_owned(), message: said, log: log.to_owned() })
            }
            None => Ok(()),
        }
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// When the server does not answer, or a line of its answer cannot be read.
    pub async fn counters(&self) -> Result<ServerCounters, EngineError> {
        let text = self.get("/metrics").await?;
        ServerCounters::read(&text, &self.counted).map_err(|problem| self.http_error("/metrics", problem))
    }

    /// Sees that it still answers, since others load from its memory.
    ///
    /// # Errors
    /// When it does not.
    pub async fn require_alive(&self) -> Result<(), EngineError> {
        let url = format!("http://127.0.0.1:{}/healthcheck", self.http_port);
        let answer = ask(Method::Get, url).await.map(drop);
        answer.map_err(|problem| EngineError::Gone {
            what: "the LMCache server that stored".to_owned(),
            problem,
            log: self.process.log().to_owned(),
        })
    }

    /// Waits until so many more chunks are in the memory tier, and all of them in a second tier that stores: storing goes on after
    /// a request's answer. It waits as long as more arrive. What never reaches the memory tier, and a second tier that takes
    /// nothing at all, are left to the judgement of the counters that are returned. `before` was read ahead of those requests.
    ///
    /// # Errors
    /// When the server does not answer, or a second tier that has taken some takes no more for so long.
    pub async fn settle(
        &self,
        before: ServerCounters,
        chunks: u64,
        patience: Duration,
    ) -> Result<ServerCounters, EngineError> {
        let all_written = before.written_chunks + chunks;
        let all_behind = before.second_tier_chunks + chunks;
        let stores = self.counted.second_tier.filter(|name| *name != "p2p");
        let (mut arrived, mut moved) = ([0; 2], Instant::now());
        let mut idle = 0;
        loop {
            let counters = self.counters().await?;
            let (written, behind) = (counters.written_chunks, counters.second_tier_chunks);
            let behind_memory = stores.filter(|_| behind < written);
            if written >= all_written && behind_memory.is_none() {
                return Ok(counters);
            }
            // What a server copies from its tier into its memory, for a request that it serves, counts as written, too, and never
            // comes behind it. So where as many as must be are behind it, the server is asked whether more are to come.
            let says_so = behind_memory.is_some() && behind >= all_behind && behind > 0 && {
                let status = self.get("/status").await;
                status.is_ok_and(|status| stores_nothing(&status))
            };
            idle = if says_so && arrived == [written, behind] { idle + 1 } else { 0 };
            if idle >= IDLE_READINGS {
                return Ok(counters);
            }
            if arrived != [written, behind] {
                (arrived, moved) = ([written, behind], Instant::now());
            }
            match behind_memory {
                Some(tier) if behind > 0 && moved.elapsed() >= patience => {
                    let log = self.process.log().to_owned();
                    return Err(EngineError::Stopped { tier, behind, written, patience, log });
                }
                Some(_) if moved.elapsed() >= patience => return Ok(counters),
                None if moved.elapsed() >= patience.min(MEMORY_PATIENCE) => return Ok(counters),
                _ => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Waits until another server's memory can be asked.
    ///
    /// # Errors
    /// When none is found in time, or the server does not answer.
    pub async fn find_peer(&self, patience: Duration) -> Result<(), EngineError> {
        let deadline = Instant::now() + patience;
        while count_peers(&self.get("/status").await?) == 0 {
            if Instant::now() > deadline {
                let problem = format!("it found no peer within {} s", patience.as_secs());
                return Err(self.http_error("/status", problem));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Empties the memory tier.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn clear(&self) -> Result<(), EngineError> {
        let url = |path: &str| format!("http://127.0.0.1:{}{path}", self.http_port);
        match ask(Method::Post, url(CLEAR)).await {
            // LMCache 0.5.0 has the older name alone.
            Err(problem) if problem == NOT_FOUND => self.ask(Method::Post, "/clear-cache").await.map(drop),
            answer => answer.map(drop).map_err(|problem| self.unanswered(CLEAR, &problem)),
        }
    }

    async fn get(&self, path: &'static str) -> Result<String, EngineError> {
        self.ask(Method::Get, path).await
    }

    async fn ask(&self, method: Method, path: &'static str) -> Result<String, EngineError> {
        let url = format!("http://127.0.0.1:{}{path}", self.http_port);
        ask(method, url).await.map_err(|problem| self.unanswered(path, &problem))
    }

    /// An error with the server's last words: it may be gone.
    fn unanswered(&self, path: &str, problem: &str) -> EngineError {
        let said = telling_line(self.process.log());
        self.http_error(path, format!("{problem}{}", quote(said.as_deref())))
    }

    fn http_error(&self, path: &str, problem: String) -> EngineError {
        let url = format!("http://127.0.0.1:{}{path}", self.http_port);
        EngineError::Http { url, problem, log: self.process.log().to_owned() }
    }
}

/// What an answer of status 404 is told as.
const NOT_FOUND: &str = "http status: 404";

/// Empties the memory tier.
const CLEAR: &str = "/cache/clear";

#[derive(Debug, Clone, Copy)]
enum Method {
    Get,
    Post,
}

/// Whether a server on this machine answers that all is well.
pub(super) async fn answers(url: String) -> bool {
    ask(Method::Get, url).await.is_ok()
}

/// What a server on this machine answers.
async fn ask(method: Method, url: String) -> Result<String, String> {
    let asked = on_thread(move || {
        let agent =
            agent(ureq::Agent::config_builder().timeout_global(Some(ANSWER_PATIENCE)).proxy(None).build());
        let answer = match method {
            Method::Get => agent.get(&url).call(),
            Method::Post => agent.post(&url).send_empty(),
        };
        answer?.body_mut().read_to_string()
    });
    match asked.await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// The peers that a server's status tells of, wherever in it.
fn count_peers(status: &str) -> u64 {
    numbers_of(status, "p2p_peer_count").into_iter().max().unwrap_or(0)
}

/// Whether a server's status says that no chunk waits to be stored behind the memory and none is on its way; a server that does not tell
/// of these does not say so.
fn stores_nothing(status: &str) -> bool {
    let left = ["pending_keys_count", "in_flight_task_count"].map(|name| numbers_of(status, name));
    left.iter().all(|counts| !counts.is_empty() && counts.iter().all(|count| *count == 0))
}

/// The numbers of this name, wherever in a status.
fn numbers_of(status: &str, name: &str) -> Vec<u64> {
    fn find(value: &serde_json::Value, name: &str, found: &mut Vec<u64>) {
        match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get(name).and_then(serde_json::Value::as_u64));
                fields.values().for_each(|value| find(value, name, found));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| find(value, name, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    if let Ok(status) = serde_json::from_str(status) {
        find(&status, name, &mut found);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_counted_wherever_the_status_tells_of_them() {
        assert_eq!(count_peers(r#"{"modules":[{"name":"p2p","p2p_peer_count":2}]}"#), 2);
        assert_eq!(count_peers("{}"), 0);
        assert_eq!(count_peers("<html>"), 0);
    }

    #[test]
    fn a_server_says_that_nothing_is_left_to_store_only_where_it_tells_of_both() {
        let status = |pending: u64, on_the_way: u64| {
            let controller =
                serde_json::json!({ "pending_keys_count": pending, "in_flight_task_count": on_the_way });
            serde_json::json!({ "storage": [{ "store_controller": controller }] }).to_string()
        };
        assert!(stores_nothing(&status(0, 0)));
        assert!(!stores_nothing(&status(1, 0)) && !stores_nothing(&status(0, 1)));
        assert!(!stores_nothing(r#"{"pending_keys_count": 0}"#) && !stores_nothing("<html>"));
    }
}
