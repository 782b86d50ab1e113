//! Two thousand archives, suites and model folders that nobody would make on purpose, from one seed: each is taken or
//! refused with a hint, in bounded time and memory, and nothing of what is taken is dropped in silence.
//!
//! Each kind runs in a process of its own, which is ended when a case takes too long, and which is told its memory by the kernel.
//! `KV_CORRECTNESS_SEED` names another seed; a failure tells the seed of its case.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use fs_err as fs;
use kv_correctness::assets::{ModelFiles, is_name};
use kv_correctness::dataset::{Limits, Split, extract_with_rest};
use kv_correctness::machine::Device;
use kv_correctness::stage::{StageError, capacity, require_letters};
use kv_correctness::suite::Suite;
use tar::{EntryType, Header};

use crate::lab::{weights, xz};

const ARCHIVES: u64 = 1200;
const SUITES: u64 = 500;
const FOLDERS: u64 = 300;
/// A single case takes milliseconds, and is looked at so often.
const MOST_TIME: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Kibibytes that one case may add to what the process has before it. A dictionary of xz may take 96 MiB.
const MOST_MEMORY: u64 = 128 << 10;
/// In the process that runs cases, the file that it notes the case in.
const NOTE: &str = "KV_CORRECTNESS_HOSTILE_NOTE";

/// Steele, Lea and Flood's `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Runs a test's cases, each from a seed of its own, and holds each to time and memory. `test` is this test's name.
fn for_each_case(test: &str, count: u64, case: impl Fn(&mut Dice)) {
    match std::env::var(NOTE) {
        Ok(note) => run_cases(Utf8Path::new(&note), count, case),
        Err(_) => watch_cases(test),
    }
}

/// Runs them in this process, which has nothing else to do.
fn run_cases(note: &Utf8Path, count: u64, case: impl Fn(&mut Dice)) {
    let seed =
        std::env::var("KV_CORRECTNESS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_129);
    // What is built once, such as patterns and tables, is no case's.
    case(&mut Dice(seed));
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for number in 0..count {
        let seed = Dice(seed ^ (number << 32)).next();
        fs::write(note, format!("case {number}, seed {seed}")).unwrap();
        let before = memory(Peak::Forgotten);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&mut Dice(seed))));
        let (time, memory) = (started.elapsed(), memory(Peak::Kept).saturating_sub(before));
        assert!(outcome.is_ok(), "case {number}, seed {seed}");
        assert!(time < MOST_TIME, "case {number}, seed {seed}: {time:?}");
        assert!(memory < MOST_MEMORY, "case {number}, seed {seed}: {memory} kB");
        (slowest, largest) = (slowest.max(time), largest.max(memory));
    }
    println!("{count} cases; the slowest took {slowest:?}, the largest {largest} kB");
}

#[derive(Clone, Copy)]
enum Peak {
    Kept,
    Forgotten,
}

