//! The store: finished stages, found again by what went into them.
//!
//! Owns the artifacts' format on disk, their keys, the lock of each key, and `explain`; leaves to others what a
//! stage computes and which key it has. Main types: [`Store`], [`StageKey`], [`Artifact`], [`Draft`].
//!
//! Layout, under the cache folder:
//! ```text
//! store-1/                            the number changes with this layout
//!   entries/<stage>/<key digest>/     an artifact; there completely or not at all
//!     key.json                        canonical JSON of the key; its SHA-256 is the folder's name
//!     manifest.json                   {"schema":1,"files":{"<name>":{"sha256":…,"size":…}}}, of what is in output/
//!     output/                         what later stages read; its digest is that of the manifest's "files"
//!     notes/                          logs, timings: kept, but part of no digest
//!     last-used                       empty; its modification time says when the artifact last served
//!   drafts/<key digest>/              an artifact in the making, or the remains of a failed one, for its logs
//!   locks/<key digest>.lock           held while the draft is written
//!   last/<stage>/<label's digest>.json   {"label":…,"key":…}: the key last found or sealed there, for `explain`
//!   in-use.lock                       shared by all who have the store open; cleaning takes it alone
//!   aside/                            damaged artifacts, until the store is cleaned
//! ```
//! Nothing half-written is ever found: a draft's files are synced, then the folder is renamed to its place. Replacing an
//! artifact (`--force`) has a moment in which neither is found; a reader then runs the stage, which costs time only.

mod artifact;
mod claim;
mod draft;
mod error;
mod explain;
mod garbage;
mod key;
mod open;

pub use artifact::{Artifact, OutputFile, output_digest};
pub use claim::{Claim, Reuse};
pub use draft::Draft;
pub use error::StoreError;
pub use explain::{FieldChange, explain};
pub use garbage::Entry;
pub use key::StageKey;
pub use open::{Alone, Durability, Store};

#[cfg(test)]
mod tests;
