//! A plan's units, and its forms for each executor. Their schemas are asked in `tests/it/plan.rs`.

use super::*;
use crate::model::Route;

fn plan(routes: &[&str], shards: u32) -> FleetPlan {
    FleetPlan::of(&Wishes {
        run: "nightly-7".to_owned(),
        depot: Some("s3://bucket/x".to_owned()),
        models: vec![("Dense_1".to_owned(), 1), ("big".to_owned(), 2)],
        routes: routes.iter().map(|route| Route::named(route)).collect(),
        shards: (1..=shards).map(|number| format!("{number}/{shards}").parse().unwrap()).collect(),
        arguments: ["--suite", "it's"].map(str::to_owned).to_vec(),
    })
}

#[test]
fn each_cell_is_a_unit_and_waits_for_what_it_shares_with_others() {
    let plan = plan(&["mp", "mp+fs"], 2);
    let ids: Vec<&str> = plan.units.iter().map(|unit| unit.id.as_str()).collect();
    insta::assert_snapshot!(ids.join(" "), @"dense-1-arms-1-of-2 dense-1-mp-1-of-2 dense-1-mp-fs-1-of-2 dense-1-arms-2-of-2 dense-1-mp-2-of-2 dense-1-mp-fs-2-of-2 big-arms-1-of-2 big-mp-1-of-2 big-mp-fs-1-of-2 big-arms-2-of-2 big-mp-2-of-2 big-mp-fs-2-of-2 merge");
    assert_eq!(plan.units[1].needs, ["dense-1-arms-1-of-2"]);
    insta::assert_snapshot!(plan.units[1].script(), @r"kv-correctness run --suite 'it'\''s' --cell Dense_1/mp --shard 1/2 --out out/dense-1-mp-1-of-2 --run-name nightly-7");
    insta::assert_snapshot!(plan.units[0].script(), @r"kv-correctness stage baseline --suite 'it'\''s' --cell Dense_1/mp --shard 1/2 --out out-baseline && kv-correctness stage control --suite 'it'\''s' --cell Dense_1/mp --shard 1/2 --out out-control");
    let merge = plan.units.last().unwrap();
    assert_eq!((merge.needs.len(), merge.kind), (8, Kind::Merge));
    // Every unit stands behind what it waits for.
    for (at, unit) in plan.units.iter().enumerate() {
        assert!(unit.needs.iter().all(|need| plan.units[..at].iter().any(|before| before.id == *need)));
    }
}

#[test]
fn one_route_needs_no_unit_for_what_routes_share() {
    assert_eq!(plan(&["mp"], 1).of_kind(Kind::Arms).count(), 0);
}

#[test]
fn a_matrix_that_github_would_refuse_is_refused_here() {
    assert!(to_github(&plan(&["mp"], 128)).is_ok());
    assert!(to_github(&plan(&["mp"], 129)).unwrap_err().contains("258 jobs"));
}

#[test]
fn kubernetes_gets_a_job_for_each_kind_and_number_of_gpus_and_those_that_wait_are_suspended() {
    let cluster = Kubernetes { image: "image:1".to_owned(), secret: "depot".to_owned(), shm_gib: 8 };
    let list = to_kubernetes(&plan(&["mp", "mp+fs"], 2), &cluster);
    let of = |job: &serde_json::Value| {
        format!(
            "{} {} {}",
            job["metadata"]["name"].as_str().unwrap(),
            job["spec"]["completions"],
            job["spec"]["suspend"]
        )
    };
    let jobs: Vec<String> = list["items"].as_array().unwrap().iter().map(of).collect();
    insta::assert_snapshot!(jobs.join("\n"), @r"
    nightly-7-arms 2 false
    nightly-7-arms-2-gpus 2 false
    nightly-7-cells 4 true
    nightly-7-cells-2-gpus 4 true
    nightly-7-merge 1 true
    ");
}