/// The most kibibytes that this process had at a time since the peak was forgotten.
fn memory(peak: Peak) -> u64 {
    if matches!(peak, Peak::Forgotten) {
        fs::write("/proc/self/clear_refs", "5").unwrap();
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs them in another process, which is ended if a case does not end.
fn watch_cases(test: &str) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| Utf8Path::from_path(folder.path()).unwrap().join(name);
    let output = fs::File::create(path("output")).unwrap().into_file();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("hostile::{test}"), "--exact", "--nocapture"]).env(NOTE, path("case"));
    command.stdout(output.try_clone().unwrap()).stderr(output);
    let mut child = command.spawn().unwrap();
    let (mut last, mut since) = (String::new(), Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let now = fs::read_to_string(path("case")).unwrap_or_default();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > 3 * MOST_TIME {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{last} does not end");
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    let output = fs::read_to_string(path("output")).unwrap();
    assert!(status.success(), "{last}: {output}");
    assert!(output.contains(" cases; the slowest took "), "{output}");
}

/// A member as somebody's packer might write it, or nobody's.
fn member(dice: &mut Dice, kind: u8, path: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = dice.of(&[Header::new_gnu, Header::new_ustar, Header::new_old])();
    let length = path.len().min(100);
    header.as_mut_bytes()[..length].copy_from_slice(&path[..length]);
    header.set_entry_type(EntryType::new(kind));
    header.set_size(content.len() as u64);
    header.set_cksum();
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [header.as_bytes().as_slice(), content, &padding].concat()
}

fn rows(dice: &mut Dice) -> Vec<u8> {
    let sound = b"q,1,2,3,4,A\n".repeat(1 + dice.below(3));
    match dice.below(12) {
        0 => dice.bytes(600),
        1 => "\u{feff}q,1,2,3,4,A\n".encode_utf16().flat_map(u16::to_le_bytes).collect(),
        2 => b"question,A,B,C,D,answer\nq,1,2,3,4,A\n".to_vec(),
        3 => [b"\"", b"x,".repeat(40_000).as_slice()].concat(),
        4 => [b"\xef\xbb\xbf".as_slice(), &sound].concat(),
        5 => b"q,1,2,3,4,\n".to_vec(),
        6 => Vec::new(),
        _ => sound,
    }
}

const TABLES: [&str; 12] = [
    "law_dev.csv",
    "law_test.csv",
    "tax.csv",
    "tax-dev.csv",
    "tax_dev.CSV",
    "tax_val.csv.gz",
    "._law_dev.csv",
    "dev.csv",
    "Law School_test.csv",
    "README",
    ".hidden.csv",
    "caf\u{e9}_dev.csv",
];
const FOLDERS_OF_TABLES: [&str; 9] =
    ["data", "", ".", "data/..", "/data", "backup", "a/b/c", "__MACOSX/data", "data/./"];

/// An archive, and what must be heard of it.
struct Given {
    bytes: Vec<u8>,
    /// Subjects that are there as a whole.
    subjects: BTreeSet<String>,
    /// Nothing of it was cut or turned.
    whole: bool,
    /// Files that hold no question; none where a header says otherwise of what follows it.
    others: Option<usize>,
}

/// Whether a plain file with this name is neither a table nor litter, so that it must be told.
fn is_other(path: &[u8]) -> bool {
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    let path = String::from_utf8_lossy(path);
    let components: Vec<&str> = path.split('/').filter(|part| !["", "."].contains(part)).collect();
    let is_litter = |part: &&str| part.starts_with("._") || *part == "__MACOSX";
    let is_table = match components.as_slice() {
        [.., "dev" | "val" | "test", name] => !name.starts_with('.') && name.to_lowercase().contains(".csv"),
        _ => false,
    };
    !path.ends_with('/') && !is_table && !components.iter().any(is_litter)
}

/// Sound members, and the subjects that they hold; then whatever the dice say.
fn archive(dice: &mut Dice) -> Given {
    let mut bytes = Vec::new();
    let mut others = Some(0);
    let folder = dice.of(&["data", "mmlu-1.0/data", "."]);
    let subjects: BTreeSet<String> = (0..=dice.below(3)).map(|number| format!("sound_{number}")).collect();
    if dice.one_in(8) {
        let mut label = Header::new_old();
        label.as_mut_bytes().fill(0);
        label.as_mut_bytes()[156] = b'V';
        label.as_mut_bytes()[0] = b'L';
        label.set_cksum();
        bytes.extend_from_slice(label.as_bytes());
    }
    let mut parts = Vec::new();
    for subject in &subjects {
        for split in Split::ALL {
            let path = format!("{folder}/{split}/{subject}_{split}.csv");
            parts.push(member(dice, b'0', path.as_bytes(), b"q,1,2,3,4,A\n"));
        }
    }
    for _ in 0..dice.below(4) {
        let place = dice.below(parts.len() + 1);
        let (table, top) = (dice.of(&TABLES), dice.of(&FOLDERS_OF_TABLES));
        let split = dice.of(&["dev", "val", "test", "Dev", "aux"]);
        let mut path = format!("{top}/{split}/{table}").into_bytes();
        if dice.one_in(6) {
            path = dice.bytes(99);
        }
        let content = rows(dice);
        let kind = if dice.one_in(3) { dice.of(b"0157gxLKSDMVNX2346\0z") } else { b'0' };
        others = match kind {
            b'g' | b'x' | b'L' | b'K' => None,
            b'0' | b'7' | b'\0' if is_other(&path) => others.map(|others| others + 1),
            _ => others,
        };
        let content = match kind {
            b'g' | b'x' if dice.one_in(2) => dice
                .of(&[
                    b"30 mtime=1700000000.123456789\n".as_slice(),
                    b"22 GNU.sparse.major=1\n",
                    b"11 path=a/b\n",
                    b"99999999999 size=1\n",
                    b"19 size=99999999999\n",
                    b"x",
                ])
                .to_vec(),
            _ => content,
        };
        let odd = member(dice, kind, &path, &content);
        parts.insert(place, odd);
    }
    bytes.extend(parts.concat());
    bytes.extend([0; 1024]);
    let mut whole = true;
    if dice.one_in(4) {
        whole = false;
        for _ in 0..=dice.below(4) {
            let place = dice.below(bytes.len());
            bytes[place] ^= 1 << dice.below(8);
        }
    }
    if dice.one_in(8) {
        whole = false;
        bytes.truncate(dice.below(bytes.len()));
    }
    bytes = match dice.below(6) {
        0 => xz(&bytes),
        1 => {
            let mut packed = Vec::new();
            let mut encoder = flate2::read::GzEncoder::new(bytes.as_slice(), flate2::Compression::fast());
            std::io::Read::read_to_end(&mut encoder, &mut packed).unwrap();
            packed
        }
        _ => bytes,
    };
    if dice.one_in(16) {
        whole = false;
        let place = dice.below(bytes.len().max(1));
        bytes.truncate(place);
    }
    Given { bytes, subjects, whole, others }
}

#[test]
fn hostile_archives_are_read_whole_or_refused_with_a_hint() {
    let ends = Ends::default();
    for_each_case("hostile_archives_are_read_whole_or_refused_with_a_hint", ARCHIVES, |dice| {
        let Given { bytes, subjects, whole, others } = archive(dice);
        match ends.note(extract_with_rest(bytes.as_slice(), &Limits::default())) {
            Ok((dataset, left_out)) => {
                let found: BTreeSet<String> =
                    dataset.subjects.keys().map(|subject| subject.as_str().to_owned()).collect();
                assert!(!whole || subjects.is_subset(&found), "{subjects:?} but {found:?}");
                assert!(
                    !whole || others.is_none_or(|others| others == left_out.len()),
                    "{others:?}: {left_out}"
                );
            }
            Err(error) => {
                assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error}");
                assert!(!error.to_string().contains(|character: char| character.is_control()), "{error:?}");
            }
        }
    });
}

