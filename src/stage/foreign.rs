//! Asks a real LMCache for KV of another identity, and notes what it serves. Output: `foreign.json`.
//!
//! One engine stores a few prompts through a server with a disk tier (route `mp+fs`). Then each reader, another engine behind another
//! server over a copy of that disk, asks the same prompts: one that differs in nothing, and one for each difference.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::Serialize;

use super::capacity::chunk_bytes;
use super::engine_run::{EngineRun, EngineSetup, EngineSpec};
use super::lines::{read_json, write_json};
use super::planting_ground::choose_questions;
use super::{Context, StageError};
use crate::cache::Bucket;
use crate::carrier::{
    Surroundings, launch_server, make_folder, serde_settings, server_settings, settle, with_options,
};
use crate::dataset::Prompt;
use crate::engine::{Capacity, LmcacheServer, PrefixCache, SecondTier, Tiers};
use crate::event::Effort;
use crate::fault::FaultError;
use crate::foreign::{Difference, ForeignFindings, Reading, ReadingOutcome};
use crate::model::Observation;
use crate::store::Artifact;
use crate::suite::{Dtype, LmcacheSettings};

const FOREIGN: &str = "foreign.json";
/// Prompts that are stored and read.
pub const FOREIGN_PROMPTS: usize = 4;
/// Of a reader whose requests carry one.
const SALT: &str = "another";
/// The bit of every second byte of the weights that is turned: of 16-bit numbers one of the mantissa.
const TURNED_BIT: u8 = 0x10;

/// LMCache, asked for what another identity stored, on the route of the folder. Input: the prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Foreign {
    /// The engine that stores; readers differ from it in one thing each.
    pub engine: EngineSpec,
    /// LMCache's settings.
    pub lmcache: LmcacheSettings,
    /// Size of a chunk.
    pub capacity: Capacity,
    /// How many prompts.
    pub prompts: usize,
    /// In what each reader differs.
    pub readers: Vec<Difference>,
}

/// Reads what the foreign stage wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_foreign(foreign: &Artifact) -> Result<ForeignFindings, StageError> {
    read_json(&foreign.path(FOREIGN))
}

/// The readers, the one that differs in nothing first and the one that has other weights last.
#[must_use]
pub fn differences(chunk_tokens: u32, own: Dtype) -> Vec<Difference> {
    let chunk_size = Difference::ChunkSize { chunk_tokens: chunk_tokens.saturating_mul(2) };
    let dtypes = [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32];
    let dtypes = dtypes.into_iter().filter(|dtype| *dtype != own);
    [Difference::Nothing, Difference::Salt, chunk_size]
        .into_iter()
        .chain(dtypes.map(|dtype| Difference::DataType { dtype }))
        .chain([Difference::Weights])
        .collect()
}

impl Foreign {
    /// Also numbers how prompts are made and weights changed.
    pub(crate) const SCHEMA: u32 = 3;

    /// What it takes time for.
    pub(crate) fn effort(&self) -> Effort {
        let engines = 1 + self.readers.len();
        let questions = self.prompts * engines;
        Effort { engines, servers: engines, computed: questions, served: questions, ..Effort::default() }
    }

    pub(crate) async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let found = EngineRun::of(&self.engine, context);
        let (surroundings, notes) = (found.surroundings(self.lmcache)?, context.draft.note_path(""));
        let chunk_tokens = self.lmcache.chunk_tokens;
        let prompts = disjoint_prompts(found.prompts(), chunk_tokens, self.prompts)?;
        let chunks = whole_tokens(&prompts, chunk_tokens) / u64::from(chunk_tokens);
        // What is stored, a reader's copy, and what the reader stores itself, perhaps in a larger data type.
        let disk = make_folder(&notes, chunks * chunk_bytes(self.capacity) * 4)?;
        let scratch = link_model(&found)?;
        let files = found.files.moved_to(utf8(&scratch));
        let run = EngineRun { files: &files, ..found };
        let group = Group { run, surroundings: &surroundings, prompts: &prompts };

        let server = group.start_server(&utf8(&disk), chunk_tokens, "writer").await?;
        let connector = with_options(server.connector(None), self.lmcache.options);
        let mut writer = run.start(EngineSetup::connected("foreign KV writing", connector)).await?;
        let before = server.counters().await?;
        writer.score(&prompts, PrefixCache::Read, || {}).await?;
        settle(&server, &surroundings, before, chunks).await?;
        writer.finish().await?;
        drop(server);

        let mut readings = Vec::new();
        for (number, &differs_in) in self.readers.iter().enumerate() {
            let folder = copy_folder(&utf8(&disk), &notes)?;
            readings.push(group.read(number, differs_in, &utf8(&folder)).await?);
        }
        let prompts = u32::try_from(prompts.len()).expect("a few prompts");
        write_json(context.draft.path(FOREIGN), &ForeignFindings { prompts, readings })
    }
}

/// The writer and its readers.
struct Group<'a> {
    run: EngineRun<'a>,
    surroundings: &'a Surroundings<'a>,
    prompts: &'a [Prompt],
}

