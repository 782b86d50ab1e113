//! kv-correctness: a reproducible differential test of LMCache under vLLM.

pub mod comparison;
pub mod dataset;
pub mod engine;
pub mod stats;
