//! A Redis server as LMCache's second tier: started on a free port of this machine, or somebody else's by address.
//! Main type: [`Redis`].
//!
//! LMCache names a value `MODEL@RANKS@GROUP@HASH`, and `@SALT` behind it where requests carry a salt. In somebody else's
//! server all of a run's values carry one salt that no other run has; only these are ever counted or deleted.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use redis::{
    Client, Connection, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisError,
};

use super::error::EngineError;
use super::ports::{free_ports, start_on_free_ports};
use super::process::{Launch, OwnedProcess, Streams};
use crate::thread::on_thread;

const WHAT: &str = "the Redis server";
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 6379;
/// Values asked for or deleted in one go.
const BATCH: usize = 256;

/// Where a Redis server is, and who asks. `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// Name or address of the machine.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User, if not the default one.
    pub user: Option<String>,
    /// Password, if it asks for one.
    pub password: Option<String>,
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "redis://[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "redis://{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Why a text is no address that LMCache can use. It never repeats the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// Not of the form.
    #[error("it is not of the form redis://[USER@]HOST[:PORT]")]
    Malformed,
    /// TLS.
    #[error("it asks for TLS (rediss://), which LMCache's adapter for Redis does not speak")]
    Tls,
    /// A password.
    #[error("it holds a password, which command lines and logs would show")]
    Password,
    /// A database.
    #[error("it names a database, and LMCache's adapter for Redis uses database 0 only")]
    Database,
}

impl RedisUrlError {
    /// What to do next.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::Malformed | Self::Database => "for example: --redis-url redis://cache.example:6379",
            Self::Tls => "put a TLS tunnel on this machine in front of it, and give the tunnel's address",
            Self::Password => "leave it out, and set KV_CORRECTNESS_REDIS_PASSWORD instead",
        }
    }
}

impl FromStr for RedisAddress {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<Self, RedisUrlError> {
        let url = redis::parse_redis_url(text).ok_or(RedisUrlError::Malformed)?;
        match url.scheme() {
            "redis" => {}
            "rediss" => return Err(RedisUrlError::Tls),
            _ => return Err(RedisUrlError::Malformed),
        }
        if url.password().is_some() {
            return Err(RedisUrlError::Password);
        }
        if !matches!(url.path(), "" | "/" | "/0") || url.query().is_some() {
            return Err(RedisUrlError::Database);
        }
        // An address of IPv6 stands in brackets in a URL, and in no other place.
        let host = url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        let host = host.filter(|host| !host.is_empty());
        Ok(Self {
            host: host.ok_or(RedisUrlError::Malformed)?.to_owned(),
            port: url.port().unwrap_or(DEFAULT_PORT),
            user: Some(url.username().to_owned()).filter(|user| !user.is_empty()),
            password: None,
        })
    }
}

/// How to start a server.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// The `redis-server` program.
    pub program: Utf8PathBuf,
    /// The driver's own executable, for the guard.
    pub guard: Utf8PathBuf,
    /// Where its output goes.
    pub log: Utf8PathBuf,
    /// Its working folder; it writes nothing there.
    pub folder: Utf8PathBuf,
    /// The most that values may take.
    pub bytes: u64,
    /// How long it may take to answer.
    pub patience: Duration,
}

/// A server that answers. One that was started ends with this value; in another's, the run's values do.
#[derive(Debug)]
pub struct Redis {
    process: Option<OwnedProcess>,
    address: RedisAddress,
    salt: Option<String>,
}

impl Redis {
    /// Starts a server that keeps nothing on disk and evicts nothing.
    ///
    /// # Errors
    /// When it cannot be started, ends, or does not answer in time.
    pub async fn start(settings: &RedisSettings) -> Result<Self, EngineError> {
        start_on_free_ports(async || Self::try_start(settings).await).await
    }

