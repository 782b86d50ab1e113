//! Gets what suites name and this repository does not hold: pinned models and datasets.
//!
//! Owns the pins, the download and where its results lie; leaves to `assets` what a suite's names stand for. Every file
//! is pinned by SHA-256, so where it comes from (the hub, a mirror, another program's cache) does not matter.
//! Main types: [`Fetcher`], [`ModelPin`], [`ArchivePin`].
//!
//! Layout, under the cache folder:
//! ```text
//! fetched/models/<organisation>--<name>/<file>   a model's folder, for vLLM; a file in the hub's own cache is linked to
//! fetched/datasets/<name>/<file>
//! fetched/…/<file>.part, <file>.part.json        half a download, and the ETag that it goes on with
//! fetched/verified.json                          files with the right digest: {"schema":1,"files":{PATH:STAMP}}
//! fetched/fetch.lock                             held while something is fetched
//! ```
//! A `STAMP` is `{"size":…,"modified_ns":…,"inode":…,"sha256":…}`: a file whose size, time or inode is another counts as
//! not known, and is read again where it is asked for.

mod client;
mod convert;
mod download;
mod error;
mod fetcher;
mod needs;
mod patience;
mod pins;
mod verified;

pub use client::Token;
pub use error::FetchError;
pub use fetcher::{FetchSettings, Fetcher};
pub use needs::Needs;
pub use patience::Patience;
pub use pins::{ArchivePin, FilePin, GgufPin, ModelPin, Origin, PackageList};
pub use verified::Verified;

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;
