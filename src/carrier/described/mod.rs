//! Connectors that a TOML file describes, vLLM's own among them. [`embedded`] and [`read`] make them carriers.

mod connector;
mod description;
mod file;
mod places;
#[cfg(test)]
mod tests;
mod transport;

#[cfg(test)]
pub(crate) use self::description::RESERVED_VARIABLES;
pub(super) use self::file::{embedded, read};
