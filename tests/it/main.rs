//! The whole program, run as its users run it: on a fake engine that fails on demand, and (ignored unless asked for)
//! on a real one.

#![cfg(test)]

mod atlas;
mod bisect;
mod connectors;
mod default_questions;
mod depot;
mod endings;
mod faults;
mod foreign;
mod forks;
mod hints;
mod hostile;
mod input;
mod keys;
mod lab;
mod obstacles;
mod patched_lmcache;
mod patience;
mod plan;
mod pressure;
mod real;
mod real_bench;
mod real_connectors;
mod real_control;
mod real_depots;
mod real_endurance;
mod real_identity;
mod real_pressure;
mod real_ranks;
mod reports;
mod reproduce;
mod routes;
mod runs;
mod shards;
mod slow;
mod turns;
mod usage;
mod verdicts;
