//! Jobs: the graph that a run is, and what finds or makes each one's artifact.
//!
//! A [`Job`] is a stage with its parameters, a label for people and the jobs whose artifacts it is made from. Its key is the
//! parameters and the digests of these artifacts; its making sees the same and nothing else that could change an
//! output. Owns order, keys and re-use; leaves which jobs there are to `pipeline`. Main types: [`Graph`], [`Executor`].

mod executor;
mod graph;
mod work;

pub use executor::{Ended, Executor, Failure, Whereabouts};
pub use graph::{Graph, Job, JobId};
pub use work::Work;
