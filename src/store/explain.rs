//! Why a stage runs again: the fields in which two keys differ. Main type: [`FieldChange`].

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::StageKey;

/// A field that two keys do not share.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldChange {
    /// JSON pointer from the key's fields, as in `/environment/packages/lmcache/version`; or `/schema`.
    pub path: String,
    /// The value in the earlier key; `None` where the field was not there.
    pub before: Option<Value>,
    /// The value in the wanted key; `None` where the field is gone.
    pub after: Option<Value>,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                write!(formatter, "{} changed from {} to {}", self.path, shown(before), shown(after))
            }
            (None, Some(after)) => write!(formatter, "{} is new: {}", self.path, shown(after)),
            (Some(before), None) => write!(formatter, "{} is gone; it was {}", self.path, shown(before)),
            (None, None) => write!(formatter, "{} did not change", self.path),
        }
    }
}

/// The value's JSON, cut to the length of a digest in quotes.
fn shown(value: &Value) -> String {
    const LIMIT: usize = 66;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

/// The innermost fields in which `wanted` differs from `previous`, sorted by path; none when the keys are equal.
///
/// Lists of equal length are compared item by item, others as a whole.
#[must_use]
pub fn explain(previous: &StageKey, wanted: &StageKey) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    collect_changes("/schema", Some(&previous.schema().into()), Some(&wanted.schema().into()), &mut changes);
    collect_changes("", Some(previous.fields()), Some(wanted.fields()), &mut changes);
    changes.sort_by(|left, right| left.path.cmp(&right.path));
    changes
}

fn collect_changes(
    path: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    changes: &mut Vec<FieldChange>,
) {
    match (before, after) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            for name in left.keys().chain(right.keys()).collect::<BTreeSet<_>>() {
                let step = name.replace('~', "~0").replace('/', "~1");
                collect_changes(&format!("{path}/{step}"), left.get(name), right.get(name), changes);
            }
        }
        (Some(Value::Array(left)), Some(Value::Array(right))) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                collect_changes(&format!("{path}/{index}"), Some(left), Some(right), changes);
            }
        }
        _ if before == after => {}
        _ => changes.push(FieldChange {
            path: path.to_owned(),
            before: before.cloned(),
            after: after.cloned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::stage_name::StageName;

    fn key(schema: u32, fields: &Value) -> StageKey {
        StageKey::new(schema, StageName::Cached, fields)
    }

    #[test]
    fn each_changed_field_is_named_with_both_values() {
        let before = key(
            1,
            &json!({
                "environment": {"packages": {"lmcache": {"version": "0.5.4"}, "torch": {"version": "2.13.0"}}},
                "subjects": ["a", "b"], "chunk_tokens": [256, 1], "engine": {"enforce/eager": true}, "seed": 0,
            }),
        );
        let after = key(
            2,
            &json!({
                "environment": {"packages": {"lmcache": {"version": "0.5.6"}, "torch": {"version": "2.13.0"}}},
                "subjects": ["a"], "chunk_tokens": [128, 1], "engine": {}, "seed": 0, "note": "x".repeat(200),
            }),
        );
        let words: Vec<String> = explain(&before, &after).iter().map(ToString::to_string).collect();
        assert_snapshot!(words.join("\n"), @r#"
        /chunk_tokens/0 changed from 256 to 128
        /engine/enforce~1eager is gone; it was true
        /environment/packages/lmcache/version changed from "0.5.4" to "0.5.6"
        /note is new: "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
        /schema changed from 1 to 2
        /subjects changed from ["a","b"] to ["a"]
        "#);
    }

    proptest! {
        #[test]
        fn equal_keys_have_no_changes_and_one_changed_field_is_the_only_one_named(
            fields in proptest::collection::btree_map("[a-z/~]{1,3}", 0_i64..5, 1..6), pick in any::<prop::sample::Index>(),
        ) {
            let before = key(1, &json!(fields));
            prop_assert_eq!(explain(&before, &before), vec![]);
            let mut changed = fields.clone();
            let name = pick.get(&fields.keys().cloned().collect::<Vec<_>>()).clone();
            changed.insert(name.clone(), 9);
            let after = key(1, &json!(changed));
            let changes = explain(&before, &after);
            prop_assert_eq!(changes.len(), 1);
            prop_assert_eq!(after.fields().pointer(&changes[0].path), Some(&json!(9)));
            prop_assert_eq!(&changes[0].before, &Some(json!(fields[&name])));
        }
    }
}
