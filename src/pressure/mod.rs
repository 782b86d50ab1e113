//! An engine and its connector under pressure: what is asked of them, what they may serve, and what it means that they did.
//!
//! Owns schedules, bounds on what is served, and the verdict; leaves asking to `stage` and `engine`, and whether served KV is a copy of
//! computed KV to `comparison`. Pure. Main types: [`Schedule`], [`Bounds`], [`PressureFindings`].

mod bounds;
mod draws;
mod findings;
mod judge;
mod schedule;

pub use bounds::{Beyond, Bounds, Short};
pub use findings::{Demand, HitsApart, PressureEvent, PressureFindings, SeedFindings};
pub use schedule::{NoPrompts, Schedule, request_id};
