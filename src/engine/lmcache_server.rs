//! One `lmcache server` process: started on free ports, watched until healthy, asked for its counters, ended.
//! Main type: [`LmcacheServer`].
//!
//! Its keys carry neither the data type nor the weights, so one server serves one model at one data type, ever.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::error::{EngineError, quote};
use super::process::{Launch, OwnedProcess, Streams, telling_line};
use super::protocol::Connector;

const WHAT: &str = "the LMCache server";
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// A port that was free may be taken by another process before the server binds it.
const START_ATTEMPTS: u32 = 3;

/// How to run the server.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The `lmcache` program of the environment.
    pub program: Utf8PathBuf,
    /// The driver's own executable, for the guard.
    pub guard: Utf8PathBuf,
    /// Variables of the process.
    pub variables: Vec<(String, String)>,
    /// Where its output goes.
    pub log: Utf8PathBuf,
    /// Tokens of one chunk.
    pub chunk_tokens: u32,
    /// Size of the memory tier, in GiB.
    pub memory_gib: u32,
    /// Where else than in private memory it keeps chunks.
    pub tiers: Tiers,
    /// How long it may take to become healthy.
    pub patience: Duration,
}

/// Tiers beside the server's private memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tiers {
    /// A folder for a second tier, one file a chunk.
    pub disk: Option<Utf8PathBuf>,
    /// The name of a segment of shared memory that takes the place of private memory, so that it can be reached.
    pub segment: Option<String>,
}

/// A healthy server; its processes end with this value.
#[derive(Debug)]
pub struct LmcacheServer {
    process: OwnedProcess,
    port: u16,
    http_port: u16,
}

/// The server's own counters of lookups and chunks, cumulative. Sources: `/metrics`, prefix `lmcache_mp_`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerCounters {
    /// Lookups, one a request.
    pub lookups: u64,
    /// Tokens that were looked up, in whole chunks.
    pub requested_tokens: u64,
    /// Tokens that were found, in whole chunks.
    pub hit_tokens: u64,
    /// Of these, found in the memory tier.
    pub hit_memory_tokens: u64,
    /// Of these, found in a second tier.
    pub hit_second_tier_tokens: u64,
    /// Chunks written into the memory tier, counted for each rank.
    pub written_chunks: u64,
    /// Chunks read from the memory tier, counted for each rank.
    pub read_chunks: u64,
}

impl ServerCounters {
    /// What was counted since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let less = u64::saturating_sub;
        Self {
            lookups: less(self.lookups, earlier.lookups),
            requested_tokens: less(self.requested_tokens, earlier.requested_tokens),
            hit_tokens: less(self.hit_tokens, earlier.hit_tokens),
            hit_memory_tokens: less(self.hit_memory_tokens, earlier.hit_memory_tokens),
            hit_second_tier_tokens: less(self.hit_second_tier_tokens, earlier.hit_second_tier_tokens),
            written_chunks: less(self.written_chunks, earlier.written_chunks),
            read_chunks: less(self.read_chunks, earlier.read_chunks),
        }
    }

    /// Adds what another pass counted.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            lookups: self.lookups + other.lookups,
            requested_tokens: self.requested_tokens + other.requested_tokens,
            hit_tokens: self.hit_tokens + other.hit_tokens,
            hit_memory_tokens: self.hit_memory_tokens + other.hit_memory_tokens,
            hit_second_tier_tokens: self.hit_second_tier_tokens + other.hit_second_tier_tokens,
            written_chunks: self.written_chunks + other.written_chunks,
            read_chunks: self.read_chunks + other.read_chunks,
        }
    }
}

