//! Bad usage and bad input: exit code 2, a message, a hint, and no process started.

use fs_err as fs;

use crate::lab::{Lab, archive, weights, xz};

/// The message for a command line, less clap's line of usage.
fn refuse(arguments: &str) -> String {
    let lab = Lab::new();
    let ended = lab.end(lab.driver(arguments));
    assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{}", ended.err);
    assert_eq!(lab.steps(), Vec::<String>::new());
    lab.redact(ended.err.trim_end())
}

#[test]
fn a_suite_that_does_not_exist_is_refused_with_the_names_of_those_that_do() {
    insta::assert_snapshot!(refuse("run --device cpu --suite canry"), @r#"
    error: failed to find suite "canry": it is neither a file nor one of canary, canary-hybrid, canary-pressure, canary-sinks, canary-swa, canary-swa-hma, canary-tp2, mmlu, mmlu-small, qwen, smollm2

    hint: did you mean canary?
    "#);
}

#[test]
fn stages_and_routes_that_do_not_exist_are_refused_with_the_names_of_those_that_do() {
    insta::assert_snapshot!(refuse("stage basline"), @r#"
    error: invalid value 'basline' for '<NAME>'
      [possible values: extract, prompts, baseline, control, cached, compare, faults, foreign, turns, pressure]

      tip: a similar value exists: 'baseline'

    For more information, try '--help'.
    "#);
    insta::assert_snapshot!(refuse("run --force basline"), @r#"
    error: invalid value 'basline' for '--force <STAGE>'
      [possible values: extract, prompts, baseline, control, cached, compare, faults, foreign, turns, pressure]

      tip: a similar value exists: 'baseline'

    For more information, try '--help'.
    "#);
    // A suite's connectors may bring more of them, so it is read first.
    insta::assert_snapshot!(refuse("run --route mp,m+fs"), @r#"
    error: failed to run this route: find route "m+fs": there are in-process, in-process+disk, mp, mp+fs, mp+redis, mp+p2p, mp+restart, example, mp+failing, mp+fs-native, mp+late, mp+s3, mp+unreadable, mp+valkey, multi, nixl, offload+fs, offload, simple-offload

    hint: did you mean mp+fs?
    "#);
}

#[test]
fn no_subject_at_all_is_refused() {
    insta::assert_snapshot!(refuse("run --subjects 0"), @r#"
    error: invalid value '0' for '--subjects <SUBJECTS>': "0" is neither `all` nor a number of subjects from 1

    For more information, try '--help'.
    "#);
}

#[test]
fn a_gpu_that_is_not_there_is_refused() {
    if kv_correctness::machine::Device::cuda().is_some() {
        eprintln!("this machine has a GPU: not tested");
        return;
    }
    let lab = Lab::new();
    let ended = lab.end(lab.driver("run --suite mmlu --device cuda"));
    let needs: Vec<&str> = ended.err.lines().filter(|line| line.contains("GPU")).collect();
    insta::assert_snapshot!(needs.join("\n"), @r"
    MISSING  llama-3.1-8b-instruct: 1 GPU with 62.2 GB (weights 16.1, KV 42.9, the rest about 3.2) [0 of 1 here]
    MISSING  deepseek-v2-lite: 2 GPUs with 61.9 GB (weights 15.7, KV 42.9, the rest about 3.2) [0 of 2 here]
    error: failed to find an NVIDIA GPU: the kernel's driver shows none
    ");
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to find an NVIDIA GPU: the kernel's driver shows none

    hint: `--device cpu` computes on the processor, for which the suite canary is made
    ");
}

#[test]
fn an_archive_that_is_missing_or_cut_off_is_refused() {
    let lab = Lab::new();
    insta::assert_snapshot!(lab.error(&lab.run("", "--data nowhere.tar")), @r#"
    error: failed to find dataset "nowhere.tar": it is neither a path that exists nor known by name (canary, mmlu)

    hint: give `--data` the path of a .tar, .tar.xz, .tar.gz or folder in MMLU's layout
    "#);
    let whole = xz(&archive(40));
    fs::write(lab.path("facts.tar.xz"), &whole[..whole.len() / 2]).unwrap();
    insta::assert_snapshot!(lab.error(&lab.run("", "--data facts.tar.xz")), @r"
    error: failed to extract facts.tar.xz: read the archive to its end: it is cut off in or after member `data/test/botany_test.csv`

    hint: download the archive again and compare its SHA-256 with the published one
    ");
    fs::write(lab.path("page.html"), "<html>not found</html>").unwrap();
    insta::assert_snapshot!(lab.error(&lab.run("", "--data page.html")), @r#"
    error: failed to extract page.html: read the archive: the file is neither tar, tar.xz nor tar.gz (it starts with "<html>not found<")

    hint: give the archive itself (`data.tar`, `.tar.xz` or `.tar.gz`), not a zip or a saved web page; or the folder that it was made of
    "#);
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn a_suite_with_a_mistake_is_refused_with_its_line() {
    let lab = Lab::new();
    lab.edit("suite.toml", "margin", "magrin");
    insta::assert_snapshot!(lab.error(&lab.run("", "")), @r"
    error: failed to understand suite suite.toml: TOML parse error at line 28, column 1
       |
    28 | magrin = 0.005
       | ^^^^^^
    unknown field `magrin`, expected one of `margin`, `assumed_flip_rate`, `assumed_flip_correlation`, `near_tie_gap`, `kv_decides`, `tolerance`

    hint: compare it with one that is right: `kv-correctness suite show canary`
    ");
    lab.edit("suite.toml", "magrin = 0.005", "margin = 2.0");
    insta::assert_snapshot!(lab.error(&lab.run("", "")), @r"
    error: failed to understand suite suite.toml: line 28, column 1: `criteria.margin` is out of range: it is above 0 and at most 0.075, since a model must beat guessing by ten margins

    hint: compare it with one that is right: `kv-correctness suite show canary`
    ");
    assert_eq!(lab.steps(), Vec::<String>::new());
    lab.edit("suite.toml", "margin = 2.0", "margin = 0.005");
    lab.edit("suite.toml", "single-letter/1", "single-letter/0");
    insta::assert_snapshot!(lab.error(&lab.run("", "")), @r#"
    error: failed to find prompt template "single-letter/0"

    hint: the built-in template is `single-letter/1`
    "#);
    lab.edit("suite.toml", "single-letter/0", "single-letter/1");
    lab.edit("suite.toml", "source = \"model\"", "source = \"nowhere\"");
    insta::assert_snapshot!(lab.error(&lab.run("", "")), @r#"
    error: failed to find model "nowhere": it is neither a path that exists nor known by name (canary-dense, canary-hybrid, canary-mla, canary-sinks, canary-swa, meta-llama/Llama-3.1-8B-Instruct, deepseek-ai/DeepSeek-V2-Lite, smollm2-135m-instruct, qwen2.5-coder-0.5b-instruct)

    hint: give the model's `source` the path of a folder in Hugging Face's layout
    "#);
}

#[test]
fn a_suite_of_ones_own_is_checked_with_its_questions_and_its_model_and_nothing_is_started() {
    let lab = Lab::new();
    let check = || lab.end(lab.driver("suite check suite.toml"));
    let right = check();
    assert_eq!(right.code, 0, "{}", right.err);
    insta::assert_snapshot!(lab.redact(&right.out), @r"
    suite facts: a fake engine answers small questions
    questions facts.tar: 24 in 2 subjects
    model tiny (model): dense, files [SHORT]
    routes mp
    right; whether it can run here: `kv-correctness doctor --suite suite.toml`
    ");
    lab.edit("suite.toml", "chunk_tokens = 16", "chunk_tokens = 0");
    insta::assert_snapshot!(lab.error(&check()), @r"
    error: failed to understand suite suite.toml: line 24, column 1: `lmcache.chunk_tokens` must be at least 1

    hint: compare it with one that is right: `kv-correctness suite show canary`
    ");
    lab.edit("suite.toml", "chunk_tokens = 0", "chunk_tokens = \"many\"");
    insta::assert_snapshot!(lab.error(&check()), @r#"
    error: failed to understand suite suite.toml: TOML parse error at line 24, column 16
       |
    24 | chunk_tokens = "many"
       |                ^^^^^^
    invalid type: string "many", expected u32

    hint: compare it with one that is right: `kv-correctness suite show canary`
    "#);
    lab.edit("suite.toml", "chunk_tokens = \"many\"", "chunk_tokens = 16");
    fs::remove_file(lab.path("model/model.safetensors")).unwrap();
    insta::assert_snapshot!(lab.error(&check()), @r"
    error: failed to check suite suite.toml, line 38, column 1: find weights in the folder model: it holds no *.safetensors

    hint: get them with `hf download OWNER/MODEL --revision COMMIT --local-dir model`, or name their format, if it is another, by vLLM's `load_format` in the model's `arguments`
    ");
    let other_format = "source = \"model\"\narguments = { load_format = \"pt\" }";
    lab.edit("suite.toml", "source = \"model\"", other_format);
    assert_eq!(check().code, 0);
    lab.edit("suite.toml", other_format, "source = \"model\"");
    fs::write(lab.path("model/model.safetensors"), weights(b"weights")).unwrap();
    fs::remove_file(lab.path("model/tokenizer.json")).unwrap();
    insta::assert_snapshot!(lab.error(&check()), @r"
    error: failed to check suite suite.toml, line 38, column 1: use model/tokenizer.json: No such file or directory (os error 2)

    hint: a model folder needs config.json, tokenizer.json and *.safetensors of one model
    ");
    // What a name on the hub stands for can change from one day to the next.
    lab.edit("suite.toml", "source = \"model\"", "source = \"some-owner/some-model@main\"");
    insta::assert_snapshot!(lab.error(&check()), @r#"
    error: failed to check suite suite.toml, line 38, column 1: find model "some-owner/some-model@main": it is neither a path that exists nor known by name (canary-dense, canary-hybrid, canary-mla, canary-sinks, canary-swa, meta-llama/Llama-3.1-8B-Instruct, deepseek-ai/DeepSeek-V2-Lite, smollm2-135m-instruct, qwen2.5-coder-0.5b-instruct)

    hint: if it is on the Hugging Face hub, pin it by its files: `hf download some-owner/some-model --revision COMMIT --local-dir FOLDER`, and give that folder to the model's `source`
    "#);
    lab.edit("suite.toml", "some-owner/some-model@main", "cannary-dense");
    assert!(lab.error(&check()).ends_with("hint: did you mean canary-dense?"));
    lab.edit("suite.toml", "facts.tar", "env");
    insta::assert_snapshot!(lab.error(&check()), @r#"
    error: failed to check suite suite.toml, line 3, column 1: find questions in the folder env: it holds no table of dev, val or test

    hint: it needs the folders `dev`, `val` and `test`, or these in its `data`, with a CSV file a subject

    error: failed to check suite suite.toml, line 38, column 1: find model "cannary-dense": it is neither a path that exists nor known by name (canary-dense, canary-hybrid, canary-mla, canary-sinks, canary-swa, meta-llama/Llama-3.1-8B-Instruct, deepseek-ai/DeepSeek-V2-Lite, smollm2-135m-instruct, qwen2.5-coder-0.5b-instruct)

    hint: did you mean canary-dense?
    "#);
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn an_argument_that_would_give_every_arm_a_connector_is_refused_by_every_command_before_anything_starts() {
    let lab = Lab::new();
    let connector = "kv_transfer_config = { kv_connector = \"LMCacheMPConnector\", kv_role = \"kv_both\" }";
    lab.edit("suite.toml", "swap_space = 0", connector);
    let message = lab.error(&lab.run("", ""));
    insta::assert_snapshot!(message, @r"
    error: failed to understand suite suite.toml: line 21, column 1: `kv_transfer_config` gives an engine a connector, and this program gives each arm its own: baseline and control have none

    hint: leave it out, and name the ways for KV to travel in `routes`
    ");
    for command in [
        "suite check suite.toml",
        "doctor --suite suite.toml",
        "explain --suite suite.toml",
        "stage baseline --suite suite.toml",
    ] {
        assert_eq!(lab.error(&lab.end(lab.driver(command))), message, "{command}");
    }
    lab.edit("suite.toml", connector, "load_format = \"dummy\"");
    let dummy = lab.error(&lab.run("", ""));
    assert!(dummy.contains("`load_format` makes up weights"), "{dummy}");
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn a_suite_that_is_shown_is_one_to_begin_with() {
    let lab = Lab::new();
    let shown = lab.end(lab.driver("suite show canary"));
    lab.write("mine.toml", &shown.out);
    let checked = lab.end(lab.driver("suite check mine.toml"));
    assert_eq!(checked.code, 0, "{}", checked.err);
    insta::assert_snapshot!(lab.redact(&checked.out), @r"
    suite canary: two embedded tiny models (dense and MLA) that recall facts from a long prompt
    questions canary: 72 of 368 in 9 subjects
    model canary-dense (canary-dense): dense, files [SHORT]
    model canary-mla (canary-mla): MLA, files [SHORT]
    routes mp
    right; whether it can run here: `kv-correctness doctor --suite mine.toml`
    ");
    insta::assert_snapshot!(lab.error(&lab.end(lab.driver("suite show mnie.toml"))), @r#"
    error: failed to find suite "mnie.toml": it is neither a file nor one of canary, canary-hybrid, canary-pressure, canary-sinks, canary-swa, canary-swa-hma, canary-tp2, mmlu, mmlu-small, qwen, smollm2

    hint: name one of these or a TOML file; `kv-correctness suite show canary > mine.toml` begins one
    "#);
}

#[test]
fn a_name_means_what_it_stands_for_and_not_a_folder_beside_the_suite() {
    let lab = Lab::new();
    let shown = lab.end(lab.driver("suite show canary"));
    lab.write("mine.toml", &shown.out);
    lab.write("canary/report.json", "{}");
    lab.write("canary-dense/notes.txt", "no model");
    let checked = lab.end(lab.driver("suite check mine.toml"));
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert!(checked.out.contains("questions canary: 72 of 368 in 9 subjects"), "{}", checked.out);
    lab.edit("mine.toml", "dataset = \"canary\"", "dataset = \"./canary\"");
    let refused = lab.error(&lab.end(lab.driver("suite check mine.toml")));
    assert!(refused.contains("./canary"), "{refused}");
}

#[test]
fn a_folder_of_tables_is_the_same_dataset_as_its_archive() {
    let lab = Lab::finished();
    let report = lab.report();
    tar::Archive::new(archive(12).as_slice()).unpack(lab.path("mine")).unwrap();
    for folder in ["mine", "mine/data"] {
        let (ended, steps) = lab.steps_of(|| lab.run("", &format!("--data {folder}")));
        assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
        assert_eq!(lab.report().findings, report.findings);
    }
    fs::remove_dir_all(lab.path("mine/data/val")).unwrap();
    insta::assert_snapshot!(lab.error(&lab.run("", "--data mine")), @r"
    error: failed to extract mine: complete the dataset: subject botany has no val questions

    hint: add `data/val/botany_val.csv` with at least one row, or remove the subject
    ");
}

#[test]
fn a_question_whose_kv_cannot_fit_is_refused_before_anything_starts() {
    let lab = Lab::new();
    lab.edit("suite.toml", "swap_space = 0", "num_gpu_blocks_override = 1000");
    lab.edit("model/config.json", r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 80000"#);
    insta::assert_snapshot!(lab.error(&lab.run("", "")), @r"
    error: failed to plan the rounds of tiny: fit the KV of a prompt of zoology, 14375 MiB, into LMCache's memory: a round may fill 768 MiB of it

    hint: raise `lmcache.memory_gib` in the suite
    ");
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn a_model_whose_attention_is_not_known_is_refused_by_name_before_anything_starts() {
    let lab = Lab::new();
    let windowed = r#""sliding_window": 512, "num_hidden_layers": 6"#;
    lab.edit("model/config.json", r#""num_hidden_layers": 6"#, windowed);
    let refused = lab.run("", "");
    assert_eq!(refused.code, 2);
    let told = "its attention is not known: llama has 6 layers of a sliding window of 512 tokens";
    assert!(refused.err.contains(told), "{}", refused.err);
    assert!(refused.err.contains("hint: take a model whose layers have full attention"), "{}", refused.err);
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn what_a_second_model_lacks_is_said_before_the_first_ones_engine_starts() {
    let second = "\n[[models]]\nname = \"second\"\nsource = \"";
    let lab = Lab::new();
    lab.edit("suite.toml", "source = \"model\"", &format!("source = \"model\"\n{second}nowhere\""));
    let missing = lab.run("", "");
    assert!(missing.err.contains("failed to find model \"nowhere\""), "{}", missing.err);
    fs::create_dir(lab.path("large")).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(lab.path("model").join(file), lab.path("large").join(file)).unwrap();
    }
    lab.edit("suite.toml", "nowhere", "large");
    lab.edit("suite.toml", "swap_space = 0", "num_gpu_blocks_override = 1000");
    lab.edit("large/config.json", r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 80000"#);
    let too_large = lab.run("", "");
    assert!(too_large.err.contains("failed to plan the rounds of second"), "{}", too_large.err);
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn an_environment_that_is_missing_or_lacks_lmcache_is_refused() {
    let lab = Lab::new();
    let mut command = lab.driver("run --suite suite.toml --device cpu");
    command.env("KV_CORRECTNESS_ENV", lab.path("nowhere"));
    insta::assert_snapshot!(lab.error(&lab.end(command)), @r"
    error: failed to use [LAB]/nowhere as a Python environment: No such file or directory (os error 2)

    hint: name the folder of a virtual environment, which holds bin/python and lib/, or leave KV_CORRECTNESS_ENV unset
    ");
    fs::remove_dir_all(lab.path("env/lib/python3.11/site-packages/lmcache-0.5.6.dist-info")).unwrap();
    insta::assert_snapshot!(lab.error(&lab.run("", "")), @r"
    error: failed to run this route: use the environment [LAB]/env: LMCache is not installed in it

    hint: install LMCache there, or leave KV_CORRECTNESS_ENV unset
    ");
}

#[test]
fn folders_that_cannot_be_written_are_refused_before_anything_starts() {
    let lab = Lab::new();
    insta::assert_snapshot!(lab.error(&lab.run("", "--cache suite.toml")), @r"
    error: failed to use the store [LAB]/suite.toml/store-1: failed to create directory `[LAB]/suite.toml/store-1/entries`: Not a directory (os error 20)

    hint: check that [LAB]/suite.toml/store-1 can be written and its disk has space, or name another folder with --cache DIR
    ");
    let ended = lab.end(lab.driver("run --suite suite.toml --device cpu --out suite.toml/out"));
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to write suite.toml/out: failed to create directory `suite.toml/out`: Not a directory (os error 20)

    hint: see to it that this place can be written, or name another, and run the same command again: finished stages are kept
    ");
    assert_eq!(lab.steps(), Vec::<String>::new());
}

/// The message for a model that is spread in this way, before anything has started.
fn refuse_to_spread(setting: &str) -> String {
    let lab = Lab::new();
    lab.edit("suite.toml", "source = \"model\"", &format!("source = \"model\"\n{setting}"));
    let message = lab.error(&lab.run("", ""));
    assert_eq!(lab.steps(), Vec::<String>::new());
    message[message.find("error: ").unwrap()..].to_owned()
}

#[test]
fn a_model_that_cannot_be_spread_as_its_suite_wants_is_refused_before_anything_starts() {
    insta::assert_snapshot!(refuse_to_spread("tensor_parallel_size = 3"), @r"
    error: failed to place tiny: its 4 attention heads cannot be divided by `tensor_parallel_size` 3

    hint: choose a `tensor_parallel_size` that divides them
    ");
    insta::assert_snapshot!(refuse_to_spread("data_parallel_size = 2"), @r"
    error: failed to place tiny: `data_parallel_size` is 2, and vLLM's offline engine has one copy a process

    hint: copies share no KV: leave it at 1, and spread a model with `tensor_parallel_size`
    ");
    insta::assert_snapshot!(refuse_to_spread("distributed_executor_backend = \"ray\""), @r"
    error: failed to place tiny: `distributed_executor_backend` is ray, which the Python environment lacks

    hint: name an environment that has ray with KV_CORRECTNESS_ENV, or use `mp` for ranks on one host
    ");
}

#[test]
fn a_route_that_does_not_exist_is_refused_with_its_place_in_the_suite() {
    let lab = Lab::new();
    lab.edit("suite.toml", r#"["mp"]"#, r#"["mp", "mp+fsx"]"#);
    for command in [
        "run --device cpu --suite suite.toml",
        "suite check suite.toml",
        "doctor --suite suite.toml --device cpu",
    ] {
        let ended = lab.end(lab.driver(command));
        assert_eq!(ended.code, 2, "{command}: {}", ended.err);
        let told = "understand suite suite.toml: line 5, column 1";
        assert!(ended.err.contains(told) && ended.err.contains("find route \"mp+fsx\""), "{}", ended.err);
    }
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn what_needs_no_environment_makes_none_and_starts_no_python() {
    let lab = Lab::new();
    let without = |arguments: &str| {
        let mut command = lab.driver(&format!("{arguments} --suite suite.toml --device cpu"));
        command.env_remove("KV_CORRECTNESS_ENV").env("PATH", lab.path("bin"));
        lab.end(command)
    };
    let ended = without("run --data mised.tar");
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("find dataset \"mised.tar\""), "{}", ended.err);
    for stage in ["extract", "prompts"] {
        let ended = without(&format!("stage {stage} --out out"));
        assert_eq!(ended.code, 0, "{}", ended.err);
    }
    assert!(lab.path("out/extract/questions.jsonl").is_file());
    let ended = without("explain");
    insta::assert_snapshot!(ended.out, @r"
    extract: unchanged, re-used
    prompts tiny: unchanged, re-used
    what needs the Python environment: runs, since that is not made yet
    ");
    assert!(!lab.path("cache/environments").exists());
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn a_models_files_are_read_once_whatever_is_looked_for() {
    const WEIGHTS: u64 = 64 << 20;
    let lab = Lab::finished();
    fs::File::create(lab.path("model/model.safetensors")).unwrap().set_len(WEIGHTS).unwrap();
    let second =
        "source = \"model\"\n\n[[models]]\nname = \"twin\"\nsource = \"model\"\narguments.block_size = 32";
    lab.edit("suite.toml", "source = \"model\"", second);
    let routes = r#"["mp", "mp+fs", "mp+redis", "mp+p2p", "in-process"]"#;
    lab.edit("suite.toml", r#"["mp"]"#, routes);
    let mut child = lab.driver("explain --suite suite.toml --device cpu");
    let mut child = child.stdout(std::process::Stdio::null()).spawn().unwrap();
    // Until it is waited for, the kernel remembers what an ended process read.
    let process = format!("/proc/{}", child.id());
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(10);
    while !fs::read_to_string(format!("{process}/stat")).unwrap().contains(") Z ") {
        assert!(std::time::Instant::now() < deadline, "explain hangs");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let counted = fs::read_to_string(format!("{process}/io")).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let read: u64 = counted.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap();
    assert!((WEIGHTS..2 * WEIGHTS).contains(&read), "{read} bytes were read of {WEIGHTS} of weights");
}
