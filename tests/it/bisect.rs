//! Searches for the first bad revision of a git repository, and of releases, on the fake engine.

use std::process::Command;
use std::sync::LazyLock;

use fs_err as fs;
use serde_json::Value;

use crate::lab::{Ended, Lab};

const SEARCH: &str = "bisect --suite suite.toml --device cpu --out out --lmcache-src src";

/// A lab with a stand-in for uv, and a repository in `src` with the tags `good`, `culprit`, `unbuildable` and `bad`.
pub(crate) fn lab() -> Lab {
    static PACKED: LazyLock<Vec<u8>> = LazyLock::new(|| with_repository().pack());
    Lab::unpack(&PACKED)
}

fn with_repository() -> Lab {
    let lab = Lab::new();
    lab.write_program("bin/uv", include_str!("fake/uv.sh"));
    lab.write("src/setup.py", "sound\n");
    lab.write("src/faults", "");
    git(&lab, &["init", "--quiet", "--initial-branch=main"]);
    for step in 0..9 {
        lab.write("src/step", &step.to_string());
        match step {
            4 => lab.write("src/setup.py", "broken\n"),
            5 => lab.write("src/setup.py", "sound\n"),
            6 => lab.write("src/faults", "bit@load\n"),
            _ => {}
        }
        git(&lab, &["add", "--all"]);
        git(&lab, &["commit", "--quiet", "--message", &format!("Step {step}")]);
        let tag = match step {
            0 => "good",
            4 => "unbuildable",
            6 => "culprit",
            8 => "bad",
            _ => continue,
        };
        git(&lab, &["tag", tag]);
    }
    lab
}

