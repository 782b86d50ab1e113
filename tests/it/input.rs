//! Input that people have: `suite check`, `doctor` and `run` say the same of it, before anything starts.

use std::os::unix::fs::{PermissionsExt, symlink};

use camino::Utf8Path;
use fs_err as fs;

use crate::lab::{Ended, Lab, archive, as_nobody, weights};

/// The words in which all three commands refuse a lab's suite, less what each says around them.
fn refusal(lab: &Lab) -> String {
    let check = lab.error(&lab.end(lab.driver("suite check suite.toml")));
    let run = lab.error(&lab.run("", "-q"));
    let doctor = lab.end(lab.driver("doctor --suite suite.toml --device cpu"));
    assert_eq!(doctor.code, 2, "{}", doctor.out);
    let (message, hint) = run.strip_prefix("error: failed to ").unwrap().split_once("\n\nhint: ").unwrap();
    let message = message.strip_prefix("run this route: ").unwrap_or(message);
    assert!(check.contains(message) && check.ends_with(hint), "{check}\n{run}");
    assert!(check.contains("error: failed to check suite suite.toml, line "), "{check}");
    let doctors = lab.redact(&doctor.out);
    assert!(doctors.contains(message) && doctors.contains(hint), "{doctors}\n{run}");
    assert_eq!(lab.steps(), Vec::<String>::new());
    format!("{message}\n{hint}")
}

fn make_pipe(path: &Utf8Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path.as_std_path(), 0o600.into()).unwrap();
}

fn with(change: impl FnOnce(&Lab)) -> String {
    let lab = Lab::new();
    change(&lab);
    refusal(&lab)
}

#[test]
fn weights_that_are_none_are_refused_by_every_command() {
    let whole = weights(b"weights");
    let weights_are =
        |content: &[u8]| with(|lab| fs::write(lab.path("model/model.safetensors"), content).unwrap());
    assert!(
        weights_are(b"version https://git-lfs.github.com/spec/v1\n").contains("it is a pointer of Git LFS")
    );
    assert!(weights_are(b"").contains("it is empty"));
    assert!(weights_are(&whole[..whole.len() - 2]).contains("it is cut off"));
    let moved = |name: &'static str| {
        with(|lab| fs::rename(lab.path("model/model.safetensors"), lab.path("model").join(name)).unwrap())
    };
    assert!(moved("._model.safetensors").contains("it holds no *.safetensors"));
    assert!(moved("model-00001-of-00002.safetensors").contains("it is not there"));
    assert!(moved("adapter_model.safetensors").contains("it holds an adapter (LoRA)"));
    let dangling = with(|lab| {
        fs::remove_file(lab.path("model/model.safetensors")).unwrap();
        symlink("../../blobs/0", lab.path("model/model.safetensors")).unwrap();
    });
    assert!(dangling.contains("it is a link to ../../blobs/0, which is not there"), "{dangling}");
    let adapter = with(|lab| {
        fs::remove_file(lab.path("model/config.json")).unwrap();
        lab.write("model/adapter_config.json", "{}");
    });
    assert!(adapter.contains("it holds an adapter (LoRA)"), "{adapter}");
    // A name that vLLM asks for by itself may be anything, and nobody waits for it.
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let pipe = with(|lab| {
            fs::remove_file(lab.path("model").join(name)).unwrap();
            make_pipe(&lab.path("model").join(name));
        });
        assert!(pipe.contains(&format!("use model/{name}: it is a pipe")), "{pipe}");
    }
    let endless = with(|lab| {
        fs::remove_file(lab.path("model/tokenizer.json")).unwrap();
        symlink("/dev/zero", lab.path("model/tokenizer.json")).unwrap();
    });
    assert!(endless.contains("use model/tokenizer.json: it is a device"), "{endless}");
    let file = with(|lab| lab.edit("suite.toml", "source = \"model\"", "source = \"model/config.json\""));
    assert!(file.contains("it is a file, and a model is a folder"), "{file}");
}

#[test]
fn a_tokenizer_that_is_none_is_refused_by_every_command() {
    let tokenizer = |text: &'static str| with(|lab| lab.write("model/tokenizer.json", text));
    assert!(tokenizer("{}").contains("parse the tokenizer"));
    assert!(tokenizer("version https://git-lfs.github.com/spec/v1\n").contains("it is a pointer of Git LFS"));
    let words = r#"{"version": "1.0", "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "A": 1}}}"#;
    assert!(tokenizer(words).contains("find the token of the answer letter B"));
}

