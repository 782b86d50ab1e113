//! Whether a real LMCache tells KV of one identity from KV of another: what one engine stored is asked for by an engine with
//! other weights under the same path, another data type, another salt, or behind a server with chunks of another size.
//! Minutes of work, so only on request (`cargo test --test it real_identity -- --ignored --nocapture`).

use fs_err as fs;
use kv_correctness::engine::{PrefixCache, SecondTier, Tiers};
use serde_json::{Value, json};

use crate::real_ranks::{Bench, CHUNK_TOKENS, PATIENCE, Reader, WHOLE_TOKENS, ask, prompts, served};

const WRITER: Reader<'_> = Reader { name: "writer", dtype: "bfloat16", ranks: 1, salt: None };

/// What a reader of another identity was served, or what the engine said when it failed.
type Served = Result<u32, String>;

/// Another revision of a model in place: every second byte behind the header, the lower half of a 16-bit number, has a bit of
/// its mantissa turned.
fn revise(model: &camino::Utf8Path) {
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    bytes[header..].iter_mut().step_by(2).for_each(|byte| *byte ^= 0x10);
    fs::write(path, bytes).unwrap();
}

/// What each reader is served of what the writer stored, by name.
fn read_as_others(model: &str, cpu_arguments: Value) -> Vec<(&'static str, Served)> {
    let mut bench = Bench::new(model, cpu_arguments);
    let copy = bench.path("model");
    fs::create_dir(&copy).unwrap();
    for file in bench.model.read_dir_utf8().unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    bench.model = copy;
    let disk = bench.path("disk");
    fs::create_dir(&disk).unwrap();
    let tiers = Tiers { second: Some(SecondTier::Disk(disk)), ..Tiers::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = bench.server(CHUNK_TOKENS, tiers.clone()).await;
        let mut writer = bench.engine(&server, &WRITER).await;
        assert_eq!(served(&ask(&mut writer, &server, 1).await), 0);
        assert_eq!(served(&ask(&mut writer, &server, 1).await), WHOLE_TOKENS, "the writer finds its own KV");
        writer.finish().await.unwrap();
        drop(server);

        let mut outcomes = Vec::new();
        for (name, dtype, salt, chunk_tokens) in [
            ("nothing", "bfloat16", None, CHUNK_TOKENS),
            ("salt", "bfloat16", Some("other"), CHUNK_TOKENS),
            ("chunk size", "bfloat16", None, 2 * CHUNK_TOKENS),
            ("data type", "float32", None, CHUNK_TOKENS),
            ("revision", "bfloat16", None, CHUNK_TOKENS),
        ] {
            if name == "revision" {
                revise(&bench.model);
            }
            // A server of its own over the same disk, so that nothing of an earlier reader is left in memory. It reads alone:
            // what it stores itself goes to a copy.
            let disk = bench.path(&format!("disk of {name}"));
            copy_folder(&bench.path("disk"), &disk);
            let tiers = Tiers { second: Some(SecondTier::Disk(disk)), ..Tiers::default() };
            let server = bench.server(chunk_tokens, tiers).await;
            let reader = Reader { name, dtype, ranks: 1, salt };
            let mut worker = bench.engine(&server, &reader).await;
            let prompts = prompts();
            let read = worker.score(&prompts, PrefixCache::Read, || {});
            let outcome = match tokio::time::timeout(PATIENCE, read).await.unwrap() {
                Ok(observations) => Ok(served(&observations)),
                Err(error) => Err(error.to_string()),
            };
            println!("{model}, another {name}: {outcome:?} of {WHOLE_TOKENS} tokens served");
            outcomes.push((name, outcome));
            drop(worker);
        }
        outcomes
    })
}

fn copy_folder(from: &camino::Utf8Path, to: &camino::Utf8Path) {
    fs::create_dir(to).unwrap();
    for entry in from.read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Salt and chunk size must miss. Data type and revision are printed and not judged: LMCache's keys hold neither.
fn assert_identities(outcomes: &[(&str, Served)]) {
    let of = |wanted: &str| outcomes.iter().find(|(name, _)| *name == wanted).unwrap().1.clone();
    assert_eq!(of("nothing"), Ok(WHOLE_TOKENS), "the same identity must be served, or misses prove nothing");
    assert_eq!((of("salt"), of("chunk size")), (Ok(0), Ok(0)));
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn dense_kv_of_another_salt_or_chunk_size_is_never_served() {
    assert_identities(&read_as_others("canary-dense", json!({})));
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn mla_kv_of_another_salt_or_chunk_size_is_never_served() {
    let cpu_arguments = json!({"compilation_config": {"custom_ops": ["-rotary_embedding"]}});
    assert_identities(&read_as_others("canary-mla", cpu_arguments));
}
