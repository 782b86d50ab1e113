//! The JSON Schemas of `report.json` and of what is made of reports, derived from their types. Main function: [`json_schema`].

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::Value;

/// The schema of a type, as committed in `docs/report.schema.json` and `docs/atlas.schema.json`.
#[must_use]
pub fn json_schema<T: JsonSchema>() -> String {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator.into_root_schema_for::<T>();
    RecursiveTransform(|schema: &mut schemars::Schema| {
        // Descriptions are documentation comments: links to Rust items lead nowhere in JSON.
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = text.replace("[`", "`").replace("`]", "`");
        }
    })
    .transform(&mut schema);
    let text = serde_json::to_string_pretty(&schema).expect("a schema has a JSON form");
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Report, fixture};

    #[test]
    fn the_committed_schema_is_that_of_the_report() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/report.schema.json");
        let committed = fs_err::read_to_string(path).unwrap();
        let message = "stale: run `kv-correctness schema > docs/report.schema.json`";
        assert!(committed == json_schema::<Report>(), "{message}");
    }

    #[test]
    fn every_kind_of_report_is_valid_and_a_changed_one_is_not() {
        let schema: Value = serde_json::from_str(&json_schema::<Report>()).unwrap();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        for (name, report) in fixture::every_kind() {
            let mut value = serde_json::to_value(&report).unwrap();
            let errors: Vec<String> = validator
                .iter_errors(&value)
                .map(|error| format!("{} {error}", error.instance_path()))
                .collect();
            assert_eq!(errors, Vec::<String>::new(), "{name}");
            value["schema"] = 1.into();
            assert!(!validator.is_valid(&value), "{name}");
        }
    }
}