impl LmcacheServer {
    /// Starts a server with empty tiers and waits until it is healthy.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not healthy in time.
    pub async fn start(settings: &ServerSettings) -> Result<Self, EngineError> {
        let mut attempt = 1;
        loop {
            match Self::try_start(settings).await {
                Err(EngineError::Died { .. }) if attempt < START_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn try_start(settings: &ServerSettings) -> Result<Self, EngineError> {
        let [port, http_port, metrics_port] = free_ports()
            .map_err(|source| EngineError::Spawn { command: settings.program.to_string(), source })?;
        let options = [
            ("--host", "127.0.0.1".to_owned()),
            ("--port", port.to_string()),
            ("--http-host", "127.0.0.1".to_owned()),
            ("--http-port", http_port.to_string()),
            ("--prometheus-port", metrics_port.to_string()),
            ("--chunk-size", settings.chunk_tokens.to_string()),
            ("--l1-size-gb", settings.memory_gib.to_string()),
            ("--eviction-policy", "LRU".to_owned()),
            // The server's default and the default of a worker on a CPU differ.
            ("--supported-transfer-mode", "auto".to_owned()),
        ];
        let mut command = vec![settings.program.to_string(), "server".to_owned()];
        command.extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        if let Some(folder) = &settings.tiers.disk {
            let adapter = serde_json::json!({ "type": "fs", "base_path": folder });
            command.extend(["--l2-adapter".to_owned(), adapter.to_string()]);
        }
        if let Some(segment) = &settings.tiers.segment {
            command.extend(["--shm-name".to_owned(), segment.clone()]);
        }
        let launch = Launch {
            guard: settings.guard.clone(),
            command,
            variables: settings.variables.clone(),
            log: settings.log.clone(),
        };
        let mut server = Self { process: OwnedProcess::start(&launch, Streams::Logged)?, port, http_port };
        let deadline = Instant::now() + settings.patience;
        while server.get("/healthcheck").await.is_err() {
            if let Some(status) = server.process.try_wait() {
                let log = settings.log.clone();
                return Err(EngineError::Died {
                    what: WHAT.to_owned(),
                    status,
                    said: telling_line(&log),
                    log,
                });
            }
            if Instant::now() > deadline {
                let (log, patience) = (settings.log.clone(), settings.patience);
                return Err(EngineError::Silent {
                    what: WHAT.to_owned(),
                    patience,
                    said: telling_line(&log),
                    log,
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(server)
    }

    /// How vLLM reaches this server.
    #[must_use]
    pub fn connector(&self) -> Connector {
        Connector {
            name: "LMCacheMPConnector".to_owned(),
            module_path: Some("lmcache.integration.vllm.lmcache_mp_connector".to_owned()),
            extra: BTreeMap::from([
                ("lmcache.mp.host".to_owned(), "tcp://127.0.0.1".into()),
                ("lmcache.mp.port".to_owned(), self.port.into()),
            ]),
        }
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// When the server does not answer, or a line of its answer cannot be read.
    pub async fn counters(&self) -> Result<ServerCounters, EngineError> {
        let text = self.get("/metrics").await?;
        let sum =
            |name: &str| sum_metric(&text, name).map_err(|problem| self.http_error("/metrics", problem));
        Ok(ServerCounters {
            lookups: sum("lmcache_mp_lookups_requests_total")?,
            requested_tokens: sum("lmcache_mp_lookup_requested_tokens_total")?,
            hit_tokens: sum("lmcache_mp_lookup_hit_tokens_total")?,
            hit_memory_tokens: sum("lmcache_mp_lookup_hit_l1_tokens_total")?,
            hit_second_tier_tokens: sum("lmcache_mp_lookup_hit_l2_tokens_total")?,
            written_chunks: sum("lmcache_mp_l1_write_chunks_total")?,
            read_chunks: sum("lmcache_mp_l1_read_chunks_total")?,
        })
    }

    /// Waits until so many chunks are in the memory tier, or no more arrive; storing goes on after a request's answer.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn settle(&self, chunks: u64, patience: Duration) -> Result<ServerCounters, EngineError> {
        let deadline = Instant::now() + patience;
        loop {
            let counters = self.counters().await?;
            if counters.written_chunks >= chunks || Instant::now() > deadline {
                return Ok(counters);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Empties the memory tier.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn clear(&self) -> Result<(), EngineError> {
        self.ask(Method::Post, "/cache/clear").await.map(drop)
    }

    async fn get(&self, path: &'static str) -> Result<String, EngineError> {
        self.ask(Method::Get, path).await
    }

    async fn ask(&self, method: Method, path: &'static str) -> Result<String, EngineError> {
        let url = format!("http://127.0.0.1:{}{path}", self.http_port);
        let asked = tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(ANSWER_PATIENCE))
                .proxy(None)
                .build()
                .into();
            let answer = match method {
                Method::Get => agent.get(&url).call(),
                Method::Post => agent.post(&url).send_empty(),
            };
            answer?.body_mut().read_to_string()
        });
        match asked.await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(self.unanswered(path, &error.to_string())),
            Err(error) => Err(self.unanswered(path, &error.to_string())),
        }
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

#[derive(Debug, Clone, Copy)]
enum Method {
    Get,
    Post,
}

/// Distinct ports that are free on loopback right now.
fn free_ports() -> std::io::Result<[u16; 3]> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = [listen()?, listen()?, listen()?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// The sum over all label sets of a counter in Prometheus' text format; 0 for one that has not been counted yet.
fn sum_metric(text: &str, name: &str) -> Result<u64, String> {
    let mut sum = 0.0;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        if !rest.starts_with(['{', ' ']) {
            continue;
        }
        let value = rest.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        let value = value.filter(|value| (0.0..9e15).contains(value));
        sum += value.ok_or_else(|| format!("{line:?} is no count"))?;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a count below 2^53"
    )]
    Ok(sum as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_its_labels_and_absent_ones_are_zero() {
        let text =
            "# HELP a_total x\na_total{m=\"x\"} 3.0\na_total{m=\"y z\"} 1.0e2\na_total_more 7\nb_total 2\n";
        assert_eq!(sum_metric(text, "a_total"), Ok(103));
        assert_eq!(sum_metric(text, "b_total"), Ok(2));
        assert_eq!(sum_metric(text, "c_total"), Ok(0));
    }

    #[test]
    fn a_counter_that_is_no_count_is_refused_with_its_line() {
        assert_eq!(sum_metric("a_total NaN\n", "a_total"), Err("\"a_total NaN\" is no count".to_owned()));
        assert_eq!(sum_metric("a_total -1\n", "a_total"), Err("\"a_total -1\" is no count".to_owned()));
    }

    #[test]
    fn the_ports_of_one_server_differ() {
        let [first, second, third] = free_ports().unwrap();
        assert!(first != second && second != third && first != third);
    }
}
