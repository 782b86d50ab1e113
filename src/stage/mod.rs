//! The stages: what each job's key holds, and how its output is made of that and of its inputs.
//!
//! Each stage is a struct: its fields are the parameters in its key, and its `fill` sees these, its inputs and a desk that
//! changes no output, so that what is in no key cannot be computed from. Owns what the output files are; leaves which
//! jobs there are to `pipeline`, finding, sealing and order to `job`, processes to `engine`, ways for KV to `carrier`,
//! judgement to `comparison`. Main types: [`Context`], [`EngineSpec`].
//!
//! | stage | of | output files |
//! |---|---|---|
//! | extract | dataset | `questions.jsonl` |
//! | prompts | model | `prompts.jsonl`, `longest.json` |
//! | baseline | model | `baseline.jsonl`, `engine.json` |
//! | control | model | `repeat.jsonl`, `control.jsonl`, `cut-control.jsonl`, `engine.json` |
//! | cached | model and route | `store.jsonl`, `load.jsonl`, `cut.jsonl`, `passes.json`, `second-look.json`, `engine.json` |
//! | compare | model and route | `comparison.json`; of a shard also `evidence.json` |
//! | faults | model and route | `faults.json`, `engine.json` |
//! | foreign | model | `foreign.json`, `engine.json` |
//! | turns | model and route | `turns.json`, `engine.json` |
//! | pressure | model and route | `pressure.json`, `engine.json` |

mod answer;
mod arms;
mod cached;
mod capacity;
mod compare;
mod cut;
mod cut_pass;
mod desk;
mod engine_run;
mod error;
mod extract;
mod faults;
mod files;
mod foreign;
mod known_copies;
mod kv_evidence;
mod laboratory;
mod lines;
mod load_pass;
mod order;
mod planting_ground;
mod planting_stack;
mod pressure;
mod prompts;
mod rounds;
mod second_look;
mod sources;
mod states;
mod turns;
mod watch;
mod windows;

pub use arms::{Baseline, Control};
pub use cached::Cached;
pub use capacity::{admit_length, capacity, kv_dtype};
pub use compare::{Compare, Shards, batching, read_comparison, read_evidence};
pub use cut::{Cut, find_location};
pub(crate) use cut_pass::about_cuts;
pub use desk::{Context, Desk, Inputs, Label};
pub use engine_run::{EngineSpec, Room, read_ready};
pub use error::{StageError, in_full};
pub use extract::{Extract, read_dataset};
pub use faults::{Faults, read_faults, refuses_faults};
pub use foreign::{FOREIGN_PROMPTS, Foreign, read_foreign};
pub use pressure::{Pressure, read_pressure};
pub(crate) use prompts::prompt_limits;
pub use prompts::{
    Excerpt, ExcerptQuestion, Prompts, admit_prompts, check_prompts, count_prompts, read_prompts,
    require_letters, template,
};
pub use sources::Sources;
pub use states::admit_states;
pub use turns::{Turns, read_turns};
pub use windows::{admit_hybrid_manager, admit_windows};
