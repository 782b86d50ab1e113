//! What can go wrong with a process that the driver owns. Main type: [`EngineError`].

use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use camino::Utf8PathBuf;

/// Why an engine or a server did not do its work. None of these is a verdict.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The process could not be started at all.
    #[error("start `{command}`")]
    Spawn {
        /// Program and arguments.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The worker's package could not be written into the cache.
    #[error("write the engine's worker to {path}")]
    Worker {
        /// Its folder.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process ended before its work was done.
    #[error("keep {what} running: it ended ({end}){}", quote(said.as_deref()))]
    Died {
        /// Which process.
        what: String,
        /// How it ended.
        end: ProcessEnd,
        /// The telling line of its log.
        said: Option<String>,
        /// Its log.
        log: Utf8PathBuf,
    },
    /// The process went silent.
    #[error("get an answer from {what} within {} s{}", patience.as_secs(), quote(said.as_deref()))]
    Silent {
        /// Which process.
        what: String,
        /// How long it was waited for.
        patience: Duration,
        /// The telling line of its log.
        said: Option<String>,
        /// Its log.
        log: Utf8PathBuf,
        /// Whether it may have waited for an LMCache server.
        asks_server: bool,
    },
    /// The worker said that it failed.
    #[error("run {what}: {message}")]
    Failed {
        /// Which process, and the question if one is to blame.
        what: String,
        /// The worker's words.
        message: String,
        /// Its log.
        log: Utf8PathBuf,
    },
    /// An answer came that cannot be compared: log-probabilities are missing, or no numbers.
    #[error("run {what}: {message}")]
    NoNumbers {
        /// Which process, and the question.
        what: String,
        /// The worker's words.
        message: String,
        /// Its log.
        log: Utf8PathBuf,
    },
    /// A line that is no reply, or a reply out of turn.
    #[error("understand {what}: {problem}")]
    Garbled {
        /// Which process.
        what: String,
        /// What is wrong with the line.
        problem: String,
        /// Its log.
        log: Utf8PathBuf,
    },
    /// What the load pass is served from is not there any more.
    #[error("keep {what} until the load pass is over: {problem}")]
    Gone {
        /// The server, with its address.
        what: String,
        /// What is wrong.
        problem: String,
        /// Its log, or that of who asks it.
        log: Utf8PathBuf,
    },
    /// A second tier took no more of what was stored.
    #[error(
        "wait until LMCache's second tier ({tier}) has all that was stored: {behind} of {written} objects arrived, and no more \
         within {} s",
        patience.as_secs()
    )]
    Stopped {
        /// LMCache's name of it.
        tier: &'static str,
        /// Objects that have arrived since the server's start.
        behind: u64,
        /// Objects that are in the memory before it.
        written: u64,
        /// How long none arrived.
        patience: Duration,
        /// The server's log.
        log: Utf8PathBuf,
    },
    /// A server's answer could not be had or read.
    #[error("ask {url}: {problem}")]
    Http {
        /// The address.
        url: String,
        /// What is wrong.
        problem: String,
        /// The server's log.
        log: Utf8PathBuf,
    },
}

/// What vLLM's CPU build says once its warning that a library is missing has passed.
const NO_OPERATORS: &str = "no attribute 'init_cpu_memory_env'";
/// What mends a lack of memory.
const LESS_MEMORY: &str = "close what else uses that memory, or lower `engine.kv_cache_gib`, `engine.max_model_len` or \
                           `lmcache.memory_gib` in the suite";

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEnd {
    /// By itself, with this status.
    Status(i32),
    /// By a signal.
    Signal(i32),
    /// By the kernel, which had no memory left.
    OutOfMemory,
}

impl ProcessEnd {
    /// A guard tells its command's signal as shells do. `memory_ran_out`: the kernel has ended some process for it.
    pub(super) fn new(status: ExitStatus, memory_ran_out: bool) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let told = status.code().filter(|code| (129..=192).contains(code)).map(|code| code - 128);
        let signal = status.signal().or(told);
        match signal {
            Some(9) if memory_ran_out => Self::OutOfMemory,
            Some(signal) => Self::Signal(signal),
            None => Self::Status(status.code().unwrap_or_default()),
        }
    }
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(formatter, "exit status: {status}"),
            Self::Signal(9) => formatter.write_str("killed, signal 9"),
            Self::Signal(signal) => write!(formatter, "signal {signal}"),
            Self::OutOfMemory => formatter.write_str("killed, signal 9, as the kernel ran out of memory"),
        }
    }
}