/// How cases end; a generator whose cases all end alike would show little.
#[derive(Default)]
struct Ends {
    taken: Cell<u64>,
    refused: Cell<u64>,
}

impl Ends {
    fn note<T, E>(&self, end: Result<T, E>) -> Result<T, E> {
        let count = if end.is_ok() { &self.taken } else { &self.refused };
        count.set(count.get() + 1);
        end
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let (taken, refused) = (self.taken.get(), self.refused.get());
        let both = taken * 19 > refused && refused * 19 > taken;
        assert!(both || taken + refused == 0 || std::thread::panicking(), "{taken} taken, {refused} refused");
    }
}

/// Lines, numbers and words of a suite, put elsewhere.
fn suite(dice: &mut Dice) -> Vec<u8> {
    let mut lines: Vec<String> = include_str!("suite.toml").lines().map(str::to_owned).collect();
    for _ in 0..=dice.below(4) {
        let place = dice.below(lines.len());
        let value = dice.of(&[
            "0",
            "-1",
            "1",
            "4294967295",
            "18446744073709551615",
            "1e309",
            "nan",
            "\"\"",
            "\"\\u001b[2J\"",
            "[]",
            "{}",
            "true",
            "\"all\"",
            "\"mp+tape\"",
            "[\"mp\", \"mp\"]",
            "0.075",
            "\"../../..\"",
            "1979-05-27",
            "'''\n'''",
            "\"\\u0000\"",
        ]);
        match dice.below(6) {
            0 => {
                lines.remove(place);
            }
            1 => {
                let line = lines[place].clone();
                lines.insert(dice.below(lines.len()), line);
            }
            2 => lines.insert(
                place,
                format!("{} = {value}", dice.of(&["seed", "name", "a.b.c", "arguments.model", "\"\""])),
            ),
            3 => lines[place] = String::from_utf8_lossy(&dice.bytes(40)).into_owned(),
            _ => {
                if let Some((name, _)) = lines[place].clone().split_once('=') {
                    lines[place] = format!("{name}= {value}");
                }
            }
        }
    }
    let mut bytes = lines.join("\n").into_bytes();
    if dice.one_in(10) {
        let place = dice.below(bytes.len());
        bytes[place] = 0xff;
    }
    bytes
}

