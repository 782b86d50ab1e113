//! A script that shows a difference with vLLM and LMCache alone. Main function: [`write_script`].

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::model::Route;

const TEMPLATE: &str = include_str!("standalone.py");
const PLACE: &str = "@CASE@";

/// What the script runs.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// How KV travels.
    pub route: Route,
    /// The model's `config.json`.
    pub config: Value,
    /// Keyword arguments of `vllm.LLM`.
    pub arguments: BTreeMap<String, Value>,
    /// Variables that are set before vLLM is imported.
    pub variables: BTreeMap<String, String>,
    /// Settings of the connector besides the server's address.
    pub connector: BTreeMap<String, Value>,
    /// Tokens of one chunk of LMCache.
    pub chunk_tokens: u32,
    /// LMCache's memory, in GiB.
    pub memory_gib: u32,
    /// Tokens generated for each prompt.
    pub max_tokens: u32,
    /// vLLM's seed.
    pub seed: u64,
    /// What is asked.
    pub prompts: Vec<CasePrompt>,
}

/// A prompt of the script.
#[derive(Debug, Clone, Serialize)]
pub struct CasePrompt {
    /// The question's name.
    pub name: String,
    /// The whole prompt.
    pub token_ids: Vec<u32>,
}

/// The script of a case on a route that fits one.
#[must_use]
pub fn write_script(case: &Case) -> String {
    let json = serde_json::to_string(case).expect("a case has a JSON form");
    TEMPLATE.replacen(PLACE, &json, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_case_stands_in_the_script_as_one_text_that_python_reads_back() {
        let case = Case {
            route: Route::named("mp"),
            config: serde_json::json!({ "name": "a \"quoted\" \\ name", "empty": "" }),
            arguments: BTreeMap::new(),
            variables: BTreeMap::new(),
            connector: BTreeMap::new(),
            chunk_tokens: 256,
            memory_gib: 1,
            max_tokens: 2,
            seed: 42,
            prompts: vec![CasePrompt { name: "a test 1".to_owned(), token_ids: vec![1, 2, 3] }],
        };
        let script = write_script(&case);
        let (_, rest) = script.split_once("json.loads(r\"\"\"").unwrap();
        let (json, _) = rest.split_once("\"\"\")").unwrap();
        assert_eq!(serde_json::from_str::<Value>(json).unwrap(), serde_json::to_value(&case).unwrap());
        assert!(!json.contains("\"\"\""));
    }
}
