//! Finds the first bad revision of a line of history, and the least input that still shows a fault. Pure: what a step
//! says is asked of the caller, and the caller keeps the log on disk.
//!
//! Main types: [`Search`], [`Log`]; main functions: [`minimise`], [`shortest`].

mod log;
mod minimise;
mod search;

pub use log::{Entry, Header, Log, LogError, StepResult};
pub use minimise::{minimise, shortest};
pub use search::{Mark, Next, Search};