#[test]
fn hostile_suites_are_taken_or_refused_with_a_hint() {
    let ends = Ends::default();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = Utf8Path::from_path(folder.path()).unwrap().join("suite.toml");
    for_each_case("hostile_suites_are_taken_or_refused_with_a_hint", SUITES, |dice| {
        fs::write(&path, suite(dice)).unwrap();
        match ends.note(Suite::load_with(path.as_str(), is_name)) {
            Ok(suite) => {
                assert!(suite.validate("suite").is_ok());
                assert!(
                    suite.lmcache.chunk_tokens > 0 && !suite.models.is_empty() && !suite.routes.is_empty()
                );
                assert!(suite.engine.max_model_len > suite.engine.max_tokens);
            }
            Err(error) => assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error}"),
        }
    });
}

/// Files of a model, each perhaps spoilt.
fn spoil(dice: &mut Dice, folder: &Utf8Path) {
    let model = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("data/models/canary-dense");
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let config = match dice.below(8) {
        0 => "{}".to_owned(),
        1 => String::from_utf8_lossy(&dice.bytes(60)).into_owned(),
        2 => config.replacen("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 18446744073709551615", 1),
        3 => config.replacen("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", 1),
        4 => "[".repeat(5000),
        _ => config,
    };
    let tokenizer = match dice.below(6) {
        0 => b"{}".to_vec(),
        1 => dice.bytes(200),
        2 => b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
        // One in the whole's format is large, so most cases go without.
        _ => br#"{"version": "1.0", "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0}}}"#
            .to_vec(),
    };
    let mut whole = weights(&dice.bytes(64));
    if dice.one_in(2) {
        let place = dice.below(whole.len());
        whole[place] ^= 1 << dice.below(8);
    }
    if dice.one_in(4) {
        whole.truncate(dice.below(whole.len()));
    }
    let index = dice.of(&[
        "",
        "{}",
        "{\"weight_map\": {}}",
        "{\"weight_map\": {\"w\": \"model.safetensors\"}}",
        "{\"weight_map\": {\"w\": \"../../etc/passwd\"}}",
        "{\"weight_map\": {\"v\": \"model.safetensors\"}}",
        "[1",
        "null",
    ]);
    let name = dice.of(&[
        "model.safetensors",
        "model.safetensors",
        "model.safetensors",
        "model-00001-of-00001.safetensors",
        "adapter_model.safetensors",
        "model-1-of-999999999999.safetensors",
        "._model.safetensors",
        "model-00001-of-00002.safetensors",
    ]);
    fs::write(folder.join(name), whole).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    if !index.is_empty() {
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    }
    if dice.one_in(8) {
        fs::create_dir(folder.join("folder.safetensors")).unwrap();
    }
}

#[test]
fn hostile_model_folders_are_taken_or_refused_with_a_hint() {
    let suite = Suite::load_with("canary", is_name).unwrap();
    for_each_case("hostile_model_folders_are_taken_or_refused_with_a_hint", FOLDERS, |dice| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let place = Utf8Path::from_path(folder.path()).unwrap();
        spoil(dice, place);
        let mut settings = suite.models[0].clone();
        settings.source = place.as_str().to_owned();
        let files = ModelFiles::find(&settings.source, place).unwrap();
        let checks = [
            files.check_weights(&suite, &settings).map_err(StageError::from),
            files.check_parallelism(&settings, &Device::cpu(), false).map_err(StageError::from),
            capacity(&suite, &settings, &files).map(drop).map_err(StageError::from),
            require_letters(&files, &settings.name),
        ];
        for error in checks.into_iter().filter_map(Result::err) {
            assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{}", error.in_full());
        }
    });
}
