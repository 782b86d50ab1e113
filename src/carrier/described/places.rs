//! Places in a description's strings, which stand for what is known only when a run begins. Main type: [`Places`].

use std::collections::BTreeMap;

use serde_json::Value;

/// What a string may hold: a folder that is gone with the run; a free port of this machine, the same wherever it has the same
/// name; room for the KV of all questions; `store` or `load`, by the side that is told.
pub(super) const NAMES: [&str; 6] =
    ["{folder}", "{port}", "{port.NAME}", "{memory_bytes}", "{memory_gib}", "{side}"];

/// Whether there is such a place.
pub(super) fn is_place(name: &str) -> bool {
    matches!(name, "folder" | "port" | "memory_bytes" | "memory_gib" | "side")
        || name.strip_prefix("port.").is_some_and(|name| !name.is_empty())
}

/// The places that a text holds, without their brackets. A bracket that encloses something else than a word is none.
pub(super) fn places_in(text: &str) -> Vec<&str> {
    let parts = text.split('{').skip(1).filter_map(|part| Some(part.split_once('}')?.0));
    let is_word = |part: &&str| {
        let allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        !part.is_empty() && part.chars().all(allowed)
    };
    parts.filter(is_word).collect()
}

/// What places stand for.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(pub BTreeMap<String, Value>);

impl Places {
    /// The same with one more.
    pub(super) fn with(&self, name: &str, value: impl Into<Value>) -> Self {
        let mut places = self.clone();
        places.0.insert(name.to_owned(), value.into());
        places
    }

    /// A text with what its places stand for.
    pub(super) fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.replace(&format!("{{{name}}}"), &value)
        })
    }

    /// A value with what the places in its strings stand for: a number where a string is nothing but the place of one.
    pub(super) fn fill_value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                let alone = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
                match alone.and_then(|name| self.0.get(name)) {
                    Some(value) => value.clone(),
                    None => self.fill(text).into(),
                }
            }
            Value::Array(items) => items.iter().map(|item| self.fill_value(item)).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, field)| (name.clone(), self.fill_value(field))).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    /// All of these values.
    pub(super) fn fill_all(&self, values: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
        values.iter().map(|(name, value)| (name.clone(), self.fill_value(value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_place_becomes_what_it_stands_for_and_a_number_stays_one() {
        let places = Places::default().with("folder", "/kv").with("port", 7).with("port.b", 8);
        let described = json!({ "a": "{port}", "b": ["{folder}/x:{port.b}", 1], "c": "{\"json\": {}}" });
        assert_eq!(
            places.fill_value(&described),
            json!({ "a": 7, "b": ["/kv/x:8", 1], "c": "{\"json\": {}}" })
        );
        assert_eq!(places_in("{folder}/{port.b} {\"json\": {}} {flder}"), ["folder", "port.b", "flder"]);
        assert!(is_place("port.b") && !is_place("port.") && !is_place("flder"));
    }
}
