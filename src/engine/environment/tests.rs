//! Making and finding environments with a stand-in for Python and uv (`fake.sh`), and reading made-up ones.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::*;
use crate::event::{Event, Events};
use crate::lock::FileLock;

struct Machine {
    root: Utf8PathBuf,
    _keep: tempfile::TempDir,
}

impl Machine {
    /// A machine with these programs on its search path.
    fn with(programs: &[&str]) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(keep.path().canonicalize().unwrap()).unwrap();
        fs::create_dir(root.join("bin")).unwrap();
        let fake = concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/environment/fake.sh");
        for program in programs {
            symlink(fake, root.join("bin").join(program)).unwrap();
        }
        Self { root, _keep: keep }
    }

    fn set(&self, name: &str, content: &str) {
        fs::write(self.root.join("bin").join(name), content).unwrap();
    }

    fn unset(&self, name: &str) {
        fs::remove_file(self.root.join("bin").join(name)).unwrap();
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.root.join("bin/calls")).unwrap_or_default()
    }

    fn request(&self) -> EnvironmentRequest {
        EnvironmentRequest {
            lock: None,
            stack: Stack::Cpu,
            cache: self.root.join("cache"),
            given: None,
            given_baseline: None,
            python: None,
            search_path: self.root.join("bin").into_os_string(),
            free_bytes: 0,
        }
    }

    /// An environment with these `.dist-info` folders, each with the given `RECORD`.
    fn environment(&self, name: &str, packages: &[(&str, &str)]) -> Utf8PathBuf {
        let folder = self.root.join(name);
        for (package, record) in packages {
            let dist_info = folder.join("lib/python3.12/site-packages").join(package);
            fs::create_dir_all(&dist_info).unwrap();
            fs::write(dist_info.join("RECORD"), record).unwrap();
        }
        folder
    }
}

fn identity(folder: &Utf8Path) -> EnvironmentIdentity {
    EnvironmentIdentity::read(folder).unwrap()
}

const TORCH: (&str, &str) =
    ("torch-2.11.0+cu130.dist-info", "torch/a.py,sha256=1,1\ntorch/b.so,sha256=2,2\n");
const VLLM: (&str, &str) = ("vllm-0.24.0.dist-info", "vllm/a.py,sha256=1,1\n");
const LMCACHE: (&str, &str) = ("lmcache-0.5.4.dist-info", "lmcache/a.py,sha256=1,1\n");

#[test]
fn an_environment_is_made_once_and_then_found_without_starting_anything() {
    let machine = Machine::with(&["python3.12", "uv"]);
    let (sender, told) = mpsc::channel();
    let events = Events::new(move |event| sender.send(event).unwrap());
    assert!(machine.request().find().unwrap().is_none());
    let made = machine.request().provide(&events).unwrap();
    let told: Vec<Event> = told.try_iter().collect();
    assert!(matches!(
        &told[..],
        [
            Event::EnvironmentStarted { packages: 181, .. },
            Event::EnvironmentStep { text },
            Event::EnvironmentFinished { .. }
        ] if text == "Resolved 180 packages in 1ms"
    ));
    assert_eq!(made.identity().python, "3.12.1");
    assert_eq!(made.identity().vllm_version(), Some("0.32.0"));
    assert_eq!(made.identity().version("lmcache"), Some("0.5.6"));
    assert_eq!(made.python(), made.folder().join("bin/python"));

    let calls = machine.calls();
    let without_programs = EnvironmentRequest { search_path: "".into(), ..machine.request() };
    let found = without_programs.provide(&Events::ignored()).unwrap();
    assert_eq!((found.folder(), found.identity()), (made.folder(), made.identity()));
    assert_eq!(machine.calls(), calls);
}

#[test]
fn another_lock_or_another_wanted_python_is_another_environment() {
    let machine = Machine::with(&["python3.12", "uv"]);
    let request = machine.request();
    let requests = [
        EnvironmentRequest { stack: Stack::Cuda, ..request.clone() },
        EnvironmentRequest { python: Some(machine.root.join("bin/python3.12")), ..request.clone() },
        request,
    ];
    let folders = requests.map(|request| request.provide(&Events::ignored()).unwrap().folder().to_owned());
    assert_eq!(BTreeSet::from(folders).len(), 3);
}

