//! The ways for KV to travel. Main type: [`Route`].

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A way for KV to travel from the store pass to the load pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Route {
    /// LMCache inside vLLM's process, in memory (`LMCacheConnectorV1`).
    #[serde(rename = "in-process")]
    InProcess,
    /// An `lmcache server` process, in its memory (`LMCacheMPConnector`).
    #[serde(rename = "mp")]
    Mp,
    /// From one `lmcache server` through a folder on disk to another.
    #[serde(rename = "mp+fs")]
    MpFs,
    /// From one `lmcache server` through a Redis server to another.
    #[serde(rename = "mp+redis")]
    MpRedis,
    /// From one `lmcache server` straight to another, its peer.
    #[serde(rename = "mp+p2p")]
    MpP2p,
}

impl Route {
    /// All routes.
    pub const ALL: [Self; 5] = [Self::InProcess, Self::Mp, Self::MpFs, Self::MpRedis, Self::MpP2p];

    /// The name on the command line, in suites and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in-process",
            Self::Mp => "mp",
            Self::MpFs => "mp+fs",
            Self::MpRedis => "mp+redis",
            Self::MpP2p => "mp+p2p",
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// A text that names no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a route (in-process, mp, mp+fs, mp+redis, mp+p2p)")]
pub struct NotARoute(pub String);

impl FromStr for Route {
    type Err = NotARoute;

    fn from_str(text: &str) -> Result<Self, NotARoute> {
        Self::ALL.into_iter().find(|route| route.name() == text).ok_or_else(|| NotARoute(text.to_owned()))
    }
}
