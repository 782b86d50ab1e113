//! What can go wrong with a process that the driver owns. Main type: [`EngineError`].

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
    #[error("keep {what} running: it ended ({status}){}", quote(said.as_deref()))]
    Died {
        /// Which process.
        what: String,
        /// How it ended.
        status: ExitStatus,
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

impl EngineError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Spawn { .. } => Some(
                "can the cache folder be written, and was this program moved since it started?".to_owned(),
            ),
            Self::Worker { .. } => Some("is the cache folder writable, and the disk not full?".to_owned()),
            Self::Died { status, log, .. } => {
                use std::os::unix::process::ExitStatusExt;
                let killed = status.signal() == Some(9) || status.code() == Some(137);
                let cause =
                    if killed { "SIGKILL is usually the kernel out of memory: see `dmesg`; " } else { "" };
                Some(format!("{cause}its log is {log}"))
            }
            Self::Silent { log, .. } => Some(format!(
                "its log is {log}; a slow machine may need larger values under `[patience]` in the suite"
            )),
            Self::Failed { message, log, .. } if message.to_lowercase().contains("out of memory") => {
                Some(format!(
                    "close what else uses that memory, or lower `engine.kv_cache_gib` or `engine.max_model_len` in the \
                 suite; its log is {log}"
                ))
            }
            Self::Gone { log, .. } => Some(format!(
                "LMCache may wait for it for ever, so the run was ended; was it killed, as for memory (`dmesg` tells)? its log \
                 is {log}"
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
    fn what_mends_a_lack_of_memory_is_said_with_the_place_of_the_log() {
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

        hint: close what else uses that memory, or lower `engine.kv_cache_gib` or `engine.max_model_len` in the suite; its log is notes/engine.log
        ");
        insta::assert_snapshot!(failed("Model architectures ['NoSuchModel'] are not supported for now."), @r"
        failed to run the baseline engine of tiny: Model architectures ['NoSuchModel'] are not supported for now.

        hint: its log is notes/engine.log
        ");
    }
}