    async fn try_start(settings: &RedisSettings) -> Result<Self, EngineError> {
        let failed = |source| EngineError::Spawn { command: settings.program.to_string(), source };
        let [port] = free_ports().map_err(failed)?;
        let options = [
            ("--bind", "127.0.0.1".to_owned()),
            ("--port", port.to_string()),
            ("--save", String::new()),
            ("--appendonly", "no".to_owned()),
            ("--maxmemory", settings.bytes.to_string()),
            ("--maxmemory-policy", "noeviction".to_owned()),
            ("--dir", settings.folder.to_string()),
        ];
        let mut command = vec![settings.program.to_string()];
        command.extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        let (guard, log) = (settings.guard.clone(), settings.log.clone());
        let launch = Launch { guard, command, variables: Vec::new(), log, fork_server: None };
        let mut process = OwnedProcess::start(&launch, Streams::Logged)?;
        let address = RedisAddress { host: "127.0.0.1".to_owned(), port, user: None, password: None };
        let answers = async || {
            let address = address.clone();
            let asked = on_thread(move || connect(&address).is_ok());
            asked.await.unwrap_or(false)
        };
        process.until_ready(WHAT, settings.patience, &[port], answers).await?;
        Ok(Self { process: Some(process), address, salt: None })
    }

    /// Somebody else's server, in which this run's values carry a salt of their own.
    ///
    /// # Errors
    /// When it does not answer, or refuses the user.
    pub fn attach(address: RedisAddress, salt: String) -> Result<Self, RedisError> {
        connect(&address)?;
        Ok(Self { process: None, address, salt: Some(salt) })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &RedisAddress {
        &self.address
    }

    /// The salt that requests must carry.
    #[must_use]
    pub fn salt(&self) -> Option<&str> {
        self.salt.as_deref()
    }

    /// Variables by which LMCache's servers learn who asks: a command line would show them.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let secrets = [
            ("LMCACHE_RESP_USERNAME", &self.address.user),
            ("LMCACHE_RESP_PASSWORD", &self.address.password),
        ];
        let given = secrets.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        given.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Sees that it still answers.
    ///
    /// # Errors
    /// When it does not; `log` is where its own last words are, if it is ours.
    pub async fn require_alive(&self, log: &Utf8Path) -> Result<(), EngineError> {
        let address = self.address.clone();
        let asked = on_thread(move || connect(&address).map(drop).map_err(|error| error.to_string())).await;
        asked.unwrap_or_else(|error| Err(error.to_string())).map_err(|problem| {
            let log = self.process.as_ref().map_or(log, OwnedProcess::log).to_owned();
            EngineError::Gone { what: format!("{WHAT} {}", self.address), problem, log }
        })
    }

    /// Bytes that values may still take, if the server has a limit.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn free_bytes(&self) -> Result<Option<u64>, RedisError> {
        let memory: String = redis::cmd("INFO").arg("memory").query(&mut connect(&self.address)?)?;
        let field = |name: &str| {
            memory
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<u64>().ok())
        };
        let limit = field("maxmemory").filter(|limit| *limit > 0);
        Ok(limit.map(|limit| limit.saturating_sub(field("used_memory").unwrap_or(0))))
    }

    /// The names of the values that this run has stored.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn names(&self) -> Result<Vec<String>, RedisError> {
        let mut connection = connect(&self.address)?;
        let pattern = self.salt.as_ref().map_or_else(|| "*".to_owned(), |salt| format!("*@{salt}"));
        let mut scan = redis::cmd("SCAN");
        scan.cursor_arg(0).arg("MATCH").arg(pattern).arg("COUNT").arg(BATCH);
        scan.clone().iter(&mut connection)?.collect()
    }

    /// A value.
    ///
    /// # Errors
    /// When the server does not answer, or has no such value.
    pub fn get(&self, name: &str) -> Result<Vec<u8>, RedisError> {
        redis::cmd("GET").arg(name).query(&mut connect(&self.address)?)
    }

    /// Length of a value in bytes; 0 for one that is not there.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn length(&self, name: &str) -> Result<u64, RedisError> {
        redis::cmd("STRLEN").arg(name).query(&mut connect(&self.address)?)
    }

    /// Puts a value in its place, or takes it away.
    ///
    /// # Errors
    /// When the server does not answer, or is full.
    pub fn put(&self, name: &str, value: Option<&[u8]>) -> Result<(), RedisError> {
        let command = match value {
            Some(value) => redis::cmd("SET").arg(name).arg(value).clone(),
            None => redis::cmd("DEL").arg(name).clone(),
        };
        command.exec(&mut connect(&self.address)?)
    }

    /// Deletes the values that this run has stored in somebody else's server.
    fn delete_own(&self) -> Result<(), RedisError> {
        let mut connection = connect(&self.address)?;
        for names in self.names()?.chunks(BATCH) {
            redis::cmd("DEL").arg(names).exec(&mut connection)?;
        }
        Ok(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.process.is_none()
            && let Err(error) = self.delete_own()
        {
            tracing::warn!(address = %self.address, %error, "this run's values could not be deleted");
        }
    }
}