#[test]
fn settings_that_cannot_go_together_are_refused_by_every_command() {
    let edited =
        |before: &'static str, after: &'static str| with(|lab| lab.edit("suite.toml", before, after));
    let options = |options: &'static str| match options {
        "layerwise" => edited("memory_gib = 1", "memory_gib = 1\noptions = { layerwise = true }"),
        "fp8" => edited("memory_gib = 1", "memory_gib = 1\noptions = { serde = \"fp8\" }"),
        _ => edited("memory_gib = 1", "memory_gib = 1\noptions = { serde = \"cachegen\" }"),
    };
    for option in ["layerwise", "fp8", "cachegen"] {
        assert!(options(option).contains("leave `"), "{option}");
    }
    let long = edited("max_model_len = 1024", "max_model_len = 60");
    assert!(long.contains("fit question ") && long.contains("raise the model's length"), "{long}");
    let large = with(|lab| {
        lab.edit("suite.toml", "swap_space = 0", "num_gpu_blocks_override = 1000");
        lab.edit("model/config.json", r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 80000"#);
    });
    assert!(large.contains("raise `lmcache.memory_gib` in the suite"), "{large}");
}

#[test]
fn a_route_that_is_named_twice_is_refused() {
    let lab = Lab::new();
    lab.edit("suite.toml", "routes = [\"mp\"]", "routes = [\"mp\", \"mp\"]");
    let message = lab.error(&check(&lab));
    assert!(message.contains("line 5, column 17: it names the route mp twice"), "{message}");
    assert_eq!(lab.error(&lab.run("", "")), message);
}

#[test]
fn a_file_without_end_is_refused() {
    let lab = Lab::new();
    for arguments in
        ["suite check /dev/zero", "run --suite /dev/zero", "run --suite suite.toml --connector /dev/zero"]
    {
        let message = lab.error(&lab.end(lab.driver(arguments)));
        assert!(message.contains("/dev/zero is larger than any such file"), "{arguments}: {message}");
    }
}

#[test]
fn a_margin_that_no_model_can_beat_guessing_by_ten_of_is_refused() {
    let lab = Lab::new();
    lab.edit("suite.toml", "margin = 0.005", "margin = 0.99");
    let message = lab.error(&lab.run("", ""));
    for command in ["suite check suite.toml", "doctor --suite suite.toml"] {
        assert_eq!(lab.error(&lab.end(lab.driver(command))), message);
    }
    assert!(message.contains("at most 0.075"), "{message}");
}

#[test]
fn a_number_of_subjects_is_a_number() {
    let lab = Lab::new();
    lab.edit("suite.toml", "subjects = \"all\"", "subjects = 1");
    let checked = lab.end(lab.driver("suite check suite.toml"));
    assert!(checked.out.contains("questions facts.tar: 12 in 1 subjects"), "{}{}", checked.out, checked.err);
    lab.edit("suite.toml", "subjects = 1", "subjects = 0");
    let refused = lab.error(&lab.end(lab.driver("suite check suite.toml")));
    assert!(
        refused.contains("line 4, column 12") && refused.contains("a number of subjects from 1"),
        "{refused}"
    );
}

/// A lab whose dataset is the folder `mine`.
fn with_folder() -> Lab {
    let lab = Lab::new();
    tar::Archive::new(archive(12).as_slice()).unpack(lab.path("mine")).unwrap();
    lab.edit("suite.toml", "facts.tar", "mine");
    lab
}

fn check(lab: &Lab) -> Ended {
    lab.end(lab.driver("suite check suite.toml"))
}

#[test]
fn what_lies_beside_the_tables_of_a_folder_is_told_and_hurts_nobody() {
    use std::os::unix::ffi::OsStrExt;
    let lab = with_folder();
    let unreadable =
        lab.path("mine/data/dev").as_std_path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt"));
    fs::write(unreadable, "").unwrap();
    lab.write("mine/data/README.txt", "");
    lab.write("mine/data/test/.DS_Store", "");
    lab.write("mine/.git/config", "");
    let line = || {
        let ended = check(&lab);
        assert_eq!(ended.code, 0, "{}", ended.err);
        ended.out.lines().find(|line| line.starts_with("questions")).unwrap().to_owned()
    };
    insta::assert_snapshot!(line(), @"questions mine: 24 in 2 subjects; not read, since no tables of dev, val or test: `data/README.txt`, `data/dev/caf�.txt`");
    // The same is told by a run, once.
    let run = lab.run("", "");
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.err.contains("warning: not read of mine, since no tables of dev, val or test: `data/README.txt`"),
        "{}",
        run.err
    );
    // What lies above the tables, or is hidden among them, is told as well.
    lab.write("mine/law_test.csv", "q,1,2,3,4,A\n");
    lab.write("mine/data/val/.law_val.csv", "q,1,2,3,4,A\n");
    insta::assert_snapshot!(line(), @"questions mine: 24 in 2 subjects; not read, since no tables of dev, val or test: `law_test.csv`, `data/README.txt`, `data/dev/caf�.txt` and 1 more");
}

#[test]
fn links_to_folders_of_tables_are_followed_and_lead_nobody_in_a_circle() {
    let lab = with_folder();
    fs::rename(lab.path("mine/data"), lab.path("elsewhere")).unwrap();
    symlink("../elsewhere", lab.path("mine/data")).unwrap();
    symlink("data", lab.path("mine/latest")).unwrap();
    symlink("..", lab.path("elsewhere/up")).unwrap();
    let ended = check(&lab);
    assert!(ended.out.contains("questions mine: 24 in 2 subjects"), "{}{}", ended.out, ended.err);
}

