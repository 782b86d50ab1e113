//! Why something could not be fetched. Main type: [`FetchError`].

use std::io;

use camino::Utf8PathBuf;

use super::{ArchivePin, ModelPin};
use crate::digest::Digest;
use crate::engine::environment::EnvironmentError;
use crate::lock::LockError;
use crate::suite::nearest;

/// Why something could not be fetched; completes "failed to …". No message holds a token.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nothing of that name is pinned.
    #[error("find {name:?} among what is pinned: {}", pinned.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        pinned: Vec<String>,
    },
    /// The hub wants to know who asks, or does not let them.
    #[error("fetch {address}: it may not be read {} (status {status})", if *with_token { "with this HF_TOKEN" } else { "without HF_TOKEN" })]
    Refused {
        /// What was asked for.
        address: String,
        /// 401 or 403.
        status: u16,
        /// Whether `HF_TOKEN` was sent.
        with_token: bool,
        /// Where the licence is accepted.
        licence_page: String,
    },
    /// There is no such file.
    #[error("fetch {address}: there is no such file (status {status})")]
    NotFound {
        /// What was asked for.
        address: String,
        /// 404 or 410.
        status: u16,
    },
    /// An answer that no retry helps against.
    #[error("fetch {address}: {problem}")]
    Unexpected {
        /// What was asked for.
        address: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The server asks for patience, again or for too long.
    #[error("fetch {address}: the server still asks to wait after {tries} tries (status 429)")]
    RateLimited {
        /// What was asked for.
        address: String,
        /// How often it was tried.
        tries: u32,
    },
    /// No connection, or none that lasts.
    #[error("fetch {address} in {tries} tries: {problem}")]
    Unreachable {
        /// What was asked for.
        address: String,
        /// How often it was tried without getting on.
        tries: u32,
        /// What went wrong the last time.
        problem: String,
    },
    /// Something between here and the server is not who it says.
    #[error("trust {address}: {problem}")]
    Certificate {
        /// What was asked for.
        address: String,
        /// In the TLS library's words.
        problem: String,
    },
    /// Other content than what is pinned.
    #[error("verify {address}: its SHA-256 is {found}, and {expected} is pinned")]
    WrongDigest {
        /// Where it came from.
        address: String,
        /// The pinned digest.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// Other content than what is pinned.
    #[error("verify {address}: it has {found} bytes, and {expected} are pinned")]
    WrongSize {
        /// Where it came from.
        address: String,
        /// The pinned size.
        expected: u64,
        /// The size that the server tells.
        found: u64,
    },
    /// The disk is too full.
    #[error("fetch into {folder}: it takes {:.2} GB and the disk has {:.2} GB left", gigabytes(*needed), gigabytes(*free))]
    DiskSpace {
        /// The folder.
        folder: Utf8PathBuf,
        /// Bytes that are still to come.
        needed: u64,
        /// Bytes that are left.
        free: u64,
    },
    /// A suite needs what has not been fetched.
    #[error("find what suite {suite} needs: {} not been fetched", list(missing))]
    NotFetched {
        /// The suite, as it was named.
        suite: String,
        /// Models and datasets.
        missing: Vec<String>,
    },
    /// A suite spreads a model over more GPUs than there are.
    #[error("place {model} on {wanted} GPUs: this machine has {found}")]
    TooFewGpus {
        /// The model.
        model: String,
        /// Its ranks.
        wanted: u32,
        /// GPUs of this machine.
        found: usize,
    },
    /// The conversion did not end well.
    #[error("convert {file}: {problem}; its output is in {log}")]
    Convert {
        /// The file that was to be converted.
        file: Utf8PathBuf,
        /// How it ended.
        problem: String,
        /// What it said.
        log: Utf8PathBuf,
    },
    /// A converted or packaged file is not what it was when it was pinned.
    #[error("verify {file}: its SHA-256 is not {expected}, which is pinned")]
    Changed {
        /// The file.
        file: Utf8PathBuf,
        /// The pinned digest.
        expected: Digest,
    },
    /// A setting cannot be used.
    #[error("use {variable}: {problem}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The environment that converts.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// Another process fetches.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file could not be read or written; the source names it.
    #[error("keep what was fetched in {path}: {source}")]
    Io {
        /// The file.
        path: Utf8PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl FetchError {
    /// For a name that is not pinned.
    #[must_use]
    pub fn unknown(name: &str) -> Self {
        let models = ModelPin::all().iter().map(|pin| pin.name.clone());
        let pinned = models.chain(ArchivePin::all().iter().map(|pin| pin.name.clone())).collect();
        Self::Unknown { name: name.to_owned(), pinned }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let again = "what was fetched is kept, and the same command goes on from there";
        Some(match self {
            Self::Unknown { name, pinned } => match nearest(name, pinned) {
                Some(near) => format!("did you mean {near}?"),
                None => "only what is pinned is fetched; a suite may also name a model's folder by its path".to_owned(),
            },
            Self::Refused { with_token, licence_page, .. } => {
                let token = if *with_token {
                    "make sure that HF_TOKEN belongs to that account and may read gated repositories"
                } else {
                    "set HF_TOKEN to a token of that account"
                };
                format!("accept the licence at {licence_page}, and {token}")
            }
            Self::NotFound { .. } => {
                "is HF_ENDPOINT a mirror that lacks this repository or revision? Leave it unset to ask the hub itself"
                    .to_owned()
            }
            Self::Unexpected { .. } => "a proxy or mirror may be in between: see HTTPS_PROXY and HF_ENDPOINT".to_owned(),
            Self::RateLimited { .. } => format!("wait some minutes, or set HF_TOKEN, which raises the limit; {again}"),
            Self::Unreachable { .. } => format!(
                "check the network; HTTPS_PROXY names a proxy and HF_ENDPOINT a mirror; {again}"
            ),
            Self::Certificate { .. } => {
                "a proxy or mirror of your own? Name its certificate authority, a PEM file, with SSL_CERT_FILE".to_owned()
            }
            Self::WrongDigest { .. } | Self::WrongSize { .. } => {
                "nothing of it is kept; a mirror (HF_ENDPOINT) or proxy (HTTPS_PROXY) may serve other content than the hub".to_owned()
            }
            Self::DiskSpace { .. } => "free some space, or name a folder on another disk with --cache DIR".to_owned(),
            Self::NotFetched { suite, .. } => format!("run `kv-correctness fetch --suite {suite}` first"),
            Self::TooFewGpus { .. } => {
                "run it on a machine with more GPUs, or with a suite of your own that has a smaller `tensor_parallel_size`".to_owned()
            }
            Self::Convert { log, .. } => format!("read {log}; about 2 GB of memory must be free"),
            Self::Changed { file, .. } => format!(
                "remove {} and try again; if it stays, another version of torch, transformers or tokenizers than the \
                 pinned ones converts differently: leave KV_CORRECTNESS_ENV unset",
                file.parent().unwrap_or(file)
            ),
            Self::Setting { variable, .. } => format!("correct {variable}, or leave it unset"),
            Self::Environment(error) => return error.hint(),
            Self::Lock(error) => return error.hint(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                format!("free some space, or name a folder on another disk with --cache DIR; {again}")
            }
            Self::Io { .. } => "check that the cache folder can be read and written, or name another with --cache DIR".to_owned(),
        })
    }
}

fn list(missing: &[String]) -> String {
    let verb = if missing.len() == 1 { "has" } else { "have" };
    format!("{} {verb}", missing.join(", "))
}

#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
pub(super) fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
