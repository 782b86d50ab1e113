//! Engines: everything that runs vLLM and LMCache, and what comes back from them.

pub mod environment;
mod observation;

pub use observation::{Observation, Step, TokenLogprob};
