//! One engine that stores and the readers that ask for what it stored. Main type: [`Group`].

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::identity::Identities;
use super::keeping::{Chunks, Keeping};
use crate::carrier::{Surroundings, make_folder};
use crate::dataset::Prompt;
use crate::engine::{Asker, Capacity, EngineError, Parallelism, PrefixCache, Worker};
use crate::foreign::{Difference, Mend, Reader, Reading, ReadingOutcome, ServedCells, Stored, Storer, Way};
use crate::model::Observation;
use crate::stage::StageError;
use crate::stage::capacity::chunk_bytes;
use crate::stage::engine_run::{EngineRun, EngineSetup};

/// How often what was stored lies on the disk: once, once more for the reader, and what the reader stores itself, perhaps in a larger
/// data type, and once more with a salt.
const COPIES: u64 = 6;
/// How often for each further salt: what the reader stores with it, perhaps in a data type of twice the size.
const COPIES_OF_SALT: u64 = 2;

/// Who asks for what one writer stored.
pub(super) struct Group<'a> {
    pub(super) run: EngineRun<'a>,
    pub(super) surroundings: &'a Surroundings<'a>,
    /// The writer and the readers.
    pub(super) who: Identities<'a>,
    /// How many readers were before these, for the names of logs.
    pub(super) before: usize,
    /// With how many salts each asks again that was served what is not its own.
    pub(super) salts: u32,
}

