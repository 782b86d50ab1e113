//! Names of one of several engines, servers or logs.

/// `engine` for the only one, `engine-2` for the second of several.
#[must_use]
pub fn numbered(name: &str, number: Option<usize>) -> String {
    number.map_or_else(|| name.to_owned(), |number| format!("{name}-{number}"))
}
