//! Rung 1: where the KV comes from that the engine reads. Main type: [`Provenance`].
//!
//! A *cell* is one chunk in one layer on one rank. Every cell that was served must equal a copy that an engine of the same
//! arm computed for the same token prefix and rank, whatever else was in the batch, and whichever request computed it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;

use super::as_baseline::AsBaseline;
use super::second_look::SecondLook;
use super::{Outcome, Pass};

/// Whether the cells that were served are copies of computed ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// What it amounts to. It holds whatever requests were computed together.
    pub outcome: Outcome,
    /// Cells that an engine computed.
    pub computed: u64,
    /// Computed cells that did not stay as they were until their request ended.
    pub changed: u64,
    /// Cells that a cache served, in all passes.
    pub served: u64,
    /// Those of them that were read by prefixes of stored prompts.
    #[serde(default)]
    pub served_to_cuts: u64,
    /// Served cells that are no copy where attention begins to read them.
    pub wrong_when_read: u64,
    /// Served cells that are no copy when their request ends.
    pub wrong_at_the_end: u64,
    /// Of all wrong ones, those that were wrong when read and right at the end: they came too late.
    pub late: u64,
    /// Served cells of a prefix that no engine computed before our eyes, so that there is nothing to hold them against.
    pub without_origin: u64,
    /// Served cells that have no digest, so that all of this proves nothing.
    pub not_digested: u64,
    /// Served chunks that are not held against anything: their prompt's last token is computed again, and the carrier need not
    /// have loaded it.
    pub left_out: u32,
    /// Tokens that were served and lie in no chunk that was held against anything: behind the last whole chunk of their
    /// prompt, or in one that is left out.
    #[serde(default)]
    pub uncovered_tokens: u64,
    /// Chunks that vLLM says were served, on each rank, and that have no digest.
    pub missing: u64,
    /// Layers that see a window, on each rank, of whose served cells none was whole within it, so that none was held.
    #[serde(default)]
    pub unheld_layers: u32,
    /// What this rung saw, or why it does not apply, in words.
    pub words: String,
    /// The first wrong cells, in the order of passes, questions and chunks.
    pub first: Vec<WrongCell>,
    /// All cells of the first requests with a wrong one.
    pub maps: Vec<CellMap>,
    /// Wrong cells that were looked at again.
    #[serde(default)]
    pub looks: Vec<SecondLook>,
    /// What the store pass computed against the baseline's KV, where both were seen.
    #[serde(default)]
    pub as_baseline: Option<AsBaseline>,
}

/// One wrong cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrongCell {
    /// Whose prompt.
    pub question: QuestionId,
    /// In which pass.
    pub pass: Pass,
    /// Which chunk of the prompt, from 0.
    pub chunk: u32,
    /// Which layer, by its name in vLLM.
    pub layer: String,
    /// How many tokens the layers of its group keep, where they do not keep all; 1 stands for a recurrent state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// On which rank.
    pub rank: u32,
    /// When it was wrong.
    pub when: WrongWhen,
    /// What the bytes are instead, where their digest tells.
    pub looks_like: Option<String>,
}

/// When a cell was seen to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WrongWhen {
    /// Served, and wrong when it was read and when the request ended.
    Throughout,
    /// Served, and wrong only when it was read: the right bytes came too late.
    WhenRead,
    /// Served, and wrong only when the request ended: something wrote over it.
    AtTheEnd,
    /// Computed, and not the same any more when the request ended: something wrote over it.
    SinceComputed,
}

/// The cells of one request on one rank: a row for each chunk, a letter for each layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CellMap {
    /// Whose prompt.
    pub question: QuestionId,
    /// In which pass.
    pub pass: Pass,
    /// On which rank.
    pub rank: u32,
    /// For each chunk, from 0, a letter for each layer: `.` right, `c` computed, `X` wrong throughout, `R` wrong only when
    /// read, `E` wrong only at the end, `?` without an origin, `-` not digested, `_` not kept since it lies before a window.
    pub chunks: Vec<String>,
}

impl Provenance {
    /// Of a comparison from before there was this rung, or whose engines digest nothing.
    #[must_use]
    pub fn not_observed() -> Self {
        Self::without_evidence("The KV itself was not observed.".to_owned())
    }

    /// Served cells that were wrong at any time.
    #[must_use]
    pub fn wrong_cells(&self) -> u64 {
        self.wrong_at_the_end + self.late
    }

    pub(super) fn without_evidence(words: String) -> Self {
        Self {
            outcome: Outcome::DoesNotApply,
            computed: 0,
            changed: 0,
            served: 0,
            served_to_cuts: 0,
            wrong_when_read: 0,
            wrong_at_the_end: 0,
            late: 0,
            without_origin: 0,
            not_digested: 0,
            left_out: 0,
            uncovered_tokens: 0,
            missing: 0,
            unheld_layers: 0,
            words,
            first: Vec::new(),
            maps: Vec::new(),
            looks: Vec::new(),
            as_baseline: None,
        }
    }
}
