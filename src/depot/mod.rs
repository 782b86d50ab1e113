//! The depot: artifacts that many machines share, in a folder or an object store.
//!
//! Owns how artifacts lie there, how they go up and come down, and what is done when the depot fails: a warning, and no verdict
//! less. Leaves what an artifact is to `store`, and when to ask to `job`. Main type: [`Depot`].
//!
//! Layout, below the address:
//! ```text
//! kv-correctness-depot-1/
//!   artifacts/<stage>/<key digest>.json   a seal: the key, and of each file its size, SHA-256 and parts; put last, if absent
//!   parts/<2 digits>/<sha256>             at most 4 MiB of a file, named by its content
//!   reports/<run>/<name>.json             reports of runs that are parts of a whole, each with its digest
//! ```
//! An artifact is there once its seal is. Whatever breaks off before leaves parts that the next try finds, or that `gc` takes. Two
//! who make the same artifact put the same parts, and one of the two seals stays. Each part and each file is held against its
//! digest on the way in; what does not agree is refused, told, and put again by whoever makes it anew.

mod address;
mod aws_profile;
mod connector;
mod courier;
mod error;
mod folder;
mod inventory;
mod seal;
mod transfer;

pub use address::{Access, DepotAddress, Patience};
pub use courier::{Depot, Found};
pub use error::DepotError;
pub use inventory::{Kept, Stored};
pub use seal::Seal;
