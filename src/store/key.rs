//! What an artifact is found by. Main type: [`StageKey`].

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Digest, canonical_json, digest_bytes};
use crate::stage_name::StageName;

/// Everything that determines a stage's output: two equal keys promise equal outputs.
///
/// Its digest is the SHA-256 of its canonical JSON, `{"fields":{…},"schema":…,"stage":…}`. No time, path or host
/// name belongs into the fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageKey {
    schema: u32,
    stage: StageName,
    fields: Value,
}

impl StageKey {
    /// `schema` numbers the meaning of the stage's fields and the encoding of its output; `fields` holds the output
    /// digests of the stage's inputs and every parameter, and serialises to an object.
    ///
    /// # Panics
    /// When `fields` has no JSON form: a defect of its type.
    #[must_use]
    pub fn new(schema: u32, stage: StageName, fields: &impl Serialize) -> Self {
        let fields = serde_json::to_value(fields).expect("a stage's fields have a JSON form");
        Self { schema, stage, fields }
    }

    /// The stage whose output it determines.
    #[must_use]
    pub fn stage(&self) -> StageName {
        self.stage
    }

    /// Number of the fields' meaning and the output's encoding.
    #[must_use]
    pub fn schema(&self) -> u32 {
        self.schema
    }

    /// The inputs and parameters.
    #[must_use]
    pub fn fields(&self) -> &Value {
        &self.fields
    }

    /// What the artifact is stored under.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest_bytes(&self.to_canonical_json())
    }

    /// What `key.json` holds.
    pub(super) fn to_canonical_json(&self) -> Vec<u8> {
        canonical_json(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_digest_is_pinned_so_that_stores_survive_an_upgrade() {
        let key = StageKey::new(1, StageName::Baseline, &json!({"seed": 0, "inputs": {"extract": "00ff"}}));
        assert_eq!(
            String::from_utf8(key.to_canonical_json()).unwrap(),
            r#"{"fields":{"inputs":{"extract":"00ff"},"seed":0},"schema":1,"stage":"baseline"}"#
        );
        assert_eq!(key.digest().short(), "b8d3ca820813");
    }

    #[test]
    fn schema_stage_and_every_field_change_the_digest() {
        let keys = [
            StageKey::new(1, StageName::Baseline, &json!({"seed": 0})),
            StageKey::new(2, StageName::Baseline, &json!({"seed": 0})),
            StageKey::new(1, StageName::Control, &json!({"seed": 0})),
            StageKey::new(1, StageName::Baseline, &json!({"seed": 1})),
            StageKey::new(1, StageName::Baseline, &json!({"seed": 0.0})),
            StageKey::new(1, StageName::Baseline, &json!({"seed": null})),
            StageKey::new(1, StageName::Baseline, &json!({})),
        ];
        let digests: std::collections::BTreeSet<Digest> = keys.iter().map(StageKey::digest).collect();
        assert_eq!(digests.len(), keys.len());
    }
}
