//! Engines: everything that runs vLLM and LMCache, and what comes back from them.

mod observation;

pub use observation::{Observation, Step, TokenLogprob};
