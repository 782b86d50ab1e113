//! Indexed Jobs for Kubernetes. Main function: [`to_kubernetes`].

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::{FleetPlan, Kind, Unit};

/// What a cluster is told besides the units.
#[derive(Debug, Clone)]
pub struct Kubernetes {
    /// The image with the driver and one stack's environment.
    pub image: String,
    /// The secret whose entries become variables: the depot's address and credentials.
    pub secret: String,
    /// Shared memory of a pod, GiB: LMCache's pool lies there.
    pub shm_gib: u32,
}

/// One Indexed Job for each kind of unit and number of GPUs, as a list in JSON. Those that wait for others are suspended.
#[must_use]
pub fn to_kubernetes(plan: &FleetPlan, cluster: &Kubernetes) -> Value {
    let mut groups: BTreeMap<(Kind, u32), Vec<&Unit>> = BTreeMap::new();
    for unit in &plan.units {
        groups.entry((unit.kind, unit.gpus)).or_default().push(unit);
    }
    let has_arms = groups.keys().any(|(kind, _)| *kind == Kind::Arms);
    let waits = |kind| kind == Kind::Merge || (kind == Kind::Cell && has_arms);
    let jobs =
        groups.iter().map(|(&(kind, gpus), units)| job(plan, cluster, (kind, gpus), units, waits(kind)));
    json!({"apiVersion": "v1", "kind": "List", "items": jobs.collect::<Vec<_>>()})
}

fn job(
    plan: &FleetPlan,
    cluster: &Kubernetes,
    (kind, gpus): (Kind, u32),
    units: &[&Unit],
    waits: bool,
) -> Value {
    let kind = match kind {
        Kind::Arms => "arms",
        Kind::Cell => "cells",
        Kind::Merge => "merge",
    };
    let suffix = if gpus > 1 { format!("-{gpus}-gpus") } else { String::new() };
    let name = label(&format!("{}-{kind}{suffix}", plan.run));
    let mut resources = json!({});
    if gpus > 0 {
        resources = json!({"limits": {"nvidia.com/gpu": gpus}});
    }
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "kv-correctness", "kv-correctness/run": label(&plan.run)}},
        "spec": {
            "completionMode": "Indexed",
            "completions": units.len(),
            "parallelism": units.len(),
            "backoffLimitPerIndex": 2,
            "suspend": waits,
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": "kv-correctness"}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{
                        "name": "kv-correctness",
                        "image": cluster.image,
                        "command": ["/bin/sh", "-c", script(units)],
                        "workingDir": "/var/lib/kv-correctness",
                        "env": [
                            {"name": "KV_CORRECTNESS_CACHE", "value": "/var/lib/kv-correctness/cache"},
                            {"name": "KV_CORRECTNESS_RUN", "value": plan.run},
                        ],
                        "envFrom": [{"secretRef": {"name": cluster.secret}}],
                        "resources": resources,
                        "volumeMounts": [
                            {"name": "shm", "mountPath": "/dev/shm"},
                            {"name": "work", "mountPath": "/var/lib/kv-correctness"},
                        ],
                    }],
                    "volumes": [
                        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": format!("{}Gi", cluster.shm_gib)}},
                        {"name": "work", "emptyDir": {}},
                    ],
                },
            },
        },
    })
}

/// Does what the pod's index stands for.
fn script(units: &[&Unit]) -> String {
    let mut script = "case \"$JOB_COMPLETION_INDEX\" in\n".to_owned();
    for (index, unit) in units.iter().enumerate() {
        writeln!(script, "{index}) {} ;;", unit.script()).expect("a string can be written to");
    }
    script + "*) echo \"no unit has this index\" >&2; exit 2 ;;\nesac"
}

/// A DNS label: lower-case letters, digits and dashes, at most 63, with a letter or digit at both ends.
fn label(text: &str) -> String {
    let letter =
        |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    let plain: String = text.chars().map(letter).take(63).collect();
    plain.trim_matches('-').to_owned()
}
