//! A depot that runners share: what each takes from it, what it puts there, and what a depot that fails costs.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kv_correctness::report::Report;

use crate::lab::{Ended, Lab, PYTHON};

const SECRET: &str = "a-secret-that-nobody-may-read";

/// A machine with a cache of its own.
pub(crate) struct Runner<'a> {
    lab: &'a Lab,
    name: &'static str,
    depot: String,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(lab: &'a Lab, name: &'static str, depot: &str) -> Self {
        Self { lab, name, depot: depot.to_owned() }
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = self.lab.driver(arguments);
        command
            .env("KV_CORRECTNESS_CACHE", self.lab.path(&format!("cache-{}", self.name)))
            .env("KV_CORRECTNESS_DEPOT", &self.depot)
            .env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_REGION", "us-east-1");
        command
    }

    fn run_with(&self, arguments: &str, variables: &[(&str, &str)]) -> Ended {
        let out = format!("out-{}", self.name);
        let run = format!("run --suite suite.toml --device cpu --out {out} {arguments}");
        let mut command = self.command(&run);
        command.envs(variables.iter().copied());
        self.lab.end(command)
    }

    fn run(&self, arguments: &str) -> Ended {
        self.run_with(arguments, &[])
    }

    pub(crate) fn report(&self) -> Report {
        let text = fs::read_to_string(self.lab.path(&format!("out-{}/report.json", self.name))).unwrap();
        let mut report: Report = serde_json::from_str(&text).unwrap();
        report.findings.iter_mut().for_each(|finding| finding.logs.clear());
        report
    }

    fn other(&self, arguments: &str) -> Ended {
        self.lab.end(self.command(arguments))
    }
}

/// Stages by what became of them, in words: `done`, `re-used`, `re-used from the depot`.
pub(crate) fn fates(ended: &Ended) -> BTreeMap<String, String> {
    let fate = |line: &str| {
        let (stage, fate) = line.split_once(": ")?;
        let fate = fate.split(" in ").next()?;
        let known = fate == "done" || fate.starts_with("re-used");
        known.then(|| (stage.split_whitespace().next().unwrap_or_default().to_owned(), fate.to_owned()))
    };
    ended.err.lines().filter_map(fate).collect()
}

pub(crate) fn of_fates<'a>(fates: &'a BTreeMap<String, String>, fate: &str) -> Vec<&'a str> {
    fates.iter().filter(|(_, seen)| *seen == fate).map(|(stage, _)| stage.as_str()).collect()
}

fn folder_depot(lab: &Lab) -> String {
    format!("file://{}", lab.path("depot"))
}

