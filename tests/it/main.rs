//! The whole program, run as its users run it: on a fake engine that fails on demand, and (ignored unless asked for)
//! on a real one.

#![cfg(test)]

mod endings;
mod faults;
mod keys;
mod lab;
mod real;
mod reports;
mod runs;
mod usage;
mod verdicts;