#[test]
fn tables_that_nobody_may_read_are_called_that_and_not_absent() {
    let lab = with_folder();
    for (closed, mode) in [("mine/data", 0o700), ("mine/data", 0o744), ("mine/data/dev", 0o700)] {
        let close = |mode| fs::set_permissions(lab.path(closed), PermissionsExt::from_mode(mode)).unwrap();
        close(mode);
        let ended = as_nobody(&lab, 1, 100, &lab.driver("suite check suite.toml"));
        close(0o755);
        let Some(ended) = ended else { return };
        let message = lab.error(&ended);
        assert!(message.contains("Permission denied (os error 13)"), "{closed} {mode:o}: {message}");
    }
}

#[test]
fn tables_of_a_folder_that_cannot_be_read_are_refused_and_none_is_dropped() {
    let refused = |change: &dyn Fn(&Utf8Path)| {
        let lab = with_folder();
        change(&lab.path("mine/data/dev"));
        lab.error(&check(&lab))
    };
    let pipe = refused(&|dev| {
        make_pipe(&dev.join("law_dev.csv"));
    });
    assert!(pipe.contains("read mine/data/dev/law_dev.csv: it is a pipe, no file"), "{pipe}");
    let link = refused(&|dev| symlink("nowhere", dev.join("law_dev.csv")).unwrap());
    assert!(link.contains("use mine/data/dev/law_dev.csv: "), "{link}");
    let misnamed = refused(&|dev| fs::write(dev.join("law.CSV"), "q,1,2,3,4,A\n").unwrap());
    assert!(misnamed.contains("rename it to `law_dev.csv`"), "{misnamed}");
    let two = refused(&|dev| {
        let other = dev.parent().unwrap().parent().unwrap().join("old/dev");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("law_dev.csv"), "q,1,2,3,4,A\n").unwrap();
    });
    assert!(two.contains("choose between the tables in mine/"), "{two}");
}

#[test]
fn a_path_that_is_no_file_is_called_what_it_is() {
    let lab = Lab::new();
    let place = lab.path("pipe");
    make_pipe(&place);
    insta::assert_snapshot!(lab.error(&lab.run("", "--data pipe")), @r"
    error: failed to read pipe: it is a pipe, no file

    hint: write it to a file first, which can be read more than once: `COMMAND > data.tar`
    ");
    symlink("loop", lab.path("loop")).unwrap();
    let turning = lab.error(&lab.run("", "--data loop/data.tar"));
    assert!(turning.contains("use loop/data.tar: ") && turning.contains("(os error 40)"), "{turning}");
}

#[test]
fn a_deep_folder_of_tables_is_found() {
    let lab = with_folder();
    fs::create_dir_all(lab.path("deep/mmlu-1.0")).unwrap();
    fs::rename(lab.path("mine/data"), lab.path("deep/mmlu-1.0/data")).unwrap();
    lab.edit("suite.toml", "\"mine\"", "\"deep\"");
    let ended = check(&lab);
    assert!(ended.out.contains("questions deep: 24 in 2 subjects"), "{}{}", ended.out, ended.err);
}

#[test]
fn control_characters_reach_no_terminal() {
    let lab = Lab::new();
    lab.edit("suite.toml", "name = \"tiny\"", "name = \"ti\\u001b]0;x\\u0007ny\"");
    let refused = lab.error(&check(&lab));
    assert!(refused.contains("`models.0.name` is empty or holds a control character"), "{refused}");
    lab.edit("suite.toml", "name = \"ti\\u001b]0;x\\u0007ny\"", "name = \"tiny\"");
    lab.edit("suite.toml", "a fake engine", "\\u001b[31ma fake engine");
    let shown = check(&lab);
    assert!(shown.out.starts_with("suite facts: \\u001b[31ma fake engine"), "{}{}", shown.out, shown.err);
    lab.edit("suite.toml", "source = \"model\"", "source = \"\\u001b[2Jmodel\"");
    let ended = check(&lab);
    assert!(!ended.err.contains('\u{1b}') && lab.error(&ended).contains("find model"), "{}", ended.err);
}

#[test]
fn an_empty_or_a_relative_variable_names_no_cache() {
    let lab = Lab::new();
    for (cache, home) in [("", "relative/cache"), ("", "")] {
        let mut command = lab.driver("doctor");
        command.env("KV_CORRECTNESS_CACHE", cache).env("XDG_CACHE_HOME", home);
        let ended = lab.end(command);
        let line = ended.out.lines().find(|line| line.starts_with("  cache ")).unwrap().to_owned();
        assert!(line.contains(lab.path(".cache/kv-correctness").as_str()), "{line}");
    }
}
