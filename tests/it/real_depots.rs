//! Depots on real servers of object stores, which tests/depot-servers.sh starts. The engines are fakes.

use std::process::Command;

use camino::Utf8Path;
use fs_err as fs;

use crate::depot::{Runner, fates, of_fates};
use crate::lab::{Ended, Lab};

/// The depot that this test may fill and empty, with the variables of its credentials.
struct Place {
    address: String,
    variables: Vec<(String, String)>,
}

impl Place {
    fn from_environment() -> Self {
        let of = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("this test needs {name}"));
        let words = of("KV_CORRECTNESS_TEST_VARIABLES");
        let variables = words.split_whitespace().map(|word| word.split_once('=').expect("NAME=VALUE"));
        Self {
            address: of("KV_CORRECTNESS_TEST_DEPOT"),
            variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        }
    }

    fn end(&self, lab: &Lab, name: &'static str, arguments: &str) -> Ended {
        let mut command: Command = Runner::new(lab, name, &self.address).command(arguments);
        command.envs(self.variables.iter().cloned());
        lab.end(command)
    }

    fn run(&self, lab: &Lab, name: &'static str) -> Ended {
        let ended = self.end(lab, name, &format!("run --suite suite.toml --device cpu --out out-{name}"));
        assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
        assert!(!ended.err.contains("warning: the depot"), "{}", ended.err);
        ended
    }
}

#[test]
#[ignore = "needs a real server: tests/depot-servers.sh starts one and runs this"]
fn a_real_object_store_serves_a_second_runner_and_is_listed_and_cleaned() {
    let (lab, place) = (Lab::new(), Place::from_environment());
    let listed = |words: &str| {
        let listed = place.end(&lab, "a", "depot ls");
        assert!(
            listed.out.contains(words) && !listed.out.contains("damaged"),
            "{}{}",
            listed.out,
            listed.err
        );
    };
    listed("0 artifacts, ");
    assert_eq!(of_fates(&fates(&place.run(&lab, "a")), "done").len(), 6);
    listed("\n6 artifacts, ");
    let (ended, steps) = lab.steps_of(|| place.run(&lab, "b"));
    assert_eq!(of_fates(&fates(&ended), "re-used from the depot").len(), 6, "{}", ended.err);
    assert_eq!(steps, Vec::<String>::new());
    let report = |name| Runner::new(&lab, name, "").report();
    assert_eq!(report("a"), report("b"));
    // Another LMCache takes all that is made without it.
    let packages = Utf8Path::new("env/lib/python3.11/site-packages");
    fs::remove_dir_all(lab.path(packages.join("lmcache-0.5.6.dist-info").as_str())).unwrap();
    lab.install("lmcache-0.5.7", "package/__init__.py,sha256=1,1\n");
    let ended = place.run(&lab, "c");
    assert_eq!(of_fates(&fates(&ended), "done"), ["cached"], "{}", ended.err);
    // Two at a time make the same: both end, and it is there once.
    lab.edit("suite.toml", "seed = 42", "seed = 7");
    let start = |name| {
        let mut command = Runner::new(&lab, name, &place.address)
            .command(&format!("run --suite suite.toml --device cpu --out out-{name}"));
        command.envs(place.variables.iter().cloned());
        lab.start(command)
    };
    for running in ["d", "e"].map(start) {
        let ended = running.wait();
        assert_eq!(ended.code, 0, "{}", ended.err);
        assert!(!ended.err.contains("warning: the depot"), "{}", ended.err);
    }
    let before = place.end(&lab, "a", "depot ls").out;
    let would = place.end(&lab, "a", "depot gc --older-than 0 --dry-run");
    assert_eq!((would.code, place.end(&lab, "a", "depot ls").out), (0, before), "{}", would.err);
    let gone = place.end(&lab, "a", "depot gc --older-than 0");
    assert_eq!(gone.out.replace("removed:", "would go:"), would.out, "{}", gone.err);
    listed("0 artifacts, ");
}
