//! kv-correctness: a reproducible differential test of LMCache under vLLM.
//!
//! Read [`pipeline`] first. Modules use one another in one direction only, from [`model`] upwards to [`cli`]; `tests/layers.rs`
//! holds this.

pub mod assets;
pub mod atlas;
pub mod bisect;
pub mod cache;
pub mod carrier;
mod certificates;
pub mod cli;
pub mod comparison;
pub mod dataset;
pub mod depot;
pub mod digest;
pub mod engine;
pub mod event;
pub mod exit_code;
pub mod fault;
pub mod fetch;
mod files;
pub mod fleet;
pub mod foreign;
mod http;
pub mod job;
pub mod lock;
pub mod machine;
pub mod model;
pub mod options;
pub mod pipeline;
pub mod pressure;
pub mod progress;
pub mod report;
pub mod stage;
pub mod stage_name;
pub mod stats;
pub mod store;
pub mod suite;
pub mod thread;
pub mod turns;
