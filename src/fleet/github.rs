//! Matrices for jobs of GitHub Actions. Main function: [`to_github`].

use serde_json::{Value, json};

use super::{FleetPlan, Kind, Unit};

/// Most jobs that GitHub makes of one matrix.
pub(super) const MOST_JOBS: usize = 256;

/// One matrix for each kind of unit, for `strategy: matrix: ${{ fromJSON(…) }}`; the error says why there can be none.
///
/// # Errors
/// When a matrix has more jobs than GitHub allows.
pub fn to_github(plan: &FleetPlan) -> Result<Value, String> {
    let matrix = |kind| -> Result<Value, String> {
        let units: Vec<&Unit> = plan.of_kind(kind).collect();
        if units.len() > MOST_JOBS {
            return Err(format!(
                "{} jobs of one matrix are more than the {MOST_JOBS} that GitHub makes",
                units.len()
            ));
        }
        let job = |unit: &&Unit| json!({"id": unit.id, "script": unit.script(), "gpus": unit.gpus});
        Ok(json!({"include": units.iter().map(job).collect::<Vec<_>>()}))
    };
    Ok(json!({"arms": matrix(Kind::Arms)?, "cells": matrix(Kind::Cell)?, "merge": matrix(Kind::Merge)?}))
}
