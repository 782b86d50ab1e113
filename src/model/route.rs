//! The name of a way for KV to travel. Main type: [`Route`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The names that have been spoken of, each kept once for as long as the program runs.
static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// The name of a way for KV to travel from the store pass to the load pass: `mp+fs`. Which ways there are, and what each
/// does, is for `carrier` to say; a report may name one that this program does not have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route(&'static str);

impl Route {
    /// The route of this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return Self(known);
        }
        let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
        names.insert(kept);
        Self(kept)
    }

    /// The name on the command line, in suites and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, formatter)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.0)
    }
}

impl Serialize for Route {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| Self::named(&name))
    }
}

impl JsonSchema for Route {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Route".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "The name of a way for KV to travel from the store pass to the load pass: `mp+fs`.",
            "type": "string"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_route_however_often_it_is_spoken() {
        let read: Route = serde_json::from_str("\"mp+fs\"").unwrap();
        assert_eq!(read, Route::named("mp+fs"));
        assert!(std::ptr::eq(read.name(), Route::named("mp+fs").name()));
        assert_eq!(serde_json::to_string(&read).unwrap(), "\"mp+fs\"");
        assert_ne!(read, Route::named("mp"));
    }
}
