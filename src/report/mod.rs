//! What a run leaves behind: the [`Report`], and texts made of it. Pure: values in, values out.
//!
//! `report.json` is a [`Report`]; `docs/artifact-format.md` describes its fields.

mod document;
mod faults;
mod matrix;
mod text;

pub use document::{Finding, NotRun, PlantedFaults, Report, SCHEMA};
pub use faults::{describe_catalogue, tabulate_faults};
pub use text::summarise;
