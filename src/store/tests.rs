//! The store's promises, each across the public interface.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use camino::Utf8PathBuf;
use fs_err as fs;
use serde_json::json;

use super::*;
use crate::event::{Event, Events};
use crate::lock::LockError;
use crate::stage_name::StageName;

const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    store: Store,
    warnings: Arc<Mutex<Vec<String>>>,
    cache: Utf8PathBuf,
    _keep: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let cache = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&warnings);
        let events = Events::new(move |event| {
            if let Event::Warning { message } = event {
                told.lock().unwrap().push(message);
            }
        });
        Self {
            store: Store::open(&cache, Durability::Lasting, events).unwrap(),
            warnings,
            cache,
            _keep: keep,
        }
    }

    fn draft(&self, key: &StageKey) -> Draft {
        match self.store.claim(key, "dense", Reuse::Refused, PATIENCE).unwrap() {
            Claim::Todo(draft) => draft,
            Claim::Done(_) => panic!("re-use was refused"),
        }
    }

    fn seal(&self, key: &StageKey, content: &str) -> Artifact {
        let draft = self.draft(key);
        fs::write(draft.path("answers.json"), content).unwrap();
        fs::write(draft.note_path("engine.log"), format!("{:?}", std::time::Instant::now())).unwrap();
        draft.seal().unwrap()
    }
}

fn key(seed: u64) -> StageKey {
    StageKey::new(1, StageName::Baseline, &json!({"seed": seed}))
}

#[test]
fn a_sealed_artifact_is_found_by_its_key_alone() {
    let fixture = Fixture::new();
    assert!(fixture.store.find(&key(0)).unwrap().is_none());
    let sealed = fixture.seal(&key(0), "A B C D");

    let found = fixture.store.find(&key(0)).unwrap().unwrap();
    assert_eq!(fs::read_to_string(found.path("answers.json")).unwrap(), "A B C D");
    assert_eq!(found.output_digest(), sealed.output_digest());
    assert!(found.note_path("engine.log").exists());
    assert!(fixture.store.find(&key(1)).unwrap().is_none());
    assert!(matches!(
        fixture.store.claim(&key(0), "dense", Reuse::Allowed, PATIENCE).unwrap(),
        Claim::Done(artifact) if artifact.output_digest() == sealed.output_digest()
    ));
}

#[test]
fn notes_are_not_part_of_the_output_digest_and_names_and_contents_are() {
    let fixture = Fixture::new();
    let first = fixture.seal(&key(0), "A").output_digest();
    assert_eq!(fixture.seal(&key(1), "A").output_digest(), first);
    assert_ne!(fixture.seal(&key(2), "B").output_digest(), first);

    let draft = fixture.draft(&key(3));
    fs::write(draft.path("renamed.json"), "A").unwrap();
    assert_ne!(draft.seal().unwrap().output_digest(), first);
}

#[test]
fn a_forced_stage_replaces_its_artifact() {
    let fixture = Fixture::new();
    fixture.seal(&key(0), "A");
    let replaced = fixture.seal(&key(0), "B");

    let found = fixture.store.find(&key(0)).unwrap().unwrap();
    assert_eq!(found.output_digest(), replaced.output_digest());
    assert_eq!(fs::read_to_string(found.path("answers.json")).unwrap(), "B");
    assert_eq!(fs::read_dir(fixture.cache.join("store-1/aside")).unwrap().count(), 0);
}

#[test]
fn a_draft_that_was_never_sealed_is_not_found_and_does_not_leak_into_the_next() {
    let fixture = Fixture::new();
    let draft = fixture.draft(&key(0));
    fs::write(draft.path("half.json"), "{").unwrap();
    let log = draft.note_path("engine.log");
    fs::write(&log, "crashed").unwrap();
    drop(draft);

    assert!(fixture.store.find(&key(0)).unwrap().is_none());
    assert!(log.exists(), "the log of a failed stage can be read");
    let artifact = fixture.seal(&key(0), "A");
    assert!(!artifact.path("half.json").exists());
}

#[test]
fn damage_of_any_kind_is_noticed_told_and_mended_by_running_again() {
    type Damage = fn(&Artifact);
    let damages: [(&str, Damage); 6] = [
        ("answers.json has 1 bytes instead of 7", |it| fs::write(it.path("answers.json"), "A").unwrap()),
        ("another content", |it| fs::write(it.path("answers.json"), "A B C E").unwrap()),
        ("answers.json", |it| fs::remove_file(it.path("answers.json")).unwrap()),
        ("manifest.json is malformed", |it| fs::write(it.folder().join("manifest.json"), "{}").unwrap()),
        ("manifest.json", |it| fs::remove_file(it.folder().join("manifest.json")).unwrap()),
        ("key.json is not the key", |it| fs::write(it.folder().join("key.json"), "{}").unwrap()),
    ];
    for (words, damage) in damages {
        let fixture = Fixture::new();
        let sealed = fixture.seal(&key(0), "A B C D");
        damage(&sealed);

        assert!(fixture.store.find(&key(0)).unwrap().is_none(), "{words}");
        let warnings = fixture.warnings.lock().unwrap().clone();
        assert!(matches!(&warnings[..], [warning] if warning.contains(words)), "{words}: {warnings:?}");
        assert!(!sealed.folder().exists(), "moved aside");
        fixture.seal(&key(0), "A B C D");
        assert!(fixture.store.find(&key(0)).unwrap().is_some());
    }
}

