//! What happens on a real vLLM and LMCache when what holds KV between the passes goes or is full: an error or *not exercised*
//! in time, never a pass or a hang. Only on request (`cargo test --test it real_endurance -- --ignored --nocapture`).

use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

/// After which a run counts as hung, on whatever machine.
const PATIENCE: Duration = Duration::from_mins(20);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The folder of the Python environment, made if it is not there.
static ENVIRONMENT: LazyLock<String> = LazyLock::new(|| {
    std::env::var("KV_CORRECTNESS_ENV").unwrap_or_else(|_| {
        let made =
            Command::new(env!("CARGO_BIN_EXE_kv-correctness")).args(["env", "--device", "cpu"]).output();
        let python = String::from_utf8(made.unwrap().stdout).unwrap();
        Utf8Path::new(python.trim()).parent().and_then(Utf8Path::parent).expect("a Python").to_string()
    })
});

/// A run of the driver over one route on one model, in a store of its own.
struct Endured {
    folder: tempfile::TempDir,
    driver: Child,
    started: Instant,
}

impl Endured {
    fn start(route: &str, folder: tempfile::TempDir) -> Self {
        let path = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        let suite = include_str!("../../data/suites/canary.toml");
        let (suite, _mla) = suite.split_once("[[models]]\nname = \"canary-mla\"").unwrap();
        fs::write(path.join("suite.toml"), suite).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kv-correctness"));
        command.args([
            "run",
            "--device",
            "cpu",
            "--subjects",
            "1",
            "--suite",
            "suite.toml",
            "--route",
            route,
        ]);
        command.args(["--out", "out", "--cache"]).arg(path.join("cache")).current_dir(&path);
        // The environment of every run, since it fits on no disk that is to fill up.
        command.env("KV_CORRECTNESS_ENV", &*ENVIRONMENT);
        let said = fs::File::create(path.join("said")).unwrap().into_file();
        command.stdout(Stdio::from(said.try_clone().unwrap())).stderr(Stdio::from(said));
        Self { folder, driver: command.spawn().unwrap(), started: Instant::now() }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.folder.path()).unwrap().join(name)
    }

    /// Waits until a log of this name is in a draft, and returns its folder.
    fn until_log(&mut self, name: &str) -> Utf8PathBuf {
        let drafts = self.path("cache/store-1/drafts");
        loop {
            let found = drafts.read_dir_utf8().into_iter().flatten();
            let mut notes = found.filter_map(|draft| Some(draft.ok()?.path().join("notes")));
            if let Some(notes) = notes.find(|notes| notes.join(name).exists()) {
                return notes;
            }
            self.pause();
        }
    }

    fn pause(&mut self) {
        assert!(self.driver.try_wait().unwrap().is_none(), "it ended early: {}", self.said());
        assert!(self.started.elapsed() < PATIENCE, "nothing to do yet: {}", self.said());
        std::thread::sleep(POLL_INTERVAL);
    }

    /// Kills what the driver started with this word in its command line, and nothing else.
    fn kill(&self, word: &str) {
        let processes =
            || fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let words = |process: &str| {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        };
        let driver = format!("--driver {} ", self.driver.id());
        let ours = |process: &String| words(process).contains(&driver) && words(process).contains(word);
        let guard = processes().find(ours).expect("the driver has started it");
        let parent = format!("\nPPid:\t{guard}\n");
        let status =
            |process: &str| fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let child =
            processes().find(|process| status(process).contains(&parent)).expect("the guard has a child");
        assert!(Command::new("kill").args(["-9", &child]).status().unwrap().success());
    }

    /// What the driver said once it has ended, with an exit code that is no pass.
    fn end(mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let code = loop {
            if let Some(status) = self.driver.try_wait().unwrap() {
                break status.code();
            }
            if Instant::now() > deadline {
                self.driver.kill().unwrap();
                panic!("it hangs: {}", self.said());
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let said = self.said();
        println!("exit code {code:?} after {:.0} s:\n{said}", self.started.elapsed().as_secs_f64());
        assert!(matches!(code, Some(2 | 4)), "{code:?}: {said}");
        said
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("said")).unwrap()
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes; needs redis-server"]
fn a_redis_server_killed_between_the_passes_is_no_pass_and_no_hang() {
    let mut endured = Endured::start("mp+redis", folder());
    endured.until_log("lmcache-server-load.log");
    endured.kill("redis-server");
    endured.end();
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes; needs valkey-server"]
fn a_valkey_server_killed_between_the_passes_is_no_pass_and_no_hang() {
    let mut endured = Endured::start("mp+valkey", folder());
    endured.until_log("lmcache-server-load.log");
    endured.kill("valkey-server");
    let said = endured.end();
    assert!(said.contains("keep valkey-server"), "{said}");
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes; fetches a server of buckets"]
fn an_s3_server_killed_between_the_passes_is_no_pass_and_no_hang() {
    let mut endured = Endured::start("mp+s3", folder());
    endured.until_log("lmcache-server-load.log");
    endured.kill("serve s3");
    let said = endured.end();
    assert!(said.contains("keep rclone"), "{said}");
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes; needs the packages of peers"]
fn a_peer_killed_between_the_passes_is_no_pass_and_no_hang() {
    let mut endured = Endured::start("mp+p2p", folder());
    endured.until_log("lmcache-server-load.log");
    endured.kill("--instance-id store");
    endured.end();
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes; mounts a small file system, so needs to be root"]
fn a_disk_that_fills_up_in_the_store_pass_is_no_pass_and_no_hang() {
    let folder = folder();
    let mount = |program: &str, arguments: &[&str]| {
        assert!(Command::new(program).args(arguments).arg(folder.path()).status().unwrap().success());
    };
    mount("mount", &["-t", "tmpfs", "-o", "size=512m", "tmpfs"]);
    let path = folder.path().to_owned();
    let ended = std::panic::catch_unwind(|| {
        let inner = tempfile::tempdir_in(&path).unwrap();
        let mut endured = Endured::start("mp+fs", inner);
        let notes = endured.until_log("lmcache-server-store.log");
        // What is left of the disk goes to another file, but for a few chunks.
        let left = rustix::fs::statvfs(notes.as_std_path()).unwrap();
        let ballast = fs::File::create(notes.join("ballast.log")).unwrap();
        let bytes = left.f_bavail * left.f_frsize - (4 << 20);
        rustix::fs::fallocate(ballast.file(), rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
        endured.end();
    });
    mount("umount", &["--lazy"]);
    ended.unwrap();
}
