//! Planted faults: damage done on purpose to what LMCache stored, which the ladder of oracles has to see.
//!
//! Owns the catalogue, what each fault does to a chunk's bytes, the two tiers that it is planted in, and what the verdicts
//! on planted faults amount to; leaves engines, servers and the order of events to `stage`, and judging to `comparison`.
//! LMCache and vLLM run unmodified. Main types: [`Fault`], [`Layout`], [`FaultFindings`].

mod catalogue;
mod chunk_name;
mod element;
mod error;
mod findings;
mod flips;
mod kind;
mod layout;
mod located;
mod memory;
mod numbers;
mod operator;
mod planting;
mod second_tier;

pub use catalogue::CATALOGUE;
pub use chunk_name::{ChunkName, Shard};
pub use error::FaultError;
pub use findings::{Damage, Fate, FaultFindings, Reading, Score, SmallestDose, Trial};
pub use flips::{Flip, sample_flips};
pub use kind::{Applies, Donor, Dose, Fault, Group, Layers, Must, Place, Ranks, Spots, Tier, Variant};
pub use layout::{Arrangement, Layout, LayoutError, Probe};
pub use located::{Changed, Located, PlantedCell};
pub use memory::{MemoryTier, segment_fits};
pub use operator::{Bit, Operator, Spread};
pub use planting::{Planting, plantings};
pub use second_tier::PlantedTier;