impl Group<'_> {
    async fn start_server(
        &self,
        disk: &Utf8Path,
        chunk_tokens: u32,
        name: &str,
    ) -> Result<LmcacheServer, StageError> {
        let mut settings = server_settings(self.surroundings, &format!("lmcache-server-{name}.log"));
        settings.chunk_tokens = chunk_tokens;
        let second = Some(SecondTier::Disk(disk.to_owned()));
        settings.tiers = Tiers {
            second,
            serde: serde_settings(&self.surroundings.lmcache, self.surroundings.cache)?,
            segment: None,
        };
        Ok(launch_server(self.surroundings.events, &settings, &format!("lmcache server of the {name}"))
            .await?)
    }

    /// Has one reader ask what the writer stored, behind a server over this folder.
    async fn read(
        &self,
        number: usize,
        differs_in: Difference,
        disk: &Utf8Path,
    ) -> Result<Reading, StageError> {
        let chunk_tokens = match differs_in {
            Difference::ChunkSize { chunk_tokens } => chunk_tokens,
            _ => self.surroundings.lmcache.chunk_tokens,
        };
        let expected_tokens = whole_tokens(self.prompts, chunk_tokens);
        let reading = |outcome| Reading { differs_in, expected_tokens, outcome };
        if differs_in == Difference::Weights
            && !change_weights(&self.run.files.folder(self.surroundings.cache)?)?
        {
            let message = "its model has no *.safetensors file to change".to_owned();
            return Ok(reading(ReadingOutcome::Failed { message }));
        }
        let server = self.start_server(disk, chunk_tokens, &format!("reader-{number}")).await?;
        match self.ask(&server, differs_in).await {
            Ok(outcome) => Ok(reading(outcome)),
            Err(StageError::Engine(error)) if differs_in != Difference::Nothing => {
                Ok(reading(ReadingOutcome::Failed { message: format!("failed to {error}") }))
            }
            Err(error) => Err(error),
        }
    }

    async fn ask(
        &self,
        server: &LmcacheServer,
        differs_in: Difference,
    ) -> Result<ReadingOutcome, StageError> {
        let salt = (differs_in == Difference::Salt).then(|| SALT.to_owned());
        let connector = with_options(server.connector(salt), self.surroundings.lmcache.options);
        let dtype = match differs_in {
            Difference::DataType { dtype } => Some(dtype),
            _ => None,
        };
        let arm = format!("foreign KV reading (differs in {})", differs_in.words());
        let setup = EngineSetup { dtype, ..EngineSetup::connected(&arm, connector) };
        let mut worker = self.run.start(setup).await?;
        let before = server.counters().await?;
        let loaded = worker.score(self.prompts, PrefixCache::Read, || {}).await?;
        let counted = server.counters().await?.since(before);
        let computed = worker.score(self.prompts, PrefixCache::FillOnly, || {}).await?;
        worker.require_numbers(&loaded).and_then(|()| worker.require_numbers(&computed))?;
        worker.finish().await.ok(); // all answers are there
        Ok(ReadingOutcome::Answered {
            served_tokens: cached_tokens(&loaded),
            second_tier_tokens: counted.hit_second_tier_tokens,
            largest_difference: (cached_tokens(&computed) == 0)
                .then(|| largest_difference(&loaded, &computed)),
        })
    }
}

fn cached_tokens(observations: &[Observation]) -> u64 {
    observations.iter().map(|one| u64::from(one.cached_tokens)).sum()
}

/// Of the letters' log-probabilities.
fn largest_difference(one: &[Observation], other: &[Observation]) -> f64 {
    let letters = |observations: &[Observation]| -> Vec<f64> {
        observations.iter().flat_map(|observation| observation.letters).collect()
    };
    letters(one).into_iter().zip(letters(other)).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max)
}

/// Tokens of the prompts' whole chunks.
fn whole_tokens(prompts: &[Prompt], chunk_tokens: u32) -> u64 {
    let chunk = u64::from(chunk_tokens);
    prompts.iter().map(|prompt| prompt.token_ids.len() as u64 / chunk * chunk).sum()
}

/// A few of the suite's prompts, each without some of its first tokens, so that none begins as another does and no reader is
/// served what it has just stored itself. Each has a chunk of twice the size.
fn disjoint_prompts(prompts: &Artifact, chunk_tokens: u32, wanted: usize) -> Result<Vec<Prompt>, StageError> {
    let chunk = usize::try_from(chunk_tokens).expect("a chunk fits into memory");
    let mut beginnings = BTreeSet::new();
    let mut chosen = Vec::new();
    for (place, mut prompt) in choose_questions(prompts, chunk_tokens, 2 * wanted)?.into_iter().enumerate() {
        prompt.token_ids.drain(..place.min(prompt.token_ids.len()));
        let length = prompt.token_ids.len();
        let suits = length >= chunk.saturating_mul(2) && !length.is_multiple_of(chunk);
        if suits && beginnings.insert(prompt.token_ids[..chunk].to_vec()) {
            chosen.push(prompt);
        }
    }
    chosen.truncate(wanted);
    if chosen.len() < 2 { Err(FaultError::TooShort { chunk_tokens }.into()) } else { Ok(chosen) }
}

