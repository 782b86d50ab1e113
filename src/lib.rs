//! kv-correctness: a reproducible differential test of LMCache under vLLM.

pub mod comparison;
pub mod dataset;
pub mod digest;
pub mod engine;
<<<<<<< HEAD
pub mod event;
pub mod lock;
pub mod stage_name;
pub mod store;
=======
pub mod stats;
>>>>>>> stats
