//! kv-correctness: a reproducible differential test of LMCache under vLLM.
//!
//! Read [`pipeline`] first. Dependencies point one way: `digest ← store ← stage ← pipeline ← cli`; `dataset`, `engine`,
//! `stats` and `comparison` know nothing of stages, store or command line.

pub mod assets;
pub mod bisect;
pub mod cli;
pub mod comparison;
pub mod dataset;
pub mod digest;
pub mod engine;
pub mod event;
pub mod exit_code;
pub mod fault;
pub mod fetch;
pub mod foreign;
pub mod lock;
pub mod options;
pub mod pipeline;
pub mod progress;
pub mod report;
pub mod stage;
pub mod stage_name;
pub mod stats;
pub mod store;
pub mod suite;
pub mod thread;
