//! A pipeline for `buildkite-agent pipeline upload`. Main function: [`to_buildkite`].

use serde_json::{Value, json};

use super::{FleetPlan, Kind, Unit};

/// The plan as a pipeline, in JSON. A step with GPUs goes to the queue that has them.
#[must_use]
pub fn to_buildkite(plan: &FleetPlan, queue: &str) -> Value {
    let step = |unit: &Unit| {
        let mut step = json!({
            "label": unit.id,
            "key": unit.id,
            "command": escaped(&unit.script()),
            "depends_on": unit.needs,
            "artifact_paths": ["out/**/*"],
            "timeout_in_minutes": 240,
            // An agent that was lost did nothing wrong; what it had put into the depot is not done again.
            "retry": {"automatic": [{"exit_status": -1, "limit": 2}]},
        });
        if unit.kind != Kind::Merge {
            step["agents"] = json!({"queue": queue});
        }
        step
    };
    let mut env = json!({"KV_CORRECTNESS_RUN": escaped(&plan.run)});
    if let Some(depot) = &plan.depot {
        env["KV_CORRECTNESS_DEPOT"] = json!(escaped(depot));
    }
    json!({"env": env, "steps": plan.units.iter().map(step).collect::<Vec<_>>()})
}

/// The upload replaces variables; a dollar that is one stands twice.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}
