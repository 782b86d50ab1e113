//! What a run leaves behind: the [`Report`], and documents made of it. Pure: values in, values out.
//!
//! `report.json` is a [`Report`]; `docs/artifact-format.md` describes its fields and [`json_schema`] its form. Every other
//! format is a function of that value: [`summarise`] for a terminal, [`to_html`], [`to_junit`], [`to_markdown`], and
//! [`to_lmcache_jsonl`] for LMCache's own summary scripts.

mod differing;
mod document;
mod faults;
#[cfg(test)]
pub(crate) mod fixture;
mod foreign;
mod html;
mod junit;
mod ladder;
mod lmcache_jsonl;
mod markdown;
mod matrix;
mod pressure;
mod schema;
mod section;
mod standalone;
mod text;
mod words;

pub use differing::differing_questions;
pub use document::{
    Finding, ForeignKv, Known, NotRun, OLDEST_SCHEMA, PlantedFaults, Report, SCHEMA, Talk, UnderPressure,
};
pub use faults::{describe_catalogue, tabulate_faults};
pub use html::to_html;
pub use junit::to_junit;
pub use lmcache_jsonl::{JsonlError, to_lmcache_jsonl};
pub use markdown::{PAGE_LIMIT, to_markdown};
pub use schema::json_schema;
pub use standalone::{Case, CasePrompt, write_script};
pub use text::summarise;
