use camino::Utf8Path;

use super::file::Described;
use super::*;
use crate::carrier::{Carrier, Here, Proof, RouteError, find_carrier, learn};
use crate::machine::DeviceKind;
use crate::model::Route;

const PLAIN: &str = include_str!("../../../docs/connectors/unchanged.toml");

fn parse(text: &str) -> Result<Described, RouteError> {
    Described::parse(text, "mine.toml", |name| Ok(format!("# {name}")))
}

fn refused(before: &str, after: &str) -> String {
    assert!(PLAIN.contains(before));
    parse(&PLAIN.replacen(before, after, 1)).unwrap_err().to_string()
}

#[test]
fn every_embedded_description_is_right_and_has_a_name_of_its_own() {
    let mut names: Vec<String> = embedded().map(|described| described.name().to_owned()).collect();
    names.sort();
    let expected = [
        "example",
        "mp+failing",
        "mp+fs-native",
        "mp+late",
        "mp+s3",
        "mp+unreadable",
        "mp+valkey",
        "multi",
        "nixl",
        "offload",
        "offload+fs",
        "simple-offload",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_mistake_is_told_with_its_place() {
    let process = "[[processes]]\nname = \"server\"\ncommand = [\"server\"]\n[hits]";
    let late = process
        .replace("[hits]", "ready = \"http://\"\nlate = { stopped_ms = 9000, running_ms = 1 }\n[hits]");
    for (before, after, expected) in [
        ("[hits]", &*late, "line 14, column 1: it must be stopped for 1 to 5000 ms and run for 1 ms or more"),
        ("{folder}", "{flder}", "line 8, column 7: `{flder}` is no place; there are {folder}, {port}"),
        ("asked_less = 2", "asked_less = 0", "line 13, column 1: `asked_less` is below `stored_less`"),
        ("unchanged.py", "un-changed.py", "line 6, column 1: \"un-changed.py\" is no name of a Python file"),
        ("name = \"unchanged\"", "name = \"all\"", "line 1, column 1: \"all\" is no name of letters"),
        ("unit = \"block\"", "unit = \"token\"", "TOML parse error at line 11, column 8\n"),
        ("found = \"whole\"", "fond = \"whole\"", "TOML parse error at line 14, column 1\n"),
        ("[hits]", "settings.kv_role = \"kv_both\"\n[hits]", "line 10, column 10: it is what `class`"),
        ("topology =", "loads_fail = true\ntopology =", "line 3, column 1: nothing counts loads that fail"),
        ("[hits]", "prefix_caching = \"read\"\n[hits]", "TOML parse error at line 10, column 18\n"),
        ("[hits]", process, "line 10, column 1: nothing tells when it is ready"),
        (
            "[hits]",
            "settings.kv_load_failure_policy = \"recompute\"\n[hits]",
            "line 10, column 10: vLLM counts as",
        ),
        ("[hits]", "[tier]\nname = \"fs\"\nadapter = {}\n[hits]", "line 10, column 2: it needs either"),
        ("[hits]", "[hits]\nrest = true", "line 11, column 1: tokens that `stored_less` leaves out"),
    ] {
        let said = refused(before, after);
        let expected = format!("understand connector mine.toml: {expected}");
        assert!(said.starts_with(&expected), "{said}");
    }
}

#[test]
fn what_nobody_would_act_upon_is_refused() {
    let same_engine = PLAIN.replace("another-engine", "same-engine");
    let late = "late = { stopped_ms = 9, running_ms = 9 }";
    let said = |text: &str| parse(text).unwrap_err().to_string();
    let process = |more: &str| {
        format!("[[processes]]\nname = \"server\"\ncommand = [\"server\", \"{{port}}\", {more}\n[hits]")
    };
    for (text, expected) in [
        (
            same_engine.replace("[hits]", "[load]\nrole = \"kv_consumer\"\n[hits]"),
            "line 10, column 2: with `same-engine`",
        ),
        (
            same_engine.replace("{folder}", "{folder}/{side}"),
            "line 8, column 7: `{side}` stands for nothing here",
        ),
        (
            same_engine.replace("[hits]", &process(&format!("]\n{late}"))),
            "line 13, column 1: all is stored before",
        ),
        (
            PLAIN.replace("[hits]", &process("\"{side}\"]")),
            "line 12, column 1: `{side}` stands for nothing here",
        ),
    ] {
        let said = parse(&text).unwrap_err().to_string();
        assert!(said.starts_with(&format!("understand connector mine.toml: {expected}")), "{said}");
    }
    assert!(parse(&PLAIN.replace("{folder}", "{folder}/{side}")).is_ok());
    let handed = PLAIN.replace("another-engine\"", "producer-and-consumer\"\nsettle_seconds = 3");
    assert!(
        said(&handed).ends_with(
            "line 4, column 1: nobody waits so long: what is stored is counted or handed over here"
        )
    );
    let tier = "name = \"mine\"\ndescription = \"d\"\ntopology = \"another-engine\"\n[tier]\nname = \"fs\"\n\
                adapter = { type = \"fs\", base_path = \"{folder}\" }\n";
    assert!(parse(tier).is_ok());
    for (more, expected) in [
        ("[hits]\nrest = true\n", "LMCache's connector stores and serves by a rule of its own"),
        ("unreadable_each = 3\n", "loads then fail, which `loads_fail = true` has to say"),
    ] {
        assert!(said(&format!("{tier}{more}")).ends_with(expected), "{}", said(&format!("{tier}{more}")));
    }
    assert!(said(&tier.replace("[tier]", "settle_seconds = 3\n[tier]")).contains("nobody waits so long"));
    for name in ["PYTHONPATH", "OMP_NUM_THREADS", "KV_WORKER_LETTERS"] {
        for place in ["variables", "store.variables"] {
            let place = if place == "variables" { "[connector." } else { "[" }.to_owned() + place;
            let text = PLAIN.replace("[hits]", &format!("{place}]\n{name} = \"7\"\n[hits]"));
            assert!(
                said(&text).contains("the program sets it, the same for every engine"),
                "{}",
                said(&text)
            );
        }
    }
}

#[test]
fn whatever_a_description_says_and_each_line_of_its_code_changes_the_key() {
    let plain = parse(PLAIN).unwrap().content();
    let other = |before: &str, after: &str| {
        assert!(PLAIN.contains(before));
        parse(&PLAIN.replacen(before, after, 1)).unwrap().content()
    };
    assert_eq!(plain, other("a folder of safetensors", "words for people"));
    assert_ne!(plain, other("UnchangedConnector", "OtherConnector"));
    assert_ne!(plain, other("{folder}", "{folder}/deeper"));
    assert_ne!(plain, other("asked_less = 2", "asked_less = 3"));
    assert_ne!(plain, other("another-engine", "same-engine"));
    assert_ne!(plain, other("[hits]", "served_from = \"disk\"\n[hits]"));
    assert_ne!(plain, other("[hits]", "prefix_caching = \"unread\"\n[hits]"));
    let code = Described::parse(PLAIN, "mine.toml", |_| Ok("# another".to_owned())).unwrap().content();
    assert_ne!(plain, code);
}

#[test]
fn a_file_is_learnt_once_and_no_other_carrier_may_have_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| Utf8Path::from_path(folder.path()).unwrap().join(name);
    fs_err::write(path("unchanged.py"), "").unwrap();
    fs_err::write(path("one.toml"), PLAIN.replace("name = \"unchanged\"", "name = \"learnt\"")).unwrap();
    assert_eq!(learn(&path("one.toml")).unwrap(), Route::named("learnt"));
    assert_eq!(learn(&path("one.toml")).unwrap(), Route::named("learnt"));
    assert!(!find_carrier(Route::named("learnt")).unwrap().needs_lmcache());
    fs_err::write(path("two.toml"), PLAIN.replace("name = \"unchanged\"", "name = \"mp+fs\"")).unwrap();
    let taken = learn(&path("two.toml")).unwrap_err();
    assert!(taken.to_string().ends_with("there is another route mp+fs"), "{taken}");
    let absent = learn(&path("three.toml")).unwrap_err();
    assert!(matches!(absent, RouteError::Unreadable { .. }));
}

#[test]
fn a_connector_with_several_places_is_proven_by_what_vllm_counts_of_one() {
    let proof = |name: &str| find_carrier(Route::named(name)).unwrap().proof();
    assert_eq!(proof("offload+fs"), Proof::EngineSource("disk"));
    assert_eq!(proof("offload"), Proof::EngineCounters);
    let nowhere = refused("[hits]", "served_from = \"\"\n[hits]");
    assert!(nowhere.ends_with("line 10, column 1: the place has no name"), "{nowhere}");
}

#[test]
fn servers_of_a_tier_load_whole_chunks_and_of_another_connector_nothing_is_known() {
    let whole = |name: &str| find_carrier(Route::named(name)).unwrap().loads_whole_chunks();
    assert_eq!(["mp+s3", "mp+valkey", "example", "nixl"].map(whole), [true, true, false, false]);
}

#[test]
fn what_cannot_run_here_says_so_before_anything_is_started() {
    let here = |device| Here { environment: None, redis: None, device };
    let of = |name: &str| find_carrier(Route::named(name)).unwrap();
    let refused = of("offload").admit(&here(DeviceKind::Cpu)).unwrap_err().to_string();
    assert_eq!(refused, "run it on cpu: vLLM's OffloadingConnector copies between a GPU and the host");
    assert!(of("offload").admit(&here(DeviceKind::Cuda)).is_ok());
    assert!(of("example").admit(&here(DeviceKind::Cpu)).is_ok());
    assert!(of("simple-offload").admit(&here(DeviceKind::Cuda)).is_ok());
    let process = "[[processes]]\nname = \"server\"\ncommand = [\"no-such-program\", \"{port}\"]\n[hits]";
    let lacking = parse(&PLAIN.replacen("[hits]", process, 1)).unwrap();
    let refused = lacking.admit(&here(DeviceKind::Cpu)).unwrap_err();
    assert_eq!(refused.to_string(), "find the program \"no-such-program\" on PATH or in the environment");
}
