use super::*;
use crate::atlas::{Bounds, Description, plan};
use crate::suite::Suite;

fn chart() -> (Description, Suite, Chart) {
    let mut description = Description::load("cpu").unwrap();
    description.bounds = Bounds { newest: 99, ..Bounds::default() };
    let suite = Suite::load("canary").unwrap();
    let mut chart = Chart::new("cpu", "of a test", DeviceKind::Cpu);
    follow(&mut chart, &description, &suite);
    (description, suite, chart)
}

fn follow(chart: &mut Chart, description: &Description, suite: &Suite) {
    let vllm = description.vllm().map(|(version, _)| version.clone()).collect();
    chart.follow(vllm, description.lmcache.clone(), plan(description, suite, 1));
}

fn judged(verdict: Verdict) -> Outcome {
    Outcome::Judged { verdict, decided_by: Rung::Kv, reason: "seen".to_owned(), questions: 40 }
}

#[test]
fn what_was_found_stays_until_what_it_depends_on_changes() {
    let (mut description, mut suite, mut chart) = chart();
    let [first, second] = [0, 1].map(|place: usize| chart.rows[place].cell.clone());
    chart.set(&first, judged(Verdict::Degraded), None);
    chart.set(&second, Outcome::NoEnvironment { reason: "no wheel".to_owned() }, None);
    follow(&mut chart, &description, &suite);
    assert_eq!(chart.rows[0].outcome, judged(Verdict::Degraded));
    assert!(!chart.rows[0].outcome.may_be_tried_again() && chart.rows[1].outcome.may_be_tried_again());

    // A release that is no longer planned keeps its row; one that is new comes with rows that wait.
    let dropped = description.lmcache.pop().unwrap();
    description.lmcache.push("9.9".to_owned());
    follow(&mut chart, &description, &suite);
    assert_eq!(
        chart.find(&first.vllm, &dropped, &first.model, first.route).unwrap().outcome,
        judged(Verdict::Degraded)
    );
    assert_eq!(chart.find(&first.vllm, "9.9", &first.model, first.route).unwrap().outcome, Outcome::Waiting);
    assert!(chart.lmcache.ends_with(&[dropped, "9.9".to_owned()]), "{:?}", chart.lmcache);

    suite.engine.seed += 1;
    chart.rows.clear();
    follow(&mut chart, &description, &suite);
    assert!(chart.rows.iter().all(|row| row.outcome == Outcome::Waiting));
}

#[test]
fn since_is_the_oldest_release_from_which_on_all_tested_ones_agree() {
    let (_, _, mut chart) = chart();
    let (model, route) = ("canary-dense", Route::named("mp"));
    let set = |chart: &mut Chart, vllm: &str, verdict| {
        let cell = chart.find(vllm, "0.5.6", model, route).unwrap().cell.clone();
        chart.set(&cell, judged(verdict), None);
    };
    for (vllm, verdict) in [
        ("0.24.0", Verdict::Equivalent),
        ("0.25.0", Verdict::Degraded),
        ("0.25.1", Verdict::Equivalent),
        ("0.27.0", Verdict::Degraded), // 0.26.0 waits
        ("0.28.0", Verdict::Degraded),
    ] {
        set(&mut chart, vllm, verdict);
    }
    let tried = chart.find("0.26.0", "0.5.6", model, route).unwrap().cell.clone();
    chart.set(&tried, Outcome::NotRun { reason: "it did not start".to_owned() }, None);
    let since = |vllm: &str| {
        let row = chart.find(vllm, "0.5.6", model, route).unwrap();
        chart.since(row, Line::Vllm).map(str::to_owned)
    };
    assert_eq!(since("0.28.0").as_deref(), Some("0.27.0"));
    assert_eq!(since("0.25.0").as_deref(), Some("0.25.0"));
    assert_eq!(since("0.24.0"), None);
}

#[test]
fn a_report_from_elsewhere_is_a_row_and_the_worse_of_two_stays() {
    let mut chart = Chart::new("gpu", "of a test", DeviceKind::Cuda);
    let reports = crate::report::fixture::every_kind();
    let report = |wanted: Verdict| {
        let found = reports.iter().find(|(_, report)| report.verdict == wanted);
        found.map(|(_, report)| report).expect("there is one of each kind")
    };
    for verdict in [Verdict::Equivalent, Verdict::Degraded, Verdict::Equivalent] {
        chart.add_report(report(verdict), "reports/one.html").unwrap();
    }
    let worst = chart.rows.iter().map(|row| row.outcome.rank()).min();
    assert_eq!(worst, Some(judged(Verdict::Degraded).rank()));
    assert_eq!(
        (chart.vllm.as_slice(), chart.lmcache.as_slice()),
        (["0.32.0".to_owned()].as_slice(), ["0.5.6".to_owned()].as_slice())
    );
}

