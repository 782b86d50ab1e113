//! What a depot costs: `cargo bench --bench depot`, over the folder that it makes, or over `DEPOT=s3://…` with the usual variables.
//!
//! Brings one artifact of `MIB` MiB (2048) up and down and says what the process had in memory at most; then looks up the keys of a run
//! among `ARTIFACTS` (10000) others.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

use std::io::Write;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kv_correctness::depot::{Access, Depot, DepotAddress, Found, Patience};
use kv_correctness::event::{Event, Events};
use kv_correctness::stage_name::StageName;
use kv_correctness::store::{Artifact, Claim, Durability, Reuse, StageKey, Store};

/// Keys that a run of one model on one route looks for.
const KEYS_OF_A_RUN: u32 = 6;

fn main() {
    let number = |name: &str, otherwise: u32| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
    };
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let folder = Utf8Path::from_path(folder.path()).expect("a path in UTF-8");
    let url = std::env::var("DEPOT").unwrap_or_else(|_| format!("file://{folder}/depot"));
    let address: DepotAddress = url.parse().expect("an address of a depot");
    let events = Events::new(|event| {
        if let Event::Warning { message } = event {
            println!("{message}");
        }
    });
    let patience = Patience::of(Duration::from_mins(1));
    let depot = Depot::open(&address, Access::ReadWrite, patience, events).expect("a depot");
    println!("{url}");
    println!("before: {} MiB in memory", peak_mib());

    let size = number("MIB", 2048);
    let (here, there) = (store(&folder.join("here")), store(&folder.join("there")));
    let large = key(u32::MAX);
    let artifact = make(&here, &large, |file| {
        let mut random = fastrand::Rng::with_seed(1);
        let mut block = vec![0; 1 << 20];
        for _ in 0..size {
            random.fill(&mut block);
            file.write_all(&block).expect("room for the artifact");
        }
    });
    let started = Instant::now();
    depot.offer(&large, "large", &artifact);
    println!("{size} MiB up: {:.1} s, at most {} MiB in memory", started.elapsed().as_secs_f64(), peak_mib());
    let Claim::Todo(draft) = there.claim(&large, "large", Reuse::Allowed, Duration::ZERO).expect("a draft")
    else {
        unreachable!("nothing is there yet")
    };
    let started = Instant::now();
    assert_eq!(depot.bring(&large, &draft), Found::Brought);
    println!(
        "{size} MiB down: {:.1} s, at most {} MiB in memory",
        started.elapsed().as_secs_f64(),
        peak_mib()
    );
    assert_eq!(draft.seal().expect("it is whole").output_digest(), artifact.output_digest());

    let artifacts = number("ARTIFACTS", 10_000);
    let small = make(&here, &key(0), |file| file.write_all(b"small").expect("room"));
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (depot, small) = (&depot, &small);
            scope.spawn(move || {
                for number in (0..artifacts).filter(|number| number % 4 == part) {
                    depot.offer(&key(number), "small", small);
                }
            });
        }
    });
    let started = Instant::now();
    for number in 0..KEYS_OF_A_RUN {
        assert!(depot.look_up(StageName::Baseline, key(number * 7).digest()).is_some());
    }
    let there = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for number in 0..KEYS_OF_A_RUN {
        assert!(depot.look_up(StageName::Baseline, key(artifacts + 1 + number).digest()).is_none());
    }
    let not_there = started.elapsed().as_secs_f64();
    println!(
        "{KEYS_OF_A_RUN} keys among {artifacts} artifacts: {there:.3} s where they are there, {not_there:.3} s where not"
    );
}

fn key(number: u32) -> StageKey {
    StageKey::new(1, StageName::Baseline, &serde_json::json!({"number": number}))
}

fn store(folder: &Utf8Path) -> Store {
    Store::open(folder, Durability::Temporary, Events::ignored()).expect("a store")
}

fn make(store: &Store, key: &StageKey, write: impl FnOnce(&mut fs::File)) -> Artifact {
    let Claim::Todo(draft) = store.claim(key, "bench", Reuse::Refused, Duration::ZERO).expect("a draft")
    else {
        unreachable!("re-use was refused")
    };
    let path: Utf8PathBuf = draft.path("observations.jsonl");
    write(&mut fs::File::create(path).expect("a file"));
    draft.seal().expect("a sealed artifact")
}

/// The most memory that this process had, MiB.
fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or_default()
        / 1024
}
