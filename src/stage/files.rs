//! Names of the files with observations, one a pass.

pub(super) const BASELINE: &str = "baseline.jsonl";
pub(super) const REPEAT: &str = "repeat.jsonl";
pub(super) const CONTROL: &str = "control.jsonl";
pub(super) const STORE: &str = "store.jsonl";
pub(super) const LOAD: &str = "load.jsonl";