impl EngineError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Spawn { source, .. }
                if [io::ErrorKind::WouldBlock, io::ErrorKind::OutOfMemory].contains(&source.kind()) =>
            {
                Some(
                    "raise the limit on processes (`ulimit -u`, a container's `pids` limit), or free memory"
                        .to_owned(),
                )
            }
            Self::Spawn { .. } => Some(
                "can the cache folder be written, and was this program moved since it started?".to_owned(),
            ),
            Self::Worker { .. } => Some("is the cache folder writable, and the disk not full?".to_owned()),
            Self::Died { end: ProcessEnd::OutOfMemory, log, .. } => {
                Some(format!("{LESS_MEMORY}; its log is {log}"))
            }
            Self::Died { end: ProcessEnd::Signal(9), log, .. } => Some(format!(
                "somebody ended it, or the kernel for lack of memory (`dmesg` tells); what is finished is kept, and the \
                 same command goes on from there; its log is {log}"
            )),
            Self::Died { log, .. } => Some(format!("its log is {log}")),
            Self::Silent { log, asks_server, .. } => {
                let server =
                    if *asks_server { ", that of the LMCache server it asks lies beside it" } else { "" };
                Some(format!(
                    "its log is {log}{server}; a slow machine may need larger values under `[patience]` in the suite"
                ))
            }
            Self::Gone { log, .. } => Some(format!(
                "what loads from it may wait for ever, so the run was ended; was it killed, as for memory (`dmesg` tells)? its log \
                 is {log}"
            )),
            Self::Stopped { log, .. } => Some(format!(
                "is there room in it? a slow one may need a larger `patience.change_seconds` in the suite; its log is {log}"
            )),
            Self::Failed { message, log, .. } if message.to_lowercase().contains("out of memory") => {
                Some(format!("{LESS_MEMORY}; its log is {log}"))
            }
            Self::Failed { message, log, .. }
                if message.contains("must be a multiple of tokens_per_block") =>
            {
                Some(format!(
                    "a window smaller than a chunk must be whole blocks: name another `block_size` under `[engine.arguments]`, \
                     or leave `hybrid_kv_cache_manager` out; its log is {log}"
                ))
            }
            Self::Failed { message, log, .. } if message.contains("multiple KV transfer groups") => {
                Some(format!(
                    "write `transfer_mode = \"lmcache_driven\"` under `[lmcache.options]`, or leave `hybrid_kv_cache_manager` out; its \
                 log is {log}"
                ))
            }
            Self::Failed { message, log, .. } if message.contains("requires a contiguous tensor") => {
                Some(format!(
                    "layers whose state does not fill its page cannot be stored by LMCache 0.5.6: leave this model out of routes over \
                 its server; its log is {log}"
                ))
            }
            Self::Failed { message, log, .. } if message.contains(NO_OPERATORS) => Some(format!(
                "vLLM's compiled operators could not be loaded: is libnuma.so.1 there (`apt-get install libnuma1`)? its log is {log}"
            )),
            Self::NoNumbers { log, .. } => Some(format!(
                "damaged KV, a broken kernel or broken weights do that: if an engine without a cache answered this question, suspect the cache; its log is {log}"
            )),
            Self::Failed { log, .. } | Self::Garbled { log, .. } | Self::Http { log, .. } => {
                Some(format!("its log is {log}"))
            }
        }
    }
}

/// What a process said, as a remark behind a message.
pub(super) fn quote(line: Option<&str>) -> String {
    line.map_or_else(String::new, |line| format!("; it said: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_apart_from_a_status_and_from_a_lack_of_memory() {
        use std::os::unix::process::ExitStatusExt;
        let end =
            |raw, memory_ran_out| ProcessEnd::new(ExitStatus::from_raw(raw), memory_ran_out).to_string();
        assert_eq!(end(9, false), "killed, signal 9");
        assert_eq!(end(137 << 8, false), "killed, signal 9");
        assert_eq!(end(137 << 8, true), "killed, signal 9, as the kernel ran out of memory");
        assert_eq!(end(134 << 8, true), "signal 6");
        assert_eq!(end(3 << 8, true), "exit status: 3");
        assert_eq!(end(255 << 8, false), "exit status: 255");
    }

    #[test]
    fn what_mends_a_lack_of_memory_or_of_a_library_is_said_with_the_place_of_the_log() {
        let failed = |message: &str| {
            let error = EngineError::Failed {
                what: "the baseline engine of tiny".to_owned(),
                message: message.to_owned(),
                log: "notes/engine.log".into(),
            };
            format!("failed to {error}\n\nhint: {}", error.hint().unwrap())
        };
        insta::assert_snapshot!(failed("CUDA out of memory. Tried to allocate 2.00 GiB."), @r"
        failed to run the baseline engine of tiny: CUDA out of memory. Tried to allocate 2.00 GiB.

        hint: close what else uses that memory, or lower `engine.kv_cache_gib`, `engine.max_model_len` or `lmcache.memory_gib` in the suite; its log is notes/engine.log
        ");
        insta::assert_snapshot!(failed("Model architectures ['NoSuchModel'] are not supported for now."), @r"
        failed to run the baseline engine of tiny: Model architectures ['NoSuchModel'] are not supported for now.

        hint: its log is notes/engine.log
        ");
        insta::assert_snapshot!(failed("'_OpNamespace' '_C' object has no attribute 'init_cpu_memory_env'"), @r"
        failed to run the baseline engine of tiny: '_OpNamespace' '_C' object has no attribute 'init_cpu_memory_env'

        hint: vLLM's compiled operators could not be loaded: is libnuma.so.1 there (`apt-get install libnuma1`)? its log is notes/engine.log
        ");
    }
}