pub(crate) fn git(lab: &Lab, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(lab.path("src")).args([
        "-c",
        "user.name=Test",
        "-c",
        "user.email=test@example.org",
    ]);
    command.env("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z").env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z");
    let output = command.args(arguments).output().expect("these tests need `git` on PATH");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs the driver with the stand-in for uv.
pub(crate) fn drive(lab: &Lab, arguments: &str) -> Ended {
    let mut command = lab.driver(arguments);
    command.env("PATH", format!("{}:{}", lab.path("bin"), std::env::var("PATH").unwrap()));
    lab.end(command)
}

fn starts(steps: &[String], what: &str) -> usize {
    steps.iter().filter(|step| *step == what).count()
}

#[test]
fn the_culprit_is_named_what_does_not_build_is_skipped_and_the_baseline_runs_once() {
    let lab = lab();
    let (ended, steps) = lab.steps_of(|| drive(&lab, &format!("{SEARCH} --lmcache good..bad")));
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(lab.redact(&ended.out), @r"
    LMCache, 9 revisions, oldest first

      [SHORT] good: equivalent, decided by kv ([TIME])
                   Step 0
      [SHORT] not tested
                   Step 1
      [SHORT] not tested
                   Step 2
      [SHORT] not tested
                   Step 3
      [SHORT] skipped: cannot be built or installed: SyntaxError: this tree is broken ([TIME])
                   Step 4
      [SHORT] good: equivalent, decided by kv ([TIME])
                   Step 5
      [SHORT] bad: degraded, decided by bits ([TIME])
                   Step 6
      [SHORT] bad: degraded, decided by bits ([TIME])
                   Step 7
      [SHORT] bad: degraded, decided by bits ([TIME])
                   Step 8

    the first bad revision is [SHORT] Step 6
    ");
    assert!(ended.out.contains(&format!("is {} Step 6", &git(&lab, &["rev-parse", "culprit"])[..12])));
    let counts =
        ["start baseline", "start control", "install 0.0.0", "start cached"].map(|what| starts(&steps, what));
    assert_eq!(counts, [1, 1, 5, 5], "{steps:?}");
    assert_eq!(fs::read_to_string(lab.path("out/bisect.txt")).unwrap(), ended.out);
    assert_eq!(git(&lab, &["status", "--porcelain"]), "", "the checkout stays as it is");

    let (again, steps) = lab.steps_of(|| drive(&lab, &format!("{SEARCH} --lmcache good..bad")));
    assert_eq!((again.code, again.out, steps), (0, ended.out.clone(), vec![]));

    // Interrupted after its third step, it goes on, and nothing that was tested runs again.
    let log = fs::read_to_string(lab.path("out/bisect.jsonl")).unwrap();
    let kept: Vec<&str> = log.lines().take(4).collect();
    fs::write(lab.path("out/bisect.jsonl"), kept.join("\n") + "\n{\"revis").unwrap();
    let (again, steps) = lab.steps_of(|| drive(&lab, &format!("{SEARCH} --lmcache good..bad")));
    assert_eq!((again.code, steps), (0, vec![]), "{}", again.err);
    let verdicts =
        |text: &str| text.lines().map(|line| line.split(" (").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(verdicts(&again.out), verdicts(&ended.out));

    let other = drive(&lab, &format!("{SEARCH} --lmcache good..culprit"));
    insta::assert_snapshot!(lab.error(&other), @r"
    error: failed to go on with out/bisect.jsonl: it is of another search

    hint: remove out/bisect.jsonl, or name another folder with `--out DIR`
    ");
}

#[test]
fn no_process_that_imported_an_earlier_revision_is_left_during_a_later_one() {
    let lab = lab();
    let mut command = lab.driver(&format!("{SEARCH} --lmcache good..bad --all"));
    command.env("PATH", format!("{}:{}", lab.path("bin"), std::env::var("PATH").unwrap()));
    command.env("FAKE_FAULTS", "told@import");
    let ended = lab.end(command);
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let counts: Vec<usize> = lab
        .steps()
        .iter()
        .filter_map(|step| Some(step.strip_prefix("fork servers: ")?.parse().unwrap()))
        .collect();
    // One for each revision that builds, and that of the environment without LMCache.
    assert!(counts.len() > 6 && counts.iter().all(|count| *count <= 2), "{counts:?}");
}

#[test]
fn an_end_that_is_not_bad_ends_the_search_at_once() {
    let lab = lab();
    let (ended, steps) = lab.steps_of(|| drive(&lab, &format!("{SEARCH} --lmcache good..culprit~1")));
    assert_eq!((ended.code, starts(&steps, "start cached")), (1, 1), "{}", ended.err);
    let last = ended.out.lines().last().unwrap();
    assert!(
        last.starts_with("nothing to find: ") && last.contains("was said to be bad, and is good"),
        "{last}"
    );

    let ended = drive(&lab, &format!("{SEARCH} --lmcache culprit..good"));
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to find the commits from [SHORT] to [SHORT]: the first is no first-parent ancestor of the second

    hint: check the revision's name with `git log`; a shallow clone lacks most
    ");
}

#[test]
fn a_merge_is_skipped_and_said_and_the_range_that_is_left_is_named() {
    let lab = lab();
    git(&lab, &["checkout", "--quiet", "-b", "side", "culprit~1"]);
    lab.write("src/faults", "bit@load\n");
    git(&lab, &["commit", "--quiet", "--all", "--message", "Side"]);
    git(&lab, &["checkout", "--quiet", "-b", "trunk", "culprit~1"]);
    git(&lab, &["merge", "--quiet", "--no-ff", "--message", "Merge", "side"]);
    lab.write("src/step", "behind");
    git(&lab, &["commit", "--quiet", "--all", "--message", "Behind"]);
    let ended = drive(&lab, &format!("{SEARCH} --lmcache culprit~1..trunk"));
    assert_eq!(ended.code, 3, "{}{}", ended.err, ended.out);
    assert!(ended.out.contains("skipped: a merge"), "{}", ended.out);
    let name = |revision: &str| git(&lab, &["rev-parse", revision])[..12].to_owned();
    let last = ended.out.lines().last().unwrap();
    assert_eq!(
        last,
        format!(
            "the first bad revision is one of {}, {}; all but the last cannot be tested",
            name("trunk~1"),
            name("trunk")
        )
    );
}

#[test]
fn releases_give_a_table_and_one_that_is_not_there_is_skipped() {
    let lab = lab();
    let search = "bisect --suite suite.toml --device cpu --out out --lmcache 1.0,1.5,2.0,2.1 --all";
    let (ended, steps) = lab.steps_of(|| drive(&lab, search));
    assert_eq!((ended.code, starts(&steps, "start baseline")), (3, 1), "{}", ended.err);
    insta::assert_snapshot!(lab.redact(&ended.out), @r"
    LMCache, 4 revisions, oldest first

      1.0          good: equivalent, decided by kv ([TIME])
      1.5          skipped: cannot be built or installed: Because there is no version of lmcache==1.5 ([TIME])
      2.0          bad: degraded, decided by bits ([TIME])
      2.1          bad: degraded, decided by bits ([TIME])

    the first bad revision is one of 1.5, 2.0; all but the last cannot be tested
    ");
}

#[test]
fn git_itself_bisects_with_a_run_as_its_command() {
    let lab = lab();
    git(&lab, &["bisect", "start", "bad", "good"]);
    let run = format!(
        "{} run --suite ../suite.toml --device cpu --out ../out -q --as-bisect-step --lmcache-src .",
        env!("CARGO_BIN_EXE_kv-correctness")
    );
    let mut command = lab.driver("");
    let variables: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    command = Command::new("git");
    command.arg("-C").arg(lab.path("src")).args(["bisect", "run"]).args(run.split(' '));
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("PATH", format!("{}:{}", lab.path("bin"), std::env::var("PATH").unwrap()));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let culprit = git(&lab, &["rev-parse", "culprit"]);
    assert!(
        said.contains(&format!("{culprit} is the first bad commit")),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_run_says_what_it_was_built_from_and_a_dirty_tree_is_dirty() {
    let lab = lab();
    let run = "run --suite suite.toml --device cpu --out out --lmcache-src src";
    let clean = drive(&lab, &format!("{run} --lmcache-rev culprit~1"));
    assert_eq!(clean.code, 0, "{}", clean.err);
    let lmcache = || lab.report().environment.packages["lmcache"].clone();
    let culprit = git(&lab, &["rev-parse", "culprit~1"]);
    assert_eq!((lmcache().revision.as_deref(), lmcache().dirty), (Some(&*culprit), false));
    assert!(clean.out.contains(&format!("LMCache 0.0.0 (revision {})", &culprit[..12])), "{}", clean.out);

    git(&lab, &["checkout", "--quiet", "culprit~1"]);
    let (same, steps) = lab.steps_of(|| drive(&lab, run));
    assert_eq!((same.code, steps), (0, vec![]), "the same revision, checked out: {}", same.err);

    lab.write("src/new.py", "pass\n");
    let (dirty, steps) = lab.steps_of(|| drive(&lab, run));
    assert_eq!((dirty.code, starts(&steps, "start cached"), starts(&steps, "start baseline")), (0, 1, 0));
    assert!(lmcache().dirty && dirty.err.contains("src is dirty"), "{}", dirty.err);
    assert!(dirty.out.contains(", dirty)"), "{}", dirty.out);

    let folder = drive(&lab, &format!("{run} --lmcache-rev unbuildable"));
    insta::assert_snapshot!(lab.error(&folder), @r"
    error: failed to build LMCache at [SHORT]: SyntaxError: this tree is broken

    hint: the whole output is in [LAB]/cache/builds/lmcache-[SHORT].log
    ");
    let unknown = drive(&lab, &format!("{run} --lmcache-rev nowhere"));
    insta::assert_snapshot!(lab.error(&unknown), @r"
    error: failed to find revision nowhere in [LAB]/src: git knows no such commit there

    hint: check the revision's name with `git log`; a shallow clone lacks most
    ");
}

#[test]
fn another_lmcache_changes_the_cached_arms_key_alone() {
    let lab = lab();
    let run = "--suite suite.toml --device cpu --lmcache-src src --lmcache-rev";
    assert_eq!(drive(&lab, &format!("run {run} good --out out")).code, 0);
    let ended = drive(&lab, &format!("explain {run} good~0"));
    assert!(ended.out.lines().all(|line| line.ends_with("unchanged, re-used")), "{}", ended.out);
    let ended = drive(&lab, &format!("explain {run} culprit"));
    let changed: Vec<&str> = ended.out.lines().filter(|line| !line.ends_with("unchanged, re-used")).collect();
    assert!(changed[0].starts_with("cached tiny mp: runs again"), "{changed:?}");
    for field in ["revision", "tree", "content"] {
        let path = format!("/environment/packages/lmcache/{field} ");
        assert!(changed.iter().any(|line| line.contains(&path)), "{field}: {changed:?}");
    }
}

#[test]
fn the_log_is_lines_of_json_that_name_verdict_and_rung() {
    let lab = lab();
    drive(&lab, &format!("{SEARCH} --lmcache culprit~1..culprit"));
    let log = fs::read_to_string(lab.path("out/bisect.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["what"], "LMCache");
    assert_eq!(lines[1]["result"]["judged"]["verdict"], "degraded");
    assert_eq!(lines[1]["result"]["judged"]["rung"], "bit_exact");
    assert_eq!((&lines[1]["mark"], &lines[2]["mark"]), (&"bad".into(), &"good".into()));
}
