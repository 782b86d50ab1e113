//! What a run leaves behind: the [`Report`], and texts made of it. Pure: values in, values out.
//!
//! `report.json` is a [`Report`]; `docs/artifact-format.md` describes its fields.

mod differing;
mod document;
mod faults;
mod standalone;
mod text;

pub use differing::differing_questions;
pub use document::{Finding, PlantedFaults, Report, SCHEMA};
pub use faults::{describe_catalogue, tabulate_faults};
pub use standalone::{Case, CasePrompt, write_script};
pub use text::summarise;