#[test]
fn a_report_that_proves_less_than_it_seems_is_refused_or_says_so() {
    let reports = crate::report::fixture::every_kind();
    let named = |name: &str| reports.iter().find(|(known, _)| *known == name).unwrap().1.clone();
    let mut chart = Chart::new("gpu", "of a test", DeviceKind::Cuda);
    let mut part = named("equivalent");
    part.shard = Some("1/2".parse().unwrap());
    assert!(chart.add_report(&part, "part.html").unwrap_err().contains("part 1/2"));
    let mut built = named("equivalent");
    built.environment.packages.get_mut("lmcache").unwrap().revision = Some("1a2b".to_owned());
    assert!(chart.add_report(&built, "built.html").unwrap_err().contains("built from source"));
    assert_eq!(chart.rows, []);
    // All comparisons are equivalent, but a planted fault went unseen.
    chart.add_report(&named("insensitive"), "faults.html").unwrap();
    let worst = chart.rows.iter().map(|row| row.outcome.rank()).min();
    assert_eq!(worst, Some(judged(Verdict::Insensitive).rank()));
    let mut chart = Chart::new("gpu", "of a test", DeviceKind::Cuda);
    chart.add_report(&named("route not run"), "route.html").unwrap();
    assert!(chart.rows.iter().any(|row| matches!(row.outcome, Outcome::NotRun { .. })), "{:?}", chart.rows);
}

#[test]
fn a_file_of_another_format_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().join("atlas.json")).unwrap();
    assert_eq!(Chart::load(&path).unwrap(), None);
    let (_, _, mut chart) = chart();
    fs::write(&path, serde_json::to_vec(&chart).unwrap()).unwrap();
    assert_eq!(Chart::load(&path).unwrap(), Some(chart.clone()));
    chart.schema += 1;
    fs::write(&path, serde_json::to_vec(&chart).unwrap()).unwrap();
    let error = Chart::load(&path).unwrap_err();
    assert!(error.to_string().contains("its schema is 2") && error.hint().contains(path.as_str()), "{error}");
}

#[test]
fn what_several_machines_found_of_one_atlas_comes_together() {
    let (_, mut suite, mut chart) = chart();
    let description = Description::load("cpu").unwrap();
    let [first, second] = [0, 1].map(|place: usize| chart.rows[place].cell.clone());
    let mut other = chart.clone();
    chart.set(&first, judged(Verdict::Equivalent), None);
    let made = Made {
        version: "1".to_owned(),
        device: "a processor".to_owned(),
        torch: "2.13.0".to_owned(),
        python: "3.12".to_owned(),
        seconds: None,
        report: "pairs/one/report.html".to_owned(),
    };
    other.set(&first, judged(Verdict::Degraded), Some(made));
    other.set(&second, judged(Verdict::Equivalent), None);
    chart.add_chart(other.clone(), |report| format!("../other/{report}")).unwrap();
    let found = |cell: &Cell| chart.rows.iter().find(|row| row.cell == *cell).unwrap();
    assert_eq!(found(&first).outcome, judged(Verdict::Degraded), "the worse one stands there");
    assert_eq!(found(&first).made.as_ref().unwrap().report, "../other/pairs/one/report.html");
    assert_eq!(found(&second).outcome, judged(Verdict::Equivalent));

    // What was asked otherwise is another cell.
    suite.engine.seed += 1;
    let mut otherwise = Chart::new("cpu", "of a test", DeviceKind::Cpu);
    follow(&mut otherwise, &description, &suite);
    chart.add_chart(otherwise.clone(), str::to_owned).unwrap(); // what waits there says nothing
    let cell = otherwise.rows[0].cell.clone();
    otherwise.set(&cell, judged(Verdict::Equivalent), None);
    let why = chart.clone().add_chart(otherwise, str::to_owned).unwrap_err();
    assert!(why.contains("otherwise"), "{why}");
    let on_gpu = Chart { device: DeviceKind::Cuda, ..other };
    assert!(chart.add_chart(on_gpu, str::to_owned).unwrap_err().contains("on cuda"));
}

#[test]
fn the_committed_schema_is_that_of_a_chart_and_the_committed_charts_follow_it() {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let schema = read(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/atlas.schema.json"));
    assert!(
        schema == crate::report::json_schema::<Chart>(),
        "stale: run `kv-correctness schema atlas > docs/atlas.schema.json`"
    );
    let validator = jsonschema::draft202012::new(&serde_json::from_str(&schema).unwrap()).unwrap();
    for chart in [
        concat!(env!("CARGO_MANIFEST_DIR"), "/docs/atlas/cpu/atlas.json"),
        concat!(env!("CARGO_MANIFEST_DIR"), "/docs/atlas/cuda/atlas.json"),
        concat!(env!("CARGO_MANIFEST_DIR"), "/docs/atlas/gpu.json"),
    ] {
        let mut value = serde_json::from_str(&read(chart)).unwrap();
        assert!(validator.is_valid(&value), "{chart}");
        value["rows"][0]["outcome"]["kind"] = "unheard-of".into();
        assert!(!validator.is_valid(&value), "{chart}");
    }
}