#[test]
fn a_half_made_environment_is_made_again_from_the_start() {
    let machine = Machine::with(&["python3.12", "uv"]);
    machine.set("no-network", "");
    let error = machine.request().provide(&Events::ignored()).unwrap_err();
    let EnvironmentError::Step { step: "install vLLM and LMCache", log, last_lines, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(last_lines, "Resolved 180 packages in 1ms\nerror: no network");
    assert!(error.hint().unwrap().contains(log.as_str()));
    assert!(fs::read_to_string(log).unwrap().contains("--require-hashes"));
    assert!(machine.request().find().unwrap().is_none());

    machine.unset("no-network");
    let left_over = log.with_extension("").join("left-over");
    fs::write(&left_over, "").unwrap();
    let made = machine.request().provide(&Events::ignored()).unwrap();
    assert!(!left_over.exists());

    fs::remove_file(made.python()).unwrap();
    assert!(machine.request().find().unwrap().is_none(), "its Python was removed from the machine");
}

#[test]
fn two_processes_that_want_the_same_environment_make_it_once() {
    let machine = Machine::with(&["python3.12", "uv"]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| machine.request().provide(&Events::ignored()).unwrap());
        }
    });
    assert_eq!(machine.calls().matches("uv venv").count(), 1);
}

#[test]
fn pythons_that_fail_or_do_not_fit_are_passed_over() {
    let machine = Machine::with(&["python3.11", "python3.12", "python3.13", "python3", "uv"]);
    machine.set("python3.11.broken", "");
    machine.set("python3.12.says", "pypy 3 12 - /x");
    machine.set("python3.13.says", "cpython 3 13 t /x");
    machine.set("python3.says", "cpython 3 9 - /x");
    let error = machine.request().provide(&Events::ignored()).unwrap_err();
    let words = error.to_string().replace(machine.root.as_str(), "");
    insta::assert_snapshot!(words, @"find Python 3.11 or 3.12 or 3.13: /bin/python3.11 does not run (exit status: 127); /bin/python3.12 is pypy and not CPython; /bin/python3.13 is free-threaded; /bin/python3 is 3.9");
    assert!(error.hint().unwrap().contains("KV_CORRECTNESS_PYTHON"));

    machine.set("python3.says", "cpython 3 12 - /opt/my python/bin/python3");
    machine.request().provide(&Events::ignored()).unwrap();
    assert!(machine.calls().contains("uv venv --no-project --python /opt/my python/bin/python3 /"));
}

#[test]
fn a_python_that_is_named_is_used_or_refused_and_never_replaced() {
    let machine = Machine::with(&["python3.12", "python3.10", "uv"]);
    let named = machine.root.join("bin/python3.10");
    let request = EnvironmentRequest { python: Some(named.clone()), ..machine.request() };
    let error = request.provide(&Events::ignored()).unwrap_err();
    assert_eq!(error.to_string(), format!("find Python 3.11 or 3.12 or 3.13: {named} is 3.10"));
}

#[test]
fn without_uv_one_is_installed_in_a_virtual_environment_or_in_a_folder() {
    for missing in ["no-such-file", "no-venv"] {
        let machine = Machine::with(&["python3.12"]);
        machine.set(missing, "");
        machine.request().provide(&Events::ignored()).unwrap();
        assert!(machine.calls().contains("--target") == (missing == "no-venv"));

        let other = EnvironmentRequest { stack: Stack::Cuda, ..machine.request() };
        let calls = machine.calls().matches("-m ").count();
        other.provide(&Events::ignored()).unwrap();
        assert_eq!(machine.calls().matches("-m ").count(), calls, "uv is installed once");
    }
}