/// A folder with a link to each of the model's files, under a path that no other run has, which LMCache's keys hold.
fn link_model(run: &EngineRun<'_>) -> Result<tempfile::TempDir, StageError> {
    let cache = &run.context.desk.cache;
    let (source, parent) = (run.files.folder(cache)?, Bucket::Models.folder(cache));
    let failed = |source| StageError::Write { path: parent.clone(), source };
    fs::create_dir_all(&parent).map_err(failed)?;
    let scratch = tempfile::tempdir_in(&parent).map_err(failed)?;
    for entry in source.read_dir_utf8().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let link = scratch.path().join(entry.file_name());
        fs::os::unix::fs::symlink(entry.path(), link).map_err(failed)?;
    }
    Ok(scratch)
}

/// Puts a changed copy in place of the link to the first file of weights. False if there is none.
fn change_weights(model: &Utf8Path) -> Result<bool, StageError> {
    let failed = |source| StageError::Write { path: model.to_owned(), source };
    let change = || -> io::Result<bool> {
        let entries = model.read_dir_utf8()?.collect::<io::Result<Vec<_>>>()?;
        let mut weights: Vec<Utf8PathBuf> = entries.iter().map(|entry| entry.path().to_owned()).collect();
        weights.retain(|path| path.extension() == Some("safetensors"));
        weights.sort();
        let Some(path) = weights.first() else { return Ok(false) };
        let mut changed = tempfile::NamedTempFile::new_in(model)?;
        turn_bits(&mut io::BufReader::new(fs::File::open(path)?), &mut io::BufWriter::new(&mut changed))?;
        changed.persist(path)?;
        Ok(true)
    };
    change().map_err(failed)
}

/// Copies weights in the format safetensors, a bit of every second byte behind the header turned.
fn turn_bits(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    to.write_all(&length)?;
    io::copy(&mut from.take(u64::from_le_bytes(length)), to)?;
    let mut buffer = vec![0; 1 << 20];
    let mut place = 0_usize;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        buffer[..read].iter_mut().skip(place % 2).step_by(2).for_each(|byte| *byte ^= TURNED_BIT);
        to.write_all(&buffer[..read])?;
        place += read;
    }
}

/// The place of a temporary folder.
fn utf8(folder: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8PathBuf::try_from(folder.path().to_owned()).expect("its parent is UTF-8")
}

/// A copy of a folder of files, removed with its value.
fn copy_folder(from: &Utf8Path, parent: &Utf8Path) -> Result<tempfile::TempDir, StageError> {
    let copy = || -> io::Result<tempfile::TempDir> {
        let folder = tempfile::tempdir_in(parent)?;
        for entry in from.read_dir_utf8()? {
            let entry = entry?;
            fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
        }
        Ok(folder)
    };
    copy().map_err(|source| StageError::Write { path: parent.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_differs_in_one_thing_and_the_first_in_none() {
        let words: Vec<String> =
            differences(256, Dtype::Bfloat16).into_iter().map(Difference::words).collect();
        assert_eq!(
            words,
            [
                "nothing",
                "salt",
                "chunk size (512)",
                "data type (float16)",
                "data type (float32)",
                "weights, under the same path"
            ]
        );
    }

    #[test]
    fn weights_are_changed_behind_their_header_however_they_are_read() {
        let file: Vec<u8> = [&3_u64.to_le_bytes()[..], b"{ }", &[0; 5]].concat();
        let mut changed = Vec::new();
        // One byte at a time, as a slow reader would.
        let mut slow = file.iter().fold(Box::new(io::empty()) as Box<dyn Read>, |before, byte| {
            Box::new(before.chain(io::Cursor::new([*byte])))
        });
        turn_bits(&mut slow, &mut changed).unwrap();
        assert_eq!(changed[..11], file[..11]);
        assert_eq!(changed[11..], [TURNED_BIT, 0, TURNED_BIT, 0, TURNED_BIT]);
    }

    #[test]
    fn the_weights_of_another_model_under_the_same_path_leave_the_model_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        fs::write(folder.join("own"), [0; 8 + 4]).unwrap();
        let place = folder.join("place");
        fs::create_dir(&place).unwrap();
        assert!(!change_weights(&place).unwrap());
        fs::os::unix::fs::symlink(folder.join("own"), place.join("model.safetensors")).unwrap();
        assert!(change_weights(&place).unwrap());
        assert_eq!(fs::read(folder.join("own")).unwrap(), [0; 12]);
        assert_eq!(fs::read(place.join("model.safetensors")).unwrap()[8..], [TURNED_BIT, 0, TURNED_BIT, 0]);
        assert_eq!(place.read_dir_utf8().unwrap().count(), 1);
    }
}
