//! kv-correctness: a reproducible differential test of LMCache under vLLM.

pub mod dataset;
pub mod digest;
pub mod engine;
pub mod event;
pub mod lock;
pub mod stage_name;
pub mod store;
