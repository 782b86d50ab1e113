//! Whether LMCache tells KV of one identity from KV of another: what one engine stored is asked for by others. Pure.
//!
//! Owns who stores and who reads, in what a reader may differ, and what it means that it was served; leaves asking to
//! `stage::foreign`. Main types: [`ForeignFindings`], [`Reader`].

mod cells;
mod difference;
mod findings;
mod readers;
mod stored;

pub use self::cells::ServedCells;
pub use self::difference::Difference;
pub use self::findings::{ForeignFindings, Meaning, Mend, Reading, ReadingOutcome};
pub use self::readers::{Keeper, Own, Reader, ReaderGroup, readers};
pub use self::stored::{Stored, Storer, Way};
