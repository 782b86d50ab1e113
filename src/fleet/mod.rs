//! A run in units that executors of others start: cells and shards as data, and what each executor reads.
//!
//! Owns what units there are, what each waits for, and the forms; leaves starting them to Buildkite, GitHub Actions, Kubernetes
//! or Nix, and what passes between them to the depot. Pure. Main type: [`FleetPlan`].

mod buildkite;
mod github;
mod kubernetes;
mod nix;
#[cfg(test)]
mod tests;
mod unit;

pub use buildkite::to_buildkite;
pub use github::to_github;
pub use kubernetes::{Kubernetes, to_kubernetes};
pub use nix::to_nix;
pub use unit::{FleetPlan, Kind, Unit, Wishes};