/// Files below a folder, by path.
fn files(folder: &Utf8Path) -> BTreeMap<Utf8PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in folder.read_dir_utf8().into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(entry.path()));
        } else {
            found.insert(entry.path().to_owned(), fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// The paths in a depot's folder of what has this in its path.
fn objects(lab: &Lab, words: &str) -> Vec<Utf8PathBuf> {
    files(&lab.path("depot")).into_keys().filter(|path| path.as_str().contains(words)).collect()
}

#[test]
fn a_runner_with_an_empty_cache_computes_nothing_that_another_one_computed() {
    let lab = Lab::new();
    let (first, second) =
        (Runner::new(&lab, "a", &folder_depot(&lab)), Runner::new(&lab, "b", &folder_depot(&lab)));
    let ended = first.run("");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert_eq!(of_fates(&fates(&ended), "done").len(), 6, "{}", ended.err);
    let (ended, steps) = lab.steps_of(|| second.run(""));
    assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
    assert_eq!(of_fates(&fates(&ended), "re-used from the depot").len(), 6, "{}", ended.err);
    assert_eq!(first.report(), second.report());
    let again = second.run("");
    assert_eq!(of_fates(&fates(&again), "re-used").len(), 6, "{}", again.err);
}

#[test]
fn another_lmcache_on_another_runner_runs_the_cached_stage_alone() {
    let lab = Lab::new();
    let depot = folder_depot(&lab);
    assert_eq!(Runner::new(&lab, "a", &depot).run("").code, 0);
    fs::remove_dir_all(lab.path("env/lib/python3.11/site-packages/lmcache-0.5.6.dist-info")).unwrap();
    lab.install("lmcache-0.5.7", "package/__init__.py,sha256=1,1\n");
    let (ended, steps) = lab.steps_of(|| Runner::new(&lab, "b", &depot).run(""));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let fates = fates(&ended);
    // The fake engine answers the same, so that even the comparison is there.
    assert_eq!(of_fates(&fates, "done"), ["cached"]);
    let brought = of_fates(&fates, "re-used from the depot");
    assert_eq!(brought, ["baseline", "compare", "control", "extract", "prompts"]);
    let started: Vec<&String> = steps.iter().filter(|step| step.starts_with("start ")).collect();
    assert_eq!(started, ["start server", "start cached"]);
}

#[test]
fn what_did_not_get_there_once_comes_to_the_depot_with_the_next_run() {
    let lab = Lab::new();
    let (alone, shared) = (Runner::new(&lab, "a", ""), Runner::new(&lab, "a", &folder_depot(&lab)));
    assert_eq!(alone.run("").code, 0);
    assert_eq!(shared.run("").code, 0);
    assert_eq!(objects(&lab, "/artifacts/").len(), 6);
}

#[test]
fn a_depot_that_may_only_be_read_serves_and_stays_as_it_is() {
    let lab = Lab::new();
    let depot = folder_depot(&lab);
    assert_eq!(Runner::new(&lab, "a", &depot).run("--subjects 1").code, 0);
    let before = files(&lab.path("depot"));
    let ended = Runner::new(&lab, "b", &depot).run("--depot-read-only");
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(of_fates(&fates(&ended), "re-used from the depot"), ["extract"]);
    assert_eq!(files(&lab.path("depot")), before);
    let missing = format!("file://{}", lab.path("nowhere"));
    let ended = Runner::new(&lab, "c", &missing).run("--depot-read-only");
    assert!(lab.error(&ended).contains("use the depot file://[LAB]/nowhere"), "{}", ended.err);
    assert!(!lab.path("nowhere").exists());
}

#[test]
fn what_is_wrong_in_a_depot_is_refused_told_and_put_anew() {
    type Damage = fn(&Utf8Path);
    let cut: Damage = |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let turned: Damage = |path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[0] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let gone: Damage = |path| fs::remove_file(path).unwrap();
    for (place, damage, words) in [
        ("/parts/", cut, "bytes instead of"),
        ("/parts/", turned, "holds other bytes than its name says"),
        ("/parts/", gone, "is not there"),
        ("/artifacts/", cut, "malformed"),
        ("/artifacts/", turned, "malformed"),
    ] {
        let lab = Lab::finished();
        let depot = folder_depot(&lab);
        let first = Runner::new(&lab, "first", &depot);
        fs::rename(lab.path("cache"), lab.path("cache-first")).unwrap();
        assert_eq!(first.run("").code, 0);
        let sound = files(&lab.path("depot"));
        for path in objects(&lab, place) {
            damage(&path);
        }
        let ended = Runner::new(&lab, "b", &depot).run("");
        assert_eq!(ended.code, 0, "{}", ended.err);
        assert_eq!(of_fates(&fates(&ended), "done").len(), 6, "{words}: {}", ended.err);
        assert!(ended.err.contains(words) && ended.err.contains("it is not used"), "{words}: {}", ended.err);
        let mended = Runner::new(&lab, "c", &depot).run("");
        assert_eq!(of_fates(&fates(&mended), "re-used from the depot").len(), 6, "{words}: {}", mended.err);
        // The fake engine repeats itself, so what is put anew is what was there.
        assert_eq!(files(&lab.path("depot")).len(), sound.len());
    }
}

#[test]
fn a_depot_that_does_not_answer_costs_warnings_and_no_verdict_and_shows_no_secret() {
    let lab = Lab::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{free}");
    let runner = Runner::new(&lab, "a", "s3://bucket/some/where");
    let ended = runner
        .run_with("--depot-patience 1 --verbose", &[("AWS_ENDPOINT_URL", &endpoint), ("RUST_LOG", "trace")]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let told: Vec<&str> = ended.err.lines().filter(|line| line.contains("warning: the depot")).collect();
    assert_eq!(told.len(), 3, "{}", ended.err);
    assert!(told[2].ends_with("this run goes on without it"), "{}", told[2]);
    let log = fs::read_to_string(lab.path("out-a/log.jsonl")).unwrap();
    for text in [&ended.out, &ended.err, &log] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[test]
fn a_depot_in_a_folder_needs_no_certificates() {
    let lab = Lab::new();
    let runner = Runner::new(&lab, "a", &folder_depot(&lab));
    let ended = runner.run_with("", &[("SSL_CERT_FILE", "/missing.pem")]);
    assert_eq!(ended.code, 0, "{}", ended.err);
}

#[test]
fn two_who_make_the_same_at_the_same_time_both_end_and_one_wins() {
    let lab = Lab::new();
    let depot = folder_depot(&lab);
    let ended: Vec<Ended> = ["a", "b", "c"]
        .map(|name| {
            let runner = Runner::new(&lab, name, &depot);
            let arguments = format!("run --suite suite.toml --device cpu --out out-{name}");
            lab.start(runner.command(&arguments))
        })
        .into_iter()
        .map(crate::lab::Running::wait)
        .collect();
    for ended in &ended {
        assert_eq!(ended.code, 0, "{}", ended.err);
    }
    assert_eq!(objects(&lab, "/artifacts/").len(), 6);
    let last = Runner::new(&lab, "d", &depot).run("");
    assert_eq!(of_fates(&fates(&last), "re-used from the depot").len(), 6, "{}", last.err);
}

#[test]
fn cleaning_keeps_what_younger_artifacts_are_made_from() {
    let lab = Lab::new();
    let depot = folder_depot(&lab);
    let runner = Runner::new(&lab, "a", &depot);
    assert_eq!(runner.run("").code, 0);
    let age = |path: &Utf8Path, days: u64| {
        let then = std::time::SystemTime::now() - std::time::Duration::from_hours(24 * days);
        fs::OpenOptions::new().write(true).open(path).unwrap().into_file().set_modified(then).unwrap();
    };
    for path in objects(&lab, "") {
        age(&path, 40);
    }
    for path in objects(&lab, "/cached/") {
        age(&path, 1);
    }
    let listed = runner.other("depot ls");
    assert_eq!(listed.out.lines().count(), 7, "{}", listed.out);
    assert!(listed.out.contains("40 days ago") && listed.out.contains("tiny mp"), "{}", listed.out);
    let before = files(&lab.path("depot"));
    let would = runner.other("depot gc --older-than 30 --dry-run");
    assert_eq!(files(&lab.path("depot")), before);
    let gone = runner.other("depot gc --older-than 30");
    assert_eq!(gone.out.replace("removed:", "would go:"), would.out);
    let mut left: Vec<String> = objects(&lab, "/artifacts/")
        .iter()
        .map(|path| path.parent().unwrap().file_name().unwrap().to_owned())
        .collect();
    left.sort();
    // The load pass may end early, so it is made from questions and baseline as well.
    assert_eq!(left, ["baseline", "cached", "extract", "prompts"]);
    let ended = Runner::new(&lab, "b", &depot).run("");
    assert_eq!(of_fates(&fates(&ended), "done"), ["compare", "control"], "{}", ended.err);
    assert_eq!(runner.other("depot gc --older-than 0").code, 0);
    assert_eq!(objects(&lab, "/kv-correctness-depot-1/"), Vec::<Utf8PathBuf>::new());
}

#[test]
fn explain_says_whose_artifacts_could_serve_and_what_keeps_the_others_from_it() {
    let lab = Lab::new();
    let depot = folder_depot(&lab);
    assert_eq!(Runner::new(&lab, "a", &depot).run("").code, 0);
    let other = Runner::new(&lab, "b", &depot);
    let explained = other.other("explain --suite suite.toml --device cpu");
    assert_eq!(explained.code, 0, "{}", explained.err);
    assert_eq!(explained.out.matches("re-used from the depot").count(), 6, "{}", explained.out);
    assert!(!lab.path("cache-b/store-1/entries/baseline").exists(), "nothing is brought");
    lab.edit("suite.toml", "seed = 42", "seed = 7");
    let explained = other.other("explain baseline --suite suite.toml --device cpu");
    let words = lab.redact(&explained.out);
    assert!(
        words.contains("in the depot: baseline [SHORT] of [DEVICE], just now, does not serve, since"),
        "{words}"
    );
    assert!(words.contains("/parameters/engine/seed changed from 42 to 7"), "{words}");
}

/// A process that plays an object store, and is started again when it dies.
struct Server {
    child: Child,
    arguments: Vec<String>,
}

impl Server {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        lab.write("s3.py", include_str!("fake/s3.py"));
        let arguments: Vec<String> = std::iter::once(lab.path("s3.py").into_string())
            .chain(arguments.iter().map(|argument| (*argument).to_owned()))
            .collect();
        let mut server = Self { child: Self::spawn(&arguments), arguments };
        server.keep_up();
        server
    }

    fn spawn(arguments: &[String]) -> Child {
        let mut command = Command::new(&*PYTHON);
        command
            .args(["-ISu"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .stdin(Stdio::null());
        command.spawn().unwrap()
    }

    /// Starts it again if it has ended, and waits until it listens.
    fn keep_up(&mut self) {
        let address = format!("127.0.0.1:{}", self.arguments[1]);
        for _ in 0..1000 {
            if self.child.try_wait().unwrap().is_some() {
                self.child = Self::spawn(&self.arguments);
            }
            if std::net::TcpStream::connect(&address).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("the object store does not listen");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs with depots that misbehave until so many faults were met: each run ends with its verdict, and with the right one.
fn survive_faults(lab: &Lab, place: &str, faults: usize, seed: u64) {
    let port = free_port();
    let (counter, endpoint) = (lab.path("faults.log"), format!("http://127.0.0.1:{port}"));
    let (port, seed_words) = (port.to_string(), seed.to_string());
    let met = || fs::read_to_string(&counter).unwrap_or_default().lines().count();
    let variables = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("KV_CORRECTNESS_DEPOT_PATIENCE", "1")];
    let sound = Runner::new(lab, "sound", "").run("");
    assert_eq!(sound.code, 0, "{}", sound.err);
    let expected = Runner::new(lab, "sound", "").report();
    let mut misbehaving = Server::start(lab, &[&port, place, &seed_words, "0.25", counter.as_str()]);
    let mut round = 0;
    while met() < faults {
        round += 1;
        assert!(round < 200, "{} faults in {round} rounds", met());
        // Two writers at a time, the first of them with an empty cache in every round.
        let names = ["x", "y"];
        if lab.path("cache-x").exists() {
            fs::remove_dir_all(lab.path("cache-x")).unwrap();
        }
        let mut running: Vec<_> = names
            .iter()
            .map(|name| {
                let runner = Runner::new(lab, name, "s3://bucket/fleet");
                let mut command =
                    runner.command(&format!("run --suite suite.toml --device cpu --out out-{name}"));
                command.envs(variables);
                (Runner::new(lab, name, ""), lab.start(command))
            })
            .collect();
        while running.iter_mut().any(|(_, running)| running.is_running()) {
            misbehaving.keep_up();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        for (runner, running) in running {
            let ended = running.wait();
            assert_eq!(ended.code, 0, "{}", ended.err);
            let report = runner.report();
            assert_eq!(report.findings, expected.findings, "a fault of the depot changed a result");
        }
    }
    let kinds: BTreeMap<String, usize> =
        fs::read_to_string(&counter).unwrap().lines().fold(BTreeMap::new(), |mut kinds, kind| {
            *kinds.entry(kind.to_owned()).or_default() += 1;
            kinds
        });
    assert_eq!(kinds.len(), 9, "every kind of fault was met: {kinds:?}");
    drop(misbehaving);
}

/// Once all is well, what was left wrong or undone is put right by the next runs, and then serves a machine without anything.
fn serve_after_faults(lab: &Lab, place: &str) {
    let port = free_port().to_string();
    let endpoint = format!("http://127.0.0.1:{port}");
    let _behaving = Server::start(lab, &[&port, place]);
    // The object store is a process of the lab's, and stays.
    let end = |name: &'static str, arguments: &str| {
        let mut command = Runner::new(lab, name, "s3://bucket/fleet").command(arguments);
        command.env("AWS_ENDPOINT_URL", &endpoint);
        lab.start(command).wait()
    };
    let run =
        |name: &'static str| end(name, &format!("run --suite suite.toml --device cpu --out out-{name}"));
    for name in ["x", "y", "z"] {
        assert_eq!(run(name).code, 0);
    }
    let served = run("w");
    assert_eq!(of_fates(&fates(&served), "re-used from the depot").len(), 6, "{}", served.err);
    let listed = end("w", "depot ls");
    assert!(listed.out.contains("\n6 artifacts, "), "nothing is there twice: {}", listed.out);
    assert!(!listed.out.contains("damaged"), "{}", listed.out);
}

#[test]
fn faults_of_an_object_store_change_no_verdict_and_end() {
    let lab = Lab::new();
    let place = lab.path("objects").into_string();
    survive_faults(&lab, &place, 40, 1);
}

#[test]
#[ignore = "takes minutes: 200 faults; KV_CORRECTNESS_TEST_S3=http://127.0.0.1:PORT names a real server to put behind them"]
fn two_hundred_faults_before_a_real_object_store_lose_nothing() {
    let lab = Lab::new();
    let place = std::env::var("KV_CORRECTNESS_TEST_S3").unwrap_or_else(|_| lab.path("objects").into_string());
    survive_faults(&lab, &place, 200, 2);
    serve_after_faults(&lab, &place);
}
