//! What requests under pressure are asked and what they showed. Main types: [`PlannedRequest`], [`PressedRequest`].
//!
//! Time is told in steps: how often an engine's scheduler has chosen what to compute, since its start. Nothing here is judged;
//! see `pressure`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One request of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRequest {
    /// Its prompt.
    pub token_ids: Vec<u32>,
    /// How many requests of the schedule must have ended before it is asked.
    pub after: u32,
    /// Tokens that are generated for it.
    pub answer_tokens: u32,
    /// When it is broken off, if such a time comes.
    pub cut_off: Option<CutOff>,
}

/// What a request is at when it is broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutOff {
    /// The last step completed a piece of its prompt that is stored.
    Storing,
    /// Its KV is being loaded.
    Loading,
}

/// One time that a request was taken up, or taken up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// The step in which its lookup was answered.
    pub looked_up: u64,
    /// The step that computed for it first.
    pub step: u64,
    /// Tokens whose KV it did not compute.
    pub served: u32,
    /// Those of them that the connector loaded; the others came from vLLM's own prefix cache.
    pub external: u32,
}

/// What one request of a schedule showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PressedRequest {
    /// Its number in the schedule.
    pub question: u32,
    /// Each time that it was taken up.
    pub admissions: Vec<Admission>,
    /// Steps, each with the tokens whose KV was there behind it.
    pub complete: Vec<(u64, u32)>,
    /// How often it lost its blocks.
    pub preemptions: u32,
    /// Why it was broken off, if it was.
    pub aborted: Option<CutOff>,
    /// The tokens that were generated.
    pub answer: Vec<u32>,
}

/// What happened while a schedule was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PressureEvents {
    /// Steps of the scheduler.
    pub steps: u64,
    /// How often a request lost its blocks to others.
    pub preemptions: u64,
    /// How often a connector was asked to load.
    pub loads: u64,
    /// How often a request that had lost its blocks was taken up again with KV that a connector loaded.
    pub resumed_loads: u64,
    /// Loads that brought less than was promised, so that it was computed.
    pub failed_loads: u64,
    /// Requests that were broken off right behind a step that completed a piece of them, which is stored.
    pub aborted_storing: u64,
    /// Requests that were broken off while their KV was loaded.
    pub aborted_loading: u64,
    /// Steps in which a piece of one request was completed while another one's KV was loaded.
    pub overlaps: u64,
    /// Whether loads go on between steps, so that a request can be broken off within one.
    pub asynchronous_loads: bool,
}

impl PressureEvents {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            steps: self.steps + other.steps,
            preemptions: self.preemptions + other.preemptions,
            loads: self.loads + other.loads,
            resumed_loads: self.resumed_loads + other.resumed_loads,
            failed_loads: self.failed_loads + other.failed_loads,
            aborted_storing: self.aborted_storing + other.aborted_storing,
            aborted_loading: self.aborted_loading + other.aborted_loading,
            overlaps: self.overlaps + other.overlaps,
            asynchronous_loads: self.asynchronous_loads || other.asynchronous_loads,
        }
    }
}