#[test]
fn of_many_claims_at_once_one_runs_and_all_get_its_artifact() {
    const CLAIMS: usize = 8;
    let fixture = Fixture::new();
    let (runs, start) = (AtomicUsize::new(0), Barrier::new(CLAIMS));
    let claim = || {
        start.wait();
        match fixture.store.claim(&key(0), "dense", Reuse::Allowed, PATIENCE).unwrap() {
            Claim::Done(artifact) => artifact,
            Claim::Todo(draft) => {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                fs::write(draft.path("run"), run.to_string()).unwrap();
                draft.seal().unwrap()
            }
        }
    };
    let digests: std::collections::BTreeSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLAIMS).map(|_| scope.spawn(claim)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().output_digest()).collect()
    });
    assert_eq!(runs.into_inner(), 1);
    assert_eq!(digests.len(), 1);
}

#[test]
fn a_claim_that_waits_in_vain_names_the_stage_and_the_holder() {
    let fixture = Fixture::new();
    let _held = fixture.draft(&key(0));
    let error = fixture.store.claim(&key(0), "dense", Reuse::Allowed, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(
        &error,
        StoreError::Lock(LockError::Held { holder: Some(holder), .. }) if holder.pid == std::process::id()
    ));
    let named = format!("lock stage baseline ({}) within", key(0).digest().short());
    assert!(error.to_string().starts_with(&named), "{error}");
    assert!(error.hint().is_some());
    assert!(
        fixture.store.claim(&key(1), "dense", Reuse::Allowed, Duration::ZERO).is_ok(),
        "locks are per key"
    );
}

#[test]
fn an_output_that_is_a_link_is_refused() {
    let fixture = Fixture::new();
    let draft = fixture.draft(&key(0));
    let link = draft.path("link");
    std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
    assert!(matches!(draft.seal(), Err(StoreError::NotAFile { path }) if path == link));
    assert!(fixture.store.find(&key(0)).unwrap().is_none());
}

#[test]
fn the_last_key_of_each_label_is_remembered_when_sealed_and_when_reused() {
    let fixture = Fixture::new();
    assert_eq!(fixture.store.last_keys(StageName::Baseline).unwrap().len(), 0);
    fixture.seal(&key(0), "A");
    fixture.seal(&key(1), "A");
    assert_eq!(fixture.store.last_keys(StageName::Baseline).unwrap()["dense"], key(1));
    fixture.store.claim(&key(0), "dense", Reuse::Allowed, PATIENCE).unwrap();
    fixture.store.claim(&key(1), "mla mp+fs", Reuse::Allowed, PATIENCE).unwrap();
    let last = fixture.store.last_keys(StageName::Baseline).unwrap();
    assert_eq!((&last["dense"], &last["mla mp+fs"]), (&key(0), &key(1)));
    assert_eq!(fixture.store.last_keys(StageName::Cached).unwrap().len(), 0);
}

#[test]
fn cleaning_removes_what_is_old_and_stale_and_spares_what_is_in_use() {
    let fixture = Fixture::new();
    let old = fixture.seal(&key(0), "A");
    let used = fixture.seal(&key(1), "A");
    let rewritten = fixture.seal(&key(2), "A");
    let long_ago = std::time::SystemTime::now() - Duration::from_hours(240);
    for artifact in [&old, &used, &rewritten] {
        let file = fs::OpenOptions::new().write(true).open(artifact.folder().join("last-used")).unwrap();
        file.into_file().set_modified(long_ago).unwrap();
    }
    fixture.store.find(&key(1)).unwrap().unwrap();
    let active = fixture.draft(&key(2));
    let stale = fixture.draft(&key(3)).path("");

    let entries = fixture.store.entries().unwrap();
    assert_eq!(entries.len(), 3);
    assert!(entries.iter().all(|entry| entry.bytes > 1 && entry.stage == StageName::Baseline));
    let removed = fixture.store.alone().unwrap().remove_unused(Duration::from_hours(24)).unwrap();

    assert_eq!(removed.iter().map(|entry| entry.key).collect::<Vec<_>>(), [key(0).digest()]);
    assert!(!old.folder().exists());
    assert!(used.folder().exists() && rewritten.folder().exists());
    assert!(active.path("").exists() && !stale.exists());
}
