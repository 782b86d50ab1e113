//! Routes by which KV reaches another engine: which tier must serve, and what happens where a route cannot run or breaks.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kv_correctness::comparison::{Service, Verdict};
use kv_correctness::report::Report;

use crate::lab::Lab;

const ALL: &str = "--route mp,mp+fs,mp+redis,mp+p2p";

/// A lab whose environment has the packages of peers.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.install("nixl-1.5.1", "package/__init__.py,sha256=0,1\n");
    lab
}

/// Each finding's route, verdict, tier that served, tokens from it and tokens predicted.
fn tiers(report: &Report) -> Vec<(&'static str, Verdict, String, u64, u64)> {
    let tier = |finding: &kv_correctness::report::Finding| {
        let exercised = &finding.comparison.exercised;
        let tier = exercised.server.as_ref().unwrap().tier.clone().unwrap();
        let judged = finding.judgement.verdict;
        (finding.route.name(), judged, tier.name, tier.second_tier_tokens, exercised.load.predicted_tokens)
    };
    report.findings.iter().map(tier).collect()
}

#[test]
fn on_each_remote_route_another_engine_is_served_from_the_routes_own_tier() {
    let lab = lab();
    let ended = lab.run("", ALL);
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let served = tiers(&lab.report());
    let names: Vec<(&str, Verdict, &str)> =
        served.iter().map(|(route, verdict, tier, ..)| (*route, *verdict, tier.as_str())).collect();
    assert_eq!(
        names,
        [
            ("mp", Verdict::Equivalent, "memory"),
            ("mp+fs", Verdict::Equivalent, "fs"),
            ("mp+redis", Verdict::Equivalent, "resp"),
            ("mp+p2p", Verdict::Equivalent, "p2p"),
        ]
    );
    assert_eq!(served[0].3, 0, "memory alone serves `mp`");
    assert!(served[1..].iter().all(|(_, _, _, tokens, predicted)| (1..=*predicted).contains(tokens)));
    let steps: Vec<String> = lab.steps().into_iter().filter(|step| !step.starts_with("clear")).collect();
    let remote = steps.iter().position(|step| step == "start redis").unwrap();
    insta::assert_snapshot!(steps[remote..].join("\n"), @r"
    start redis
    start server
    start cached
    store 8
    store 16
    start server
    start cached
    load 8
    cut 1
    load 16
    cut 5
    start coordinator
    start server
    start cached
    store 8
    store 16
    start server
    start cached
    load 8
    cut 1
    load 16
    cut 5
    ");
    insta::assert_snapshot!(ended.out[ended.out.find("\n      mp").unwrap()..], @r"

          mp            mp+fs         mp+redis      mp+p2p
    tiny  equivalent    equivalent    equivalent    equivalent

    verdict: equivalent (exit code 0)
    log: out/log.jsonl
    ");
    let left = lab.path("cache/store-1/entries/cached").read_dir_utf8().unwrap();
    let notes = left.flat_map(|entry| entry.unwrap().path().join("notes").read_dir_utf8().unwrap());
    let names: Vec<String> = notes.map(|note| note.unwrap().file_name().to_owned()).collect();
    assert!(
        names.iter().all(|name| Utf8Path::new(name).extension() == Some("log")),
        "a tier's folder is left: {names:?}"
    );
}

#[test]
fn a_server_that_clears_its_memory_by_the_older_name_is_cleared() {
    let lab = Lab::new();
    let (ended, steps) = lab.steps_of(|| lab.run("older@server", ""));
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert!(steps.iter().any(|step| step.starts_with("clear ")), "{steps:?}");
}

#[test]
fn a_route_served_from_another_tier_is_not_exercised() {
    let lab = lab();
    let ended = lab.run("detour@server", "--route mp+fs");
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    let report = lab.report();
    assert_eq!(report.findings[0].comparison.exercised.service, Service::WrongTier);
    insta::assert_snapshot!(report.findings[0].judgement.reason, @"The KV did not travel this route (at least 2656 tokens were to come from the tier `fs`; the server counts 0 tokens from behind its memory, in 0 loads). The answers say nothing about it.");
}

#[test]
fn what_a_store_pass_is_served_from_its_own_tier_is_no_chunk_that_is_still_to_come() {
    let lab = lab();
    let ended = lab.run("again@server", "--route mp+fs");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
}

#[test]
fn a_request_that_meets_a_chunk_which_another_one_is_loading_is_served_less_and_that_is_told() {
    let lab = lab();
    let ended = lab.run("meet@server", "--route mp+fs");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let report = lab.report();
    assert_eq!(report.findings[0].comparison.exercised.service, Service::Contended);
    assert!(ended.out.contains("1 chunks were just being loaded for another request"), "{}", ended.out);
}

#[test]
fn a_route_that_cannot_run_here_is_told_and_the_others_go_on() {
    let lab = lab();
    fs::remove_file(lab.path("bin/redis-server")).unwrap();
    let mut command = lab.driver(&format!("run --suite suite.toml --device cpu --out out {ALL},in-process"));
    command.env("FAKE_FAULTS", "").env("PATH", lab.path("bin"));
    let ended = lab.end(command);
    assert_eq!(ended.code, 4, "the worst verdict counts: {}{}", ended.err, ended.out);
    insta::assert_snapshot!(ended.out[ended.out.find("\n      mp").unwrap()..], @"

          mp            mp+fs         mp+redis      mp+p2p        in-process
    tiny  equivalent    equivalent    not run       equivalent    not exercised

    tiny over mp+redis: not run
      why          failed to find `redis-server` on PATH
      next         install it (Debian: `apt-get install redis-server`), or name a server with `--redis-url`

    verdict: not exercised, as far as it was run: 1 of 5 combinations of model and route cannot run here (exit code 4)
    log: out/log.jsonl
    ");

    let mut command = lab.driver("run --suite suite.toml --device cpu --out out --route mp,mp+redis");
    command.env("FAKE_FAULTS", "").env("PATH", lab.path("bin"));
    let ended = lab.end(command);
    assert_eq!(ended.code, 2, "equivalence on some routes is not what was asked for: {}", ended.out);
    assert!(ended.out.ends_with(
        "verdict: equivalent, as far as it was run: 1 of 2 combinations of model and route cannot run here (exit code 2)\nlog: out/log.jsonl\n"
    ), "{}", ended.out);
    assert_eq!(lab.report().not_run.len(), 1);
}

#[test]
fn a_single_route_that_cannot_run_here_is_an_error_with_what_mends_it() {
    let lab = lab();
    fs::remove_file(lab.path("bin/redis-server")).unwrap();
    let mut command = lab.driver("run --suite suite.toml --device cpu --out out --route mp+redis");
    command.env("FAKE_FAULTS", "").env("PATH", lab.path("bin"));
    insta::assert_snapshot!(lab.error(&lab.end(command)), @r"
    error: failed to run this route: find `redis-server` on PATH

    hint: install it (Debian: `apt-get install redis-server`), or name a server with `--redis-url`
    ");
}

#[test]
fn kv_that_does_not_fit_between_the_engines_is_refused_before_the_routes_engines_start() {
    for (route, tier) in
        [("mp+fs", "the disk of"), ("mp+redis", "the memory of"), ("mp+p2p", "the memory of")]
    {
        let lab = lab();
        // So many layers make two subjects take a terabyte, and so much memory admits each round of them.
        lab.edit("model/config.json", r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 350000"#);
        lab.edit("suite.toml", "kv_cache_gib = 1", "kv_cache_gib = 100000");
        lab.edit("suite.toml", "memory_gib = 1", "memory_gib = 100000");
        let message = lab.error(&lab.run("", &format!("--route {route}")));
        let start = format!("error: failed to run this route: fit the KV of all questions into {tier}");
        assert!(message.starts_with(&start), "{message}");
        assert!(message.ends_with("hint: ask fewer questions with `--subjects`, or make room"), "{message}");
        assert!(!lab.steps().contains(&"start server".to_owned()));
    }
}

#[test]
fn a_redis_server_that_dies_between_the_passes_is_an_error_in_time() {
    let lab = lab();
    insta::assert_snapshot!(lab.error(&lab.run("die@redis", "--route mp+redis")), @r"
    error: failed to keep the Redis server redis://127.0.0.1:[PORT] until the load pass is over: Connection refused (os error 111)

    hint: what loads from it may wait for ever, so the run was ended; was it killed, as for memory (`dmesg` tells)? its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/redis.log
    ");
    assert!(
        lab.path("cache/store-1/entries")
            .read_dir_utf8()
            .unwrap()
            .all(|stage| stage.unwrap().file_name() != "cached")
    );
}

/// As with LMCache 0.5.6, whose lookup never returns then.
#[test]
fn a_redis_server_that_dies_while_the_engine_waits_for_it_is_an_error_in_time() {
    let lab = lab();
    insta::assert_snapshot!(lab.error(&lab.run("vanish@redis hang@load", "--route mp+redis")), @r"
    error: failed to keep the Redis server redis://127.0.0.1:[PORT] until the load pass is over: Connection refused (os error 111)

    hint: what loads from it may wait for ever, so the run was ended; was it killed, as for memory (`dmesg` tells)? its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/redis.log
    ");
}

#[test]
fn a_redis_server_that_forgets_between_the_passes_is_not_exercised() {
    let lab = lab();
    let ended = lab.run("shared@store forget@redis", "--route mp+redis");
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    // The loading engine is served what it stored itself.
    assert_eq!(lab.report().findings[0].comparison.exercised.service, Service::UnderServed);
}

#[test]
fn a_peer_that_leaves_between_the_passes_is_an_error_in_time() {
    let lab = lab();
    insta::assert_snapshot!(lab.error(&lab.run("leave-peer@server", "--route mp+p2p")), @r"
    error: failed to keep the LMCache server that stored until the load pass is over: io: Connection refused (os error 111)

    hint: what loads from it may wait for ever, so the run was ended; was it killed, as for memory (`dmesg` tells)? its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/lmcache-server-store.log
    ");
}

/// A process that ends with this value.
struct Foreign(std::process::Child);

impl Drop for Foreign {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

/// A Redis server of somebody else's, which asks for a password.
fn foreign_redis(lab: &Lab) -> (Foreign, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(lab.path("bin/redis-server"));
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
    command.env("FAKE_LOG", lab.path("foreign.log")).env("FAKE_REDIS_PASSWORD", "hunter2");
    let child = Foreign(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    (child, format!("redis://127.0.0.1:{port}"))
}

fn connect(url: &str) -> redis::Connection {
    let (_, place) = url.split_once("//").unwrap();
    redis::Client::open(format!("redis://:hunter2@{place}")).unwrap().get_connection().unwrap()
}

fn set_value(url: &str, name: &str, value: &str) {
    redis::cmd("SET").arg(name).arg(value).exec(&mut connect(url)).unwrap();
}

fn names(url: &str) -> Vec<String> {
    let mut scan = redis::cmd("SCAN");
    scan.cursor_arg(0).arg("MATCH").arg("*");
    scan.iter(&mut connect(url)).unwrap().map(Result::unwrap).collect()
}

/// Every file below a folder, with its text.
fn walk(folder: &Utf8Path) -> Vec<(Utf8PathBuf, String)> {
    let mut files = Vec::new();
    for entry in folder.read_dir_utf8().unwrap() {
        let path = entry.unwrap().into_path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if let Ok(bytes) = fs::read(&path) {
            files.push((path, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    files
}

#[test]
fn a_redis_server_by_address_is_used_with_a_password_that_is_shown_nowhere() {
    let lab = lab();
    let (_foreign, url) = foreign_redis(&lab);
    let command = |password: &str| {
        let arguments =
            format!("run --suite suite.toml --device cpu --out out --route mp+redis --redis-url {url}");
        let mut command = lab.driver(&arguments);
        command.env("FAKE_FAULTS", "").env("KV_CORRECTNESS_REDIS_PASSWORD", password);
        command
    };
    let refused = lab.start(command("hunter1")).wait();
    insta::assert_snapshot!(lab.error(&refused), @r"
    error: failed to run this route: reach redis://127.0.0.1:[PORT]: Password authentication failed - AuthenticationFailed

    hint: is a Redis server running there, and is KV_CORRECTNESS_REDIS_PASSWORD its password?
    ");
    // A server lets in whoever names no password, and then refuses each command.
    let unknown = lab.start(command("")).wait();
    insta::assert_snapshot!(lab.error(&unknown), @r#"
    error: failed to run this route: reach redis://127.0.0.1:[PORT]: "NOAUTH": Authentication required.

    hint: is a Redis server running there, and is KV_CORRECTNESS_REDIS_PASSWORD its password?
    "#);
    assert!(
        !lab.steps().iter().any(|step| step.starts_with("start ") && step != "start redis"),
        "{:?}",
        lab.steps()
    );
    set_value(&url, "theirs", "kept");
    let ended = lab.start(command("hunter2")).wait();
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert_eq!(names(&url), ["theirs"], "what the run stored is deleted, and nothing else");
    let everything = walk(&lab.path(""));
    let leaks: Vec<_> =
        everything.iter().filter(|(_, text)| text.contains("hunter2")).map(|(path, _)| path).collect();
    assert!(leaks.is_empty() && !ended.err.contains("hunter2"), "{leaks:?}");
}

#[test]
fn what_is_no_redis_server_is_told_apart_from_one_that_is_not_there() {
    let lab = lab();
    let refuse = |port: u16| {
        let arguments =
            "run --suite suite.toml --device cpu --route mp+redis -q --redis-url redis://127.0.0.1";
        lab.error(&lab.end(lab.driver(&format!("{arguments}:{port}"))))
    };
    let web_server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = web_server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in web_server.incoming() {
            let mut connection = connection.unwrap();
            assert_ne!(connection.read(&mut [0; 64]).unwrap(), 0);
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n<html>").unwrap();
        }
    });
    insta::assert_snapshot!(refuse(port), @r"
    error: failed to run this route: reach redis://127.0.0.1:[PORT]: what answers there does not speak Redis

    hint: is a Redis server running there, and is KV_CORRECTNESS_REDIS_PASSWORD its password?
    ");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    insta::assert_snapshot!(refuse(free), @r"
    error: failed to run this route: reach redis://127.0.0.1:[PORT]: Connection refused (os error 111)

    hint: is a Redis server running there, and is KV_CORRECTNESS_REDIS_PASSWORD its password?
    ");
}

#[test]
fn a_redis_server_that_refuses_is_told_before_any_engine_starts() {
    let lab = lab();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let run = |routes: &str, url: &str| {
        lab.end(lab.driver(&format!(
            "run --suite suite.toml --device cpu --out out --route {routes} --redis-url {url}"
        )))
    };
    let (refused, steps) = lab.steps_of(|| run("mp+redis", &format!("redis://127.0.0.1:{free}")));
    assert!(lab.error(&refused).contains("Connection refused"), "{}", refused.err);
    assert_eq!(steps, Vec::<String>::new());
    let refused = lab.error(&run("mp+redis", "redis://[::1]:1"));
    assert!(refused.contains("reach redis://[::1]:1: ") && refused.contains("(os error "), "{refused}");
    // Beside a route that can run it is told first, and stands in the report.
    let both = run("mp,mp+redis", &format!("redis://127.0.0.1:{free}"));
    let told = both.err.find("mp+redis is not run: failed to ").unwrap();
    assert!(told < both.err.find("baseline").unwrap(), "{}", both.err);
    assert_eq!(both.code, 2, "{}", both.err);
}

#[test]
fn an_option_that_no_route_offers_is_refused_before_anything_starts() {
    let lab = lab();
    lab.edit("suite.toml", "memory_gib = 1", "memory_gib = 1\noptions = { serde = \"fp8\" }");
    insta::assert_snapshot!(lab.error(&lab.run("", "--route mp,mp+p2p")), @r"
    error: failed to run this route: store with `lmcache.options.serde` on this route: it translates what leaves a server for a tier behind its memory, and this route has no such tier

    hint: leave `serde` out of the suite, or choose a route that offers it (docs/routes.md) with `--route`
    ");
    insta::assert_snapshot!(lab.error(&lab.run("", "--route mp+fs --faults")), @r"
    error: failed to run this route: plant faults in KV that `lmcache.options.serde` turns into other bytes

    hint: leave out `--faults`, or the suite's `serde`
    ");
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn an_option_that_some_routes_offer_is_used_there_and_told() {
    let lab = lab();
    lab.edit(
        "suite.toml",
        "memory_gib = 1",
        "memory_gib = 1\noptions = { serde = \"aesgcm\", save_decode_cache = true }",
    );
    let ended = lab.run("", "--route mp,mp+fs");
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    assert!(ended.out.contains("\nstored with save_decode_cache, serde aesgcm\n"), "{}", ended.out);
    let report = lab.report();
    assert_eq!(report.findings[0].judgement.verdict, Verdict::Equivalent);
    assert_eq!(report.not_run[0].route.name(), "mp");
}