impl Group<'_> {
    /// Stores these prompts, and has each reader ask for them.
    ///
    /// # Errors
    /// When the suite's engine as it is cannot store or load, or a file cannot be written.
    pub(super) async fn read(
        &self,
        prompts: &[Prompt],
        readers: &[Reader],
        capacity: Capacity,
    ) -> Result<Vec<Reading>, StageError> {
        // All embeddings are the same tokens to LMCache, so one prompt would be served what was stored of another.
        let prompts = if self.who.stored.by == Storer::Embeddings { &prompts[..1] } else { prompts };
        let notes = &self.surroundings.notes;
        let chunks = whole_tokens(prompts, capacity.chunk_tokens) / u64::from(capacity.chunk_tokens);
        let copies = COPIES + u64::from(self.salts.saturating_sub(1)) * COPIES_OF_SALT;
        let disk = make_folder(notes, (chunks * chunk_bytes(capacity)).saturating_mul(copies))?;
        let name = format!("writer-{}", self.before);
        let keeping = self.keep(&utf8(&disk), Difference::Nothing, &name).await?;
        if let Some(message) = self.store(&keeping, prompts, chunks).await? {
            let outcome = ReadingOutcome::NotStored { message };
            return Ok(self.readings(prompts, readers, &outcome));
        }
        let kept = matches!(self.who.stored.over, Way::Memory | Way::DrivenMemory).then_some(keeping);
        let mut readings: Vec<Reading> = Vec::new();
        for (number, reader) in (self.before..).zip(readers) {
            if self.who.stored.over.is_in_process() && readings.iter().any(Reading::is_unserved_control) {
                readings.extend(self.not_asked(prompts, &readers[number - self.before..]));
                break;
            }
            let folder = copy_folder(&utf8(&disk), notes)?;
            let place = (kept.as_ref(), utf8(&folder));
            readings.push(self.read_as(number, reader.differs_in, prompts, place).await?);
        }
        Ok(readings)
    }

    /// What comes of readers that are not asked, since one that differs in nothing was served nothing.
    pub(super) fn not_asked(&self, prompts: &[Prompt], readers: &[Reader]) -> Vec<Reading> {
        let message = "LMCache in the engine's process served nothing to the reader that differs in nothing, so this one was not asked";
        self.readings(prompts, readers, &ReadingOutcome::Failed { message: message.to_owned() })
    }

    fn readings(&self, prompts: &[Prompt], readers: &[Reader], outcome: &ReadingOutcome) -> Vec<Reading> {
        let reading = |reader: &Reader| self.reading(reader.differs_in, prompts, (outcome.clone(), None));
        readers.iter().map(reading).collect()
    }

    /// Has the writer store these prompts, unless it is the reader, which does so itself; why it cannot, where that is an outcome.
    async fn store(
        &self,
        keeping: &Keeping<'_>,
        prompts: &[Prompt],
        chunks: u64,
    ) -> Result<Option<String>, StageError> {
        if self.who.stored.by == Storer::Adapter && !self.who.write_adapters()? {
            return Ok(Some("its model has no layer for which an adapter can be made".to_owned()));
        }
        if self.who.stored.over == Way::Process {
            return Ok(None);
        }
        let store = async || -> Result<(), StageError> {
            let mut writer = self.start(self.run, keeping, Difference::Nothing, "foreign KV writing").await?;
            let before = keeping.now().await?;
            writer.ask_as(self.who.asker(Difference::Nothing));
            writer.score(prompts, PrefixCache::Read, || {}).await?;
            keeping.settle(before, chunks).await?;
            Ok(writer.finish().await?)
        };
        match store().await {
            Ok(()) => Ok(None),
            Err(StageError::Engine(error)) if self.who.stored != Stored::default() => {
                Ok(Some(format!("failed to {error}")))
            }
            Err(error @ StageError::Write { .. }) if self.who.stored.over == Way::ProcessFiles => {
                Ok(Some(format!("failed to {}", error.in_full())))
            }
            Err(error) => Err(error),
        }
    }

    /// Has one reader ask for what the writer stored: the writer's server, where it is kept, or another one over this folder.
    async fn read_as(
        &self,
        number: usize,
        differs_in: Difference,
        prompts: &[Prompt],
        (kept, folder): (Option<&Keeping<'_>>, Utf8PathBuf),
    ) -> Result<Reading, StageError> {
        let model = match self.who.place_model(differs_in)? {
            Ok(place) => self.run.files.moved_to(place),
            Err(problem) => {
                let outcome = ReadingOutcome::Failed { message: problem.to_owned() };
                return Ok(self.reading(differs_in, prompts, (outcome, None)));
            }
        };
        let run = EngineRun { files: &model, ..self.run };
        let name = format!("reader-{number}");
        let own = match kept {
            Some(_) => None,
            None => Some(self.keep(&folder, differs_in, &name).await?),
        };
        let keeping = kept.or(own.as_ref()).expect("there is one where none is kept");
        let asked = self.ask(run, keeping, differs_in, prompts, &name).await;
        self.who.places.restore()?;
        match asked {
            Ok(came_of_it) => Ok(self.reading(differs_in, prompts, came_of_it)),
            Err(StageError::Engine(error)) if !self.must_answer(differs_in) => {
                let outcome = ReadingOutcome::Failed { message: format!("failed to {error}") };
                Ok(self.reading(differs_in, prompts, (outcome, None)))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a reader does what the passes of a comparison do, so that its failure is an error.
    fn must_answer(&self, differs_in: Difference) -> bool {
        self.who.stored == Stored::default() && differs_in == Difference::Nothing
    }

    /// What came of asking, and of a salt or a tag where one should be a mend: of what is served, and of what fails while it is read.
    async fn ask(
        &self,
        run: EngineRun<'_>,
        keeping: &Keeping<'_>,
        differs_in: Difference,
        prompts: &[Prompt],
        name: &str,
    ) -> Result<(ReadingOutcome, Option<Mend>), StageError> {
        let words = format!("{}{}", differs_in.words(), self.who.stored.words());
        let arm = format!("foreign KV reading (differs in {words})");
        let mut worker = self.start(run, keeping, differs_in, &arm).await?;
        if let Err(error) = self.store_before(&mut worker, prompts).await {
            return Ok((ReadingOutcome::NotStored { message: format!("failed to {error}") }, None));
        }
        let (outcome, mut worker) = match self.ask_once(&mut worker, keeping, differs_in, prompts).await {
            Ok(outcome) => (outcome, Some(worker)),
            Err(StageError::Engine(error)) if !self.must_answer(differs_in) => {
                (ReadingOutcome::Failed { message: format!("failed to {error}") }, None)
            }
            Err(error) => return Err(error),
        };
        let harmless = matches!(outcome, ReadingOutcome::Answered { served_tokens: 0, .. });
        if harmless || !differs_in.has_a_mend(self.who.stored.over) {
            if let Some(worker) = worker {
                worker.finish().await.ok(); // all answers are there
            }
            return Ok((outcome, None));
        }
        let mend = async {
            let mut worker = if let Some(worker) = worker.take() {
                worker
            } else {
                let mut worker = self.start(run, keeping, differs_in, &format!("{arm} with a mend")).await?;
                self.store_before(&mut worker, prompts).await?;
                worker
            };
            let mut mend = self.mend(&mut worker, keeping, differs_in, prompts, format!("of-{name}")).await?;
            for number in 2..=self.salts {
                let salt = format!("of-{name}-{number}");
                mend = mend.and(self.mend(&mut worker, keeping, differs_in, prompts, salt).await?);
            }
            worker.finish().await.ok(); // all answers are there
            Ok(mend)
        };
        match mend.await {
            Ok(mend) => Ok((outcome, Some(mend))),
            Err(StageError::Engine(error)) => {
                Ok((outcome, Some(Mend::Failed { message: format!("failed to {error}") })))
            }
            Err(error) => Err(error),
        }
    }

    /// Has a reader store that asks the LMCache in its own process.
    async fn store_before(&self, worker: &mut Worker, prompts: &[Prompt]) -> Result<(), EngineError> {
        if self.who.stored.over == Way::Process {
            worker.ask_as(self.who.asker(Difference::Nothing));
            worker.score(prompts, PrefixCache::Read, || {}).await?;
        }
        Ok(())
    }

    async fn ask_once(
        &self,
        worker: &mut Worker,
        keeping: &Keeping<'_>,
        differs_in: Difference,
        prompts: &[Prompt],
    ) -> Result<ReadingOutcome, StageError> {
        worker.ask_as(self.who.asker(differs_in));
        let before = keeping.now().await?;
        let loaded = worker.score(prompts, PrefixCache::Read, || {}).await?;
        let kv_loaded = worker.take_kv_records();
        let second_tier_tokens = keeping.second_tier_tokens(before).await?;
        let computed = worker.score(prompts, PrefixCache::FillOnly, || {}).await?;
        let kv_computed = worker.take_kv_records();
        worker.require_numbers(&loaded).and_then(|()| worker.require_numbers(&computed))?;
        Ok(ReadingOutcome::Answered {
            served_tokens: cached_tokens(&loaded),
            second_tier_tokens,
            largest_difference: (cached_tokens(&computed) == 0)
                .then(|| largest_difference(&loaded, &computed)),
            cells: ServedCells::of(&kv_loaded, &kv_computed, worker.digested_layers()),
        })
    }

    /// Has the reader ask twice with a salt or a tag of its own: for what others stored, and for what it then has stored itself.
    async fn mend(
        &self,
        worker: &mut Worker,
        keeping: &Keeping<'_>,
        differs_in: Difference,
        prompts: &[Prompt],
        own: String,
    ) -> Result<Mend, StageError> {
        let asker = self.who.asker(differs_in);
        worker.ask_as(if self.who.stored.over.is_in_process() {
            Asker { tag: Some(own), ..asker }
        } else {
            Asker { cache_salt: Some(own), ..asker }
        });
        let before = keeping.now().await?;
        let foreign_tokens = cached_tokens(&worker.score(prompts, PrefixCache::Read, || {}).await?);
        if foreign_tokens == 0 {
            let chunk_tokens = self.chunk_tokens(differs_in);
            let chunks = whole_tokens(prompts, chunk_tokens) / u64::from(chunk_tokens);
            keeping.settle(before, chunks).await?;
        }
        let loaded = worker.score(prompts, PrefixCache::Read, || {}).await?;
        let computed = worker.score(prompts, PrefixCache::FillOnly, || {}).await?;
        worker.require_numbers(&loaded).and_then(|()| worker.require_numbers(&computed))?;
        let own_tokens = cached_tokens(&loaded);
        Ok(Mend::Answered {
            salts: 1,
            foreign_tokens,
            own_tokens,
            largest_difference: largest_difference(&loaded, &computed),
        })
    }

    async fn start(
        &self,
        run: EngineRun<'_>,
        keeping: &Keeping<'_>,
        differs_in: Difference,
        arm: &str,
    ) -> Result<Worker, StageError> {
        let threads = run.threads_of(self.ranks(differs_in));
        let setup = EngineSetup {
            arguments: self.who.arguments(differs_in),
            variables: keeping.variables().into_iter().chain(threads).collect(),
            ..EngineSetup::connected(arm, keeping.connector())
        };
        run.start(setup).await
    }

    /// Tokens of the chunks of a reader's server.
    fn chunk_tokens(&self, differs_in: Difference) -> u32 {
        match differs_in {
            Difference::ChunkSize { chunk_tokens } => chunk_tokens,
            _ => self.surroundings.lmcache.chunk_tokens,
        }
    }

    /// The ranks of a reader's engine.
    fn ranks(&self, differs_in: Difference) -> Parallelism {
        let own = self.run.spec.ranks;
        match differs_in {
            Difference::Ranks { ranks } => Parallelism { tensor: ranks, ..own },
            _ => own,
        }
    }

    async fn keep(
        &self,
        folder: &Utf8Path,
        differs_in: Difference,
        name: &str,
    ) -> Result<Keeping<'_>, StageError> {
        let chunks = Chunks {
            tokens: self.chunk_tokens(differs_in),
            shards: self.ranks(differs_in).written_shards(self.run.kv_shape()?),
        };
        Keeping::start(self.surroundings, self.who.stored.over, folder, chunks, name).await
    }

    fn reading(
        &self,
        differs_in: Difference,
        prompts: &[Prompt],
        (outcome, mend): (ReadingOutcome, Option<Mend>),
    ) -> Reading {
        let expected_tokens = whole_tokens(prompts, self.chunk_tokens(differs_in));
        Reading { stored: self.who.stored, differs_in, expected_tokens, outcome, mend }
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
