//! Which releases of vLLM and LMCache are right together: what is to be tested, and what came of it.
//!
//! Owns the description of an atlas, which cells it has and in which order, the chart of what each came to, and its page;
//! leaves environments and runs to the caller. Pure. Main types: [`Description`], [`Chart`]; main functions: [`plan`],
//! [`to_page`].

mod chart;
mod description;
mod page;
mod plan;
mod version;

pub use chart::{Chart, ChartError, Made, Outcome, Row, SCHEMA};
pub use description::{Bounds, Description, DescriptionError, Rest, VllmReleases};
pub use page::to_page;
pub use plan::{Cell, Pair, Scope, pairs, plan};
