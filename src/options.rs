//! Options of LMCache that change what is stored. Main type: [`StoringOptions`]. Which route offers which is for `carrier` to
//! say.

use std::collections::BTreeMap;
use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::comparison::Fidelity;

/// What LMCache stores besides whole chunks of prompts, and in which form. The default is LMCache's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoringOptions {
    /// A prompt's rest behind its last whole chunk is stored, too.
    pub save_unfull_chunk: bool,
    /// KV of generated tokens is stored, too.
    pub save_decode_cache: bool,
    /// Each layer is stored and loaded by itself.
    pub layerwise: bool,
    /// What turns KV into the bytes of the tier behind a server's memory; LMCache's plain form where it is not said.
    pub serde: Option<Serde>,
    /// Who copies KV between an engine and an LMCache server; LMCache's own choice for the device where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer_mode: Option<TransferMode>,
}

/// LMCache's name of who copies KV between an engine and a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransferMode {
    /// The engine.
    EngineDriven,
    /// The server, which sees the engine's memory.
    LmcacheDriven,
}

impl TransferMode {
    /// LMCache's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EngineDriven => "engine_driven",
            Self::LmcacheDriven => "lmcache_driven",
        }
    }
}

/// LMCache's name of a form in which KV is kept outside a server's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Serde {
    /// Encrypted; the bytes come back as they were.
    Aesgcm,
    /// A byte an element: lossy.
    Fp8,
    /// Compressed with loss.
    Cachegen,
    /// A few bits an element: lossy.
    Turboquant,
}

impl Serde {
    /// LMCache's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aesgcm => "aesgcm",
            Self::Fp8 => "fp8",
            Self::Cachegen => "cachegen",
            Self::Turboquant => "turboquant",
        }
    }

    /// Whether KV comes back as it was.
    #[must_use]
    pub fn fidelity(self) -> Fidelity {
        match self {
            Self::Aesgcm => Fidelity::Exact,
            Self::Fp8 | Self::Cachegen | Self::Turboquant => Fidelity::Lossy,
        }
    }

    /// What its loss is, where that is declared: torch's name of the data type that each element goes through. By the source of
    /// LMCache 0.5.6 `fp8` is a plain cast to it and back, without a scale.
    #[must_use]
    pub fn stored_as(self) -> Option<&'static str> {
        match self {
            Self::Fp8 => Some("float8_e4m3fn"),
            Self::Aesgcm | Self::Cachegen | Self::Turboquant => None,
        }
    }
}

/// An option that a route does not offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOffered {
    /// Its name in the suite.
    pub option: &'static str,
    /// Why not.
    pub reason: &'static str,
}

impl StoringOptions {
    /// Whether KV comes back as it was stored.
    #[must_use]
    pub fn fidelity(self) -> Fidelity {
        self.serde.map_or(Fidelity::Exact, Serde::fidelity)
    }

    /// The first one that is set, by its name in a suite.
    #[must_use]
    pub fn first_set(self) -> Option<&'static str> {
        let all = [
            ("save_unfull_chunk", self.save_unfull_chunk),
            ("save_decode_cache", self.save_decode_cache),
            ("layerwise", self.layerwise),
            ("serde", self.serde.is_some()),
            ("transfer_mode", self.transfer_mode.is_some()),
        ];
        all.into_iter().find_map(|(name, set)| set.then_some(name))
    }

    /// The data type that a lossy form of storage puts each element through, where it is known.
    #[must_use]
    pub fn stored_as(self) -> Option<&'static str> {
        self.serde.and_then(Serde::stored_as)
    }

    /// What an engine tells its connector to an LMCache server.
    #[must_use]
    pub fn connector_settings(self) -> BTreeMap<String, Value> {
        let decoded =
            self.save_decode_cache.then(|| ("lmcache.mp.save_decode_cache".to_owned(), true.into()));
        let mode =
            self.transfer_mode.map(|mode| ("lmcache.mp.mp_transfer_mode".to_owned(), mode.name().into()));
        decoded.into_iter().chain(mode).collect()
    }

    /// The variables of an LMCache in the engine's own process.
    #[must_use]
    pub fn variables(self) -> [(&'static str, String); 3] {
        let set = |option: bool| if option { "True" } else { "False" }.to_owned();
        [
            ("LMCACHE_SAVE_UNFULL_CHUNK", set(self.save_unfull_chunk)),
            ("LMCACHE_SAVE_DECODE_CACHE", set(self.save_decode_cache)),
            ("LMCACHE_USE_LAYERWISE", set(self.layerwise)),
        ]
    }

    /// What differs from LMCache's defaults, for people; empty if nothing does.
    #[must_use]
    pub fn words(self) -> String {
        let mut words = String::new();
        let flags = [
            ("save_unfull_chunk", self.save_unfull_chunk),
            ("save_decode_cache", self.save_decode_cache),
            ("layerwise", self.layerwise),
        ];
        for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
            words.push_str(if words.is_empty() { "" } else { ", " });
            words.push_str(name);
        }
        if let Some(serde) = self.serde {
            let separator = if words.is_empty() { "" } else { ", " };
            let loss = if serde.fidelity() == Fidelity::Lossy { " (lossy)" } else { "" };
            write!(words, "{separator}serde {}{loss}", serde.name()).expect("a string can be written to");
        }
        if let Some(mode) = self.transfer_mode {
            let separator = if words.is_empty() { "" } else { ", " };
            write!(words, "{separator}transfer {}", mode.name()).expect("a string can be written to");
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_where_they_differ_from_lmcaches_own() {
        assert_eq!(StoringOptions::default().words(), "");
        let both = StoringOptions { save_decode_cache: true, serde: Some(Serde::Fp8), ..Default::default() };
        assert_eq!(both.words(), "save_decode_cache, serde fp8 (lossy)");
        let driven =
            StoringOptions { transfer_mode: Some(TransferMode::LmcacheDriven), ..Default::default() };
        assert_eq!(driven.words(), "transfer lmcache_driven");
        assert_eq!(driven.connector_settings()["lmcache.mp.mp_transfer_mode"], "lmcache_driven");
    }
}
