//! The stages: each takes finished artifacts and returns one.
//!
//! Owns what goes into a stage's key and what its output files are; leaves finding and sealing to `store`, processes
//! to `engine`, judgement to `comparison`. Main type: [`Bench`], what every stage works with.
//!
//! | stage | of | output files |
//! |---|---|---|
//! | extract | dataset | `questions.jsonl` |
//! | prompts | model | `prompts.jsonl` |
//! | baseline | model | `baseline.jsonl`, `engine.json` |
//! | control | model | `repeat.jsonl`, `control.jsonl`, `engine.json` |
//! | cached | model and route | `store.jsonl`, `load.jsonl`, `passes.json`, `engine.json` |
//! | compare | model and route | `comparison.json` |
//! | faults | model | `faults.json`, `engine.json` |
//! | foreign | model | `foreign.json`, `engine.json` |

mod answer;
mod arms;
mod backing;
mod bench;
mod cached;
mod compare;
mod engine_run;
mod error;
mod extract;
mod faults;
mod foreign;
mod lines;
mod load_pass;
mod locate;
mod planting_ground;
mod planting_stack;
mod prompts;
mod rounds;
mod route_error;
mod watch;

pub use arms::{baseline, control};
pub use bench::{Bench, Excerpt, ExcerptQuestion, ForeignReading, Locating, Mode, Planting};
pub use cached::{Watched, admit_routes, cached, require_server};
pub use compare::{Arms, compare, read_comparison};
pub use engine_run::{capacity_of, llm_arguments, read_ready};
pub use error::StageError;
pub use extract::{extract, read_dataset};
pub use faults::{Undamaged, faults, read_faults};
pub use foreign::{foreign, read_foreign};
pub use locate::locate;
pub use prompts::{admit_prompts, check_prompts, prompts, read_prompts, require_letters, template};
pub use route_error::RouteError;
pub use watch::EarlyStopping;
