use super::*;

#[test]
fn every_embedded_suite_can_be_loaded() {
    let names = Suite::names();
    assert!(names.contains(&"canary".to_owned()));
    for name in names {
        assert_eq!(Suite::load(&name).map(|suite| suite.name).map_err(|error| error.to_string()), Ok(name));
    }
}

#[test]
fn an_unknown_suite_is_refused_with_the_names_of_those_that_exist() {
    let error = Suite::load("canry").unwrap_err();
    assert!(error.to_string().starts_with("find suite \"canry\": it is neither a file nor one of canary"));
    assert_eq!(error.hint().unwrap(), "did you mean canary?");
    let hint = Suite::load("nightly.toml").unwrap_err().hint().unwrap();
    assert!(hint.contains("suite show canary"), "{hint}");
}

#[test]
fn an_unknown_field_is_refused_with_its_line() {
    let text = include_str!("../../data/suites/canary.toml").replace("margin =", "magrin =");
    let error = Suite::parse(&text, "mine").unwrap_err().to_string();
    assert!(error.contains("magrin") && error.contains("line "), "{error}");
}

#[test]
fn a_setting_that_cannot_be_is_refused_by_name() {
    let text =
        include_str!("../../data/suites/canary.toml").replace("chunk_tokens = 256", "chunk_tokens = 0");
    insta::assert_snapshot!(Suite::parse(&text, "mine").unwrap_err(),
        @"understand suite mine: line 24, column 1: `lmcache.chunk_tokens` must be at least 1");
}

#[test]
fn the_number_of_ranks_is_said_once_and_is_not_zero() {
    let text = include_str!("../../data/suites/mmlu.toml");
    let refused = |text: &str| Suite::parse(text, "mine").unwrap_err().to_string();
    let none = text.replace("tensor_parallel_size = 2", "tensor_parallel_size = 0");
    assert!(refused(&none).ends_with("`tensor_parallel_size` of deepseek-v2-lite must be at least 1"));
    let twice = text.replace("[lmcache]", "arguments.tensor_parallel_size = 2\n[lmcache]");
    assert!(refused(&twice).contains("beside a model's `source`"));
}

#[test]
fn what_is_the_drivers_to_set_is_refused_wherever_it_stands_with_its_place_and_what_says_it_instead() {
    let canary = include_str!("../../data/suites/canary.toml");
    let refused = |before: &str, line: &str| {
        let text = canary.replacen(before, &format!("{line}\n{before}"), 1);
        let error = Suite::parse(&text, "mine").unwrap_err();
        format!("{error}\nhint: {}", error.hint().unwrap())
    };
    insta::assert_snapshot!(refused("[lmcache]", "arguments = { kv_transfer_config = { kv_connector = \"X\" } }"), @r"
    understand suite mine: line 23, column 15: `kv_transfer_config` gives an engine a connector, and this program gives each arm its own: baseline and control have none
    hint: leave it out, and name the ways for KV to travel in `routes`
    ");
    insta::assert_snapshot!(refused("source =", "arguments.dtype = \"float16\""), @r"
    understand suite mine: line 32, column 11: `dtype` is set by this program
    hint: write `engine.dtype`
    ");
    insta::assert_snapshot!(refused("source =", "cpu_arguments.load_format = \"dummy\""), @r"
    understand suite mine: line 32, column 15: `load_format` makes up weights whose outputs do not feel their KV, so wrong KV would pass
    hint: leave it out and give the model trained weights; the embedded `canary-dense` and `canary-mla` are small ones
    ");
    insta::assert_snapshot!(refused("source =", "arguments.\"kv-transfer-config\" = {}"), @r"
    understand suite mine: line 32, column 11: `kv-transfer-config` gives an engine a connector, and this program gives each arm its own: baseline and control have none
    hint: leave it out, and name the ways for KV to travel in `routes`
    ");
}

#[test]
fn a_suite_that_came_with_a_report_is_held_against_the_same_rules() {
    let mut suite = Suite::load("canary").unwrap();
    assert!(suite.validate("report.json").is_ok());
    suite.models[1].arguments.insert("seed".to_owned(), 1.into());
    insta::assert_snapshot!(suite.validate("report.json").unwrap_err(),
        @"understand suite report.json: `suite.models.1.arguments.seed`: `seed` is set by this program");
    suite.lmcache.chunk_tokens = 0;
    insta::assert_snapshot!(suite.validate("report.json").unwrap_err(),
        @"understand suite report.json: `suite.lmcache.chunk_tokens`: `lmcache.chunk_tokens` must be at least 1");
}

#[test]
fn what_spreads_a_model_is_told_to_vllm_under_its_own_names() {
    let arguments = |settings: &str| {
        let text = include_str!("../../data/suites/canary.toml");
        let text = text.replacen("source =", &format!("{settings}\nsource ="), 1);
        let suite = Suite::parse(&text, "mine").unwrap();
        serde_json::to_string(&suite.models[0].parallel_arguments()).unwrap()
    };
    assert_eq!(arguments(""), "{}");
    assert_eq!(arguments("tensor_parallel_size = 2"), r#"{"tensor_parallel_size":2}"#);
    assert_eq!(arguments("pipeline_parallel_size = 3"), r#"{"pipeline_parallel_size":3}"#);
    assert_eq!(arguments("data_parallel_size = 4"), r#"{"data_parallel_size":4}"#);
    let backend = arguments("distributed_executor_backend = \"ray\"");
    assert_eq!(backend, r#"{"distributed_executor_backend":"ray"}"#);
}
