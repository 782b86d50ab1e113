//! What a run leaves behind: the [`Report`], and texts made of it. Pure: values in, values out.
//!
//! `report.json` is a [`Report`]; `docs/artifact-format.md` describes its fields.

mod document;
mod text;

pub use document::{Finding, Report, SCHEMA};
pub use text::summarise;