/// Why a server could not be asked, in a few words: an answer that is none of Redis is not repeated.
#[must_use]
pub fn describe_redis_error(error: &RedisError) -> String {
    if error.kind() == ErrorKind::Parse {
        "what answers there does not speak Redis".to_owned()
    } else if error.is_timeout() {
        format!("it does not answer within {} s", ANSWER_PATIENCE.as_secs())
    } else {
        error.to_string()
    }
}

fn connect(address: &RedisAddress) -> Result<Connection, RedisError> {
    let mut who = RedisConnectionInfo::default();
    if let Some(user) = &address.user {
        who = who.set_username(user);
    }
    if let Some(password) = &address.password {
        who = who.set_password(password);
    }
    let place = ConnectionAddr::Tcp(address.host.clone(), address.port).into_connection_info()?;
    let client = Client::open(place.set_redis_settings(who))?;
    let mut connection = client.get_connection_with_timeout(ANSWER_PATIENCE)?;
    connection.set_read_timeout(Some(ANSWER_PATIENCE))?;
    connection.set_write_timeout(Some(ANSWER_PATIENCE))?;
    // A server that wants a password lets in whoever has none, and refuses each command.
    redis::cmd("PING").exec(&mut connection)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_without_secrets_and_shown_without_them() {
        let mut address: RedisAddress = "redis://kv@cache.example".parse().unwrap();
        assert_eq!((address.host.as_str(), address.port), ("cache.example", 6379));
        let of_ipv6: RedisAddress = "redis://[::1]:7".parse().unwrap();
        assert_eq!(
            (of_ipv6.host.as_str(), of_ipv6.port, of_ipv6.to_string().as_str()),
            ("::1", 7, "redis://[::1]:7")
        );
        let refused = Redis::attach("redis://[::1]:1".parse().unwrap(), String::new()).unwrap_err();
        assert!(refused.is_io_error() && !refused.to_string().contains("lookup"), "{refused}");
        address.password = Some("hunter2".to_owned());
        assert_eq!(format!("{address} {address:?}"), "redis://cache.example:6379 redis://cache.example:6379");
    }

    #[test]
    fn an_address_that_lmcache_cannot_use_or_that_would_leak_is_refused_without_repeating_it() {
        let refused = |text: &str| {
            let error = text.parse::<RedisAddress>().unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
            error
        };
        assert_eq!(refused("rediss://cache.example"), RedisUrlError::Tls);
        assert_eq!(refused("redis://kv:hunter2@cache.example"), RedisUrlError::Password);
        assert_eq!(refused("redis://cache.example/7"), RedisUrlError::Database);
        assert_eq!(refused("unix:///run/hunter2"), RedisUrlError::Malformed);
        assert_eq!(refused("hunter2"), RedisUrlError::Malformed);
    }
}
