//! How KV was stored that readers of another identity ask for. Main type: [`Stored`].

use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::KvDtype;

/// Who stored, and where it lies. By default the suite's engine, in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Stored {
    /// By whom.
    pub by: Storer,
    /// Which way readers get at it.
    pub over: Way,
}

/// Who stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "who", rename_all = "snake_case")]
pub enum Storer {
    /// The suite's engine as it is.
    #[default]
    Suite,
    /// The same, asked with a LoRA adapter.
    Adapter,
    /// The same, with KV in this data type.
    KvDataType {
        /// Which.
        dtype: KvDtype,
    },
    /// The same, asked with embeddings instead of tokens.
    Embeddings,
}

/// Which way readers get at what was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Each by a server of its own, over a copy of the folder behind the writer's.
    #[default]
    Tier,
    /// All by the server that stored, out of its memory.
    Memory,
    /// The same, where LMCache copies out of the engine's memory and into it (`lmcache_driven`).
    DrivenMemory,
    /// By the LMCache in the process of the engine that stored, out of its memory: who asks is that engine.
    Process,
    /// By an LMCache in the process of another engine, over a copy of the folder that the writer's had for a remote store.
    ProcessFiles,
}

impl Way {
    /// Whether LMCache is in an engine's process, and no server.
    #[must_use]
    pub fn is_in_process(self) -> bool {
        matches!(self, Self::Process | Self::ProcessFiles)
    }

    /// By what a request sets itself apart from others there: a server's keys hold the salt, those of an LMCache in process the tags.
    pub(super) fn mend(self) -> &'static str {
        if self.is_in_process() { "tag" } else { "salt" }
    }
}

impl Stored {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// For tables, behind what a reader differs in: `, stored with a LoRA adapter, over mp`; empty for the default.
    #[must_use]
    pub fn words(self) -> String {
        let mut words = String::new();
        match self.by {
            Storer::Suite => {}
            Storer::Adapter => words.push_str(", stored with a LoRA adapter"),
            Storer::KvDataType { dtype } => {
                write!(words, ", stored as {}", dtype.name()).expect("a string can be written to");
            }
            Storer::Embeddings => words.push_str(", stored of embeddings"),
        }
        words.push_str(match self.over {
            Way::Tier => "",
            Way::Memory => ", over mp",
            Way::DrivenMemory => ", over mp, lmcache_driven",
            Way::Process => ", in process",
            Way::ProcessFiles => ", in process, over files",
        });
        words
    }

    /// The same inside a sentence, behind "KV": `, stored with a LoRA adapter,`.
    pub(super) fn clause(self) -> String {
        let words = self.words();
        if words.is_empty() { words } else { format!("{words},") }
    }
}