#[test]
fn a_debian_without_venv_and_pip_is_told_what_to_install() {
    let machine = Machine::with(&["python3.12"]);
    machine.set("no-venv", "");
    machine.set("no-pip", "");
    let error = machine.request().provide(&Events::ignored()).unwrap_err();
    assert!(matches!(error, EnvironmentError::NoInstaller { .. }), "{error:?}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("apt-get install python3-venv") && hint.contains("PIP_INDEX_URL"), "{hint}");
}

#[test]
fn a_full_disk_is_told_before_anything_is_installed() {
    let machine = Machine::with(&["python3.12", "uv"]);
    let error = EnvironmentRequest { free_bytes: u64::MAX, ..machine.request() }.provide(&Events::ignored());
    let error = error.unwrap_err();
    assert!(error.to_string().contains("it needs 17179869184.0 GiB and the disk has "), "{error}");
    assert!(!machine.calls().contains("uv"));
}

#[test]
fn a_given_environment_is_used_as_it_is() {
    let machine = Machine::with(&[]);
    let given = machine.environment("mine", &[TORCH, VLLM, LMCACHE]);
    let request = EnvironmentRequest { given: Some(given.clone()), ..machine.request() };
    let environment = request.provide(&Events::ignored()).unwrap();
    assert_eq!(environment.python(), given.join("bin/python"));
    assert_eq!(environment.identity().version("torch"), Some("2.11.0+cu130"));
    assert_eq!(environment.identity().python, "3.12");
    assert!(!request.cache.exists());
}

#[test]
fn another_lmcache_changes_the_identity_and_not_the_one_without_lmcache() {
    let machine = Machine::with(&[]);
    let one = identity(&machine.environment("one", &[TORCH, VLLM, LMCACHE]));
    let rebuilt = ("lmcache-0.5.4.dist-info", "lmcache/a.py,sha256=other,1\n");
    let two = identity(&machine.environment("two", &[TORCH, VLLM, rebuilt]));
    assert_ne!(one, two, "the same version with another content");
    assert_eq!(one.without_lmcache(), two.without_lmcache());
    assert_eq!(one.without_lmcache().version("lmcache"), None);

    let patched = ("torch-2.11.0+cu130.dist-info", "torch/a.py,sha256=other,1\ntorch/b.so,sha256=2,2\n");
    let three = identity(&machine.environment("three", &[patched, VLLM, LMCACHE]));
    assert_ne!(one.without_lmcache(), three.without_lmcache());
}

#[test]
fn a_baseline_of_its_own_is_what_its_arms_run_in_and_are_keyed_by() {
    let machine = Machine::with(&[]);
    let given = machine.environment("with", &[TORCH, VLLM, LMCACHE]);
    let baseline = machine.environment("without", &[TORCH, VLLM, ("redis-8.1.0.dist-info", "")]);
    let both = EnvironmentRequest {
        given: Some(given.clone()),
        given_baseline: Some(baseline.clone()),
        ..machine.request()
    };
    let environment = both.find().unwrap().unwrap();
    assert_eq!((environment.folder(), environment.of_baseline().folder()), (&*given, &*baseline));
    assert_eq!(&environment.identity_of_baseline(), environment.of_baseline().identity());
    assert!(environment.identity_of_baseline().packages.contains_key("redis"));

    let alone = EnvironmentRequest { given: None, ..both.clone() }.find().unwrap().unwrap();
    assert_eq!(alone.identity_of_baseline(), environment.identity_of_baseline());
    assert!(alone.require_lmcache().is_err() && environment.require_lmcache().is_ok());

    let torch = ("torch-2.13.0.dist-info", "");
    let other =
        EnvironmentRequest { given_baseline: Some(machine.environment("other", &[torch, VLLM])), ..both };
    let words = other.find().unwrap_err().to_string().replace(machine.root.as_str(), "");
    insta::assert_snapshot!(words, @"compare the environment /with with /other: it holds torch 2.11.0+cu130, and the one without LMCache 2.13.0");
}

#[test]
fn packages_that_a_path_file_brings_in_count_and_give_way_to_those_installed() {
    let machine = Machine::with(&[]);
    let below = machine.environment("below", &[TORCH, VLLM, ("lmcache-0.5.3.dist-info", "")]);
    let above = machine.environment("above", &[LMCACHE]);
    let site_packages = below.join("lib/python3.12/site-packages");
    let lines = format!("# below\nimport site; site.addsitedir('{site_packages}')\n{site_packages}\n");
    fs::write(above.join("lib/python3.12/site-packages/below.pth"), lines).unwrap();
    let identity = identity(&above);
    assert_eq!(identity.vllm_version(), Some("0.24.0"));
    assert_eq!(identity.version("lmcache"), Some("0.5.4"));
}

#[test]
fn the_commit_that_a_package_was_built_from_is_part_of_its_identity() {
    let machine = Machine::with(&[]);
    let folder = machine.environment("one", &[TORCH, VLLM, LMCACHE]);
    assert_eq!(identity(&folder).packages["lmcache"].revision, None);
    let origin = folder.join("lib/python3.12/site-packages").join(LMCACHE.0).join("direct_url.json");
    fs::write(origin, r#"{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}"#).unwrap();
    assert_eq!(identity(&folder).packages["lmcache"].revision.as_deref(), Some("abc"));
}

#[test]
fn what_installers_add_to_a_record_does_not_count() {
    let machine = Machine::with(&[]);
    let one = identity(&machine.environment("one", &[TORCH, VLLM, LMCACHE]));
    let torch = "../../../bin/torchrun,sha256=9,9\ntorch/b.so,sha256=2,2\ntorch/__pycache__/a.cpython-312.pyc,,\n\
        torch/a.py,sha256=1,1\ntorch-2.11.0+cu130.dist-info/INSTALLER,sha256=3,4\n";
    let two = identity(&machine.environment("two", &[(TORCH.0, torch), VLLM, LMCACHE]));
    assert_eq!(one, two);
}

#[test]
fn an_environment_that_lacks_lmcache_or_hides_its_changes_is_refused() {
    let machine = Machine::with(&[]);
    let lacking = machine.environment("lacking", &[TORCH, VLLM]);
    let error = EnvironmentIdentity::read(&lacking).unwrap_err();
    assert_eq!(error.to_string(), format!("use the environment {lacking}: LMCache is not installed in it"));

    let editable = machine.environment("editable", &[TORCH, VLLM, LMCACHE]);
    let origin = editable.join("lib/python3.12/site-packages").join(LMCACHE.0).join("direct_url.json");
    fs::write(&origin, r#"{"url": "file:///src", "dir_info": {}}"#).unwrap();
    assert!(EnvironmentIdentity::read(&editable).is_ok());
    fs::write(&origin, r#"{"url": "file:///src", "dir_info": {"editable": true}}"#).unwrap();
    let error = EnvironmentIdentity::read(&editable).unwrap_err();
    assert!(matches!(&error, EnvironmentError::Editable { package, .. } if package == "lmcache"));

    assert!(matches!(EnvironmentIdentity::read(&machine.root), Err(EnvironmentError::NoEnvironment { .. })));
}

#[test]
fn cleaning_removes_unused_and_half_made_environments_alone() {
    let machine = Machine::with(&["python3.12", "uv"]);
    let used = machine.request().provide(&Events::ignored()).unwrap();
    let half_made = machine.root.join("cache/environments/half");
    fs::create_dir(&half_made).unwrap();
    assert_eq!(remove_unused(&machine.root.join("cache"), Duration::from_hours(1)).unwrap(), [half_made]);
    assert!(used.folder().exists());
    assert_eq!(remove_unused(&machine.root.join("cache"), Duration::ZERO).unwrap(), [used.folder()]);
    assert_eq!(
        remove_unused(&machine.root.join("no-cache"), Duration::ZERO).unwrap(),
        Vec::<Utf8PathBuf>::new()
    );
}

#[test]
fn cleaning_removes_builds_that_nobody_asked_for_with_their_logs_and_leaves_those_that_are_made_now() {
    let machine = Machine::with(&[]);
    let cache = machine.root.join("cache");
    let builds = cache.join("builds");
    let day = Duration::from_hours(24);
    let build = |name: &str| {
        let folder = builds.join(name);
        fs::create_dir_all(folder.join("lmcache")).unwrap();
        for extension in ["log", "lock"] {
            fs::write(folder.with_added_extension(extension), "").unwrap();
        }
        folder
    };
    let (old, work, recent) = (build("lmcache-1"), build("work-2"), build("vllm-cpu-3"));
    let lock = FileLock::try_take(&old.with_added_extension("lock")).unwrap().unwrap();
    for (folder, age) in [(&old, 3 * day), (&work, 3 * day), (&recent, day)] {
        let file = std::fs::File::options().append(true).open(folder.with_added_extension("lock")).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    // One of the old is just being made again.
    assert_eq!(unused(&cache, 2 * day).unwrap(), [old.clone(), work.clone()]);
    assert_eq!(remove_unused(&cache, 2 * day).unwrap(), std::slice::from_ref(&work));
    assert!(old.exists() && recent.exists() && !work.exists() && !work.with_added_extension("log").exists());
    // A run that finds a build asks for its lock, too.
    drop(lock);
    drop(FileLock::try_take(&old.with_added_extension("lock")).unwrap().unwrap());
    assert!(unused(&cache, 2 * day).unwrap().is_empty());
    assert_eq!(remove_unused(&cache, Duration::ZERO).unwrap(), [old, recent]);
}

#[test]
fn a_vllm_that_the_worker_was_never_seen_in_is_refused() {
    let machine = Machine::with(&[]);
    for (version, is_known) in [
        ("0.24.0", true),
        ("0.33.1.dev5+g1a2b3c4", true),
        ("0.34.0", false),
        ("0.23.9", false),
        ("dev", false),
    ] {
        let vllm = format!("vllm-{version}.dist-info");
        let folder = machine.environment(version, &[TORCH, (&vllm, ""), LMCACHE]);
        let outcome = identity(&folder).require_known_vllm();
        assert_eq!(outcome.is_ok(), is_known, "{version}");
        if let Err(error) = outcome {
            assert!(error.to_string().contains(version) && error.hint().is_some(), "{error}");
        }
    }
}
