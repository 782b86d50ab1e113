//! The words that every other part speaks in: questions, routes, data types, the shape of a model's KV, what one request showed of its answer and of
//! its KV.
//!
//! Owns no behaviour beyond names and sizes, and uses no other module of this program.

mod dtype;
mod hit_rule;
mod kv_bytes;
mod kv_groups;
mod kv_record;
mod kv_shape;
mod kv_state;
mod observation;
mod pressed;
mod question;
mod route;
mod spoilt;

pub use dtype::{Dtype, KvDtype};
pub use hit_rule::{Found, HitRule, HitUnit};
pub use kv_bytes::{CellBytes, CellPart, Element};
pub use kv_groups::{KvGroup, KvGroups, KvKind, UnknownKv};
pub use kv_record::{ChunkDigests, DigestedLayers, KvRecord, LayerDigests, NotLayerDigests};
pub use kv_shape::KvShape;
pub use kv_state::KvState;
pub use observation::{Observation, Step, TokenLogprob};
pub use pressed::{Admission, CutOff, PlannedRequest, PressedRequest, PressureEvents};
pub use question::{Choice, NotAChoice, NotASubject, Question, QuestionId, Split, Subject};
pub use route::Route;
pub use spoilt::{SpoiltAnswers, SpoiltProbe};
