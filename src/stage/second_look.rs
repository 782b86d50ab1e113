//! The second look at wrong cells of KV: what was served is written down while the blocks still hold it, and the prompts are
//! computed again behind the last pass. It costs nothing where every cell is right. Output: `second-look.json`; the bytes
//! themselves lie beside the logs, in `kv`. Main type: [`Looker`].

use std::cell::RefCell;
use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::known_copies::{KnownCopies, SuspectCell};
use super::lines::{read_json, write_json};
use super::{Context, StageError};
use crate::comparison::{ComputedKv, KnownCell, KvDifference, Pass, SecondLook, Sight, look_closely};
use crate::dataset::{Prompt, QuestionId};
use crate::engine::{NumberedChunk, PrefixCache, SeenCell, Worker};
use crate::event::Events;
use crate::model::{CellBytes, ChunkDigests, Element, KvRecord};
use crate::store::Artifact;

const LOOKS: &str = "second-look.json";
/// How many wrong cells are looked at, one a chunk.
const CELLS: usize = 4;
/// Prompts of a round, at most, that are computed again together where one alone gives no copy of what the store pass computed.
const TOGETHER: usize = 64;
/// Other prompts of the round that wrong rows are looked for in.
const OTHERS: usize = 16;
/// Bytes of computed cells that wrong rows are looked for in.
const KNOWN_BYTES: usize = 64 << 20;

/// Looks at the first wrong cells of the passes with a cache.
pub(super) struct Looker<'a> {
    events: &'a Events,
    model: &'a str,
    folder: Utf8PathBuf,
    chunk_tokens: u32,
    copies: RefCell<KnownCopies>,
    state: RefCell<State>,
    looks: RefCell<Vec<SecondLook>>,
}

/// Only the first batch with wrong cells is looked at, whichever engine finds it.
enum State {
    Searching,
    /// They are being written down.
    Writing,
    /// They wait for the end of the passes of the engine that found them.
    Found(Found),
    Told,
}

/// Wrong cells of one batch of prompts.
struct Found {
    pass: Pass,
    /// All prompts of their round, in the order of the store pass.
    round: Vec<Prompt>,
    /// Those of the batch, which may be prefixes of the round's.
    batch: Vec<Prompt>,
    /// Each with what it held, where that is still there.
    cells: Vec<(SuspectCell, Option<CellBytes>)>,
}

impl<'a> Looker<'a> {
    pub(super) fn new(context: &'a Context<'a>, chunk_tokens: u32, copies: KnownCopies) -> Self {
        Self {
            events: &context.desk.events,
            model: context.model_name(),
            folder: context.draft.note_path("kv"),
            chunk_tokens,
            copies: RefCell::new(copies),
            state: RefCell::new(State::Searching),
            looks: RefCell::default(),
        }
    }

    /// Takes in what a batch of prompts showed, before the engine is asked anything else; `round` holds all of their round. The
    /// first wrong cells of all are written down.
    pub(super) async fn inspect(
        &self,
        worker: &mut Worker,
        pass: Pass,
        round: &[Prompt],
        (prompts, records): (&[Prompt], &[KvRecord]),
    ) -> Result<(), StageError> {
        let mut suspects = self.copies.borrow_mut().take_in(prompts, records, worker.digested_layers());
        if suspects.is_empty() || !matches!(*self.state.borrow(), State::Searching) {
            return Ok(());
        }
        suspects.truncate(CELLS);
        *self.state.borrow_mut() = State::Writing;
        let wanted = suspects
            .iter()
            .filter_map(|cell| numbered(prompts, &cell.question, cell.chunk, cell.rank, &cell.layer));
        let seen = self.dump(worker, &wanted.collect::<Vec<_>>()).await?;
        let with_bytes = |suspect: SuspectCell| {
            let bytes = self.as_judged(&suspect, prompts, &seen);
            (suspect, bytes)
        };
        let cells = suspects.into_iter().map(with_bytes).collect();
        *self.state.borrow_mut() =
            State::Found(Found { pass, round: round.to_vec(), batch: prompts.to_vec(), cells });
        Ok(())
    }

    /// The bytes of a cell among what was seen: only if they are still what was judged, and not ones that came too late.
    fn as_judged(&self, suspect: &SuspectCell, prompts: &[Prompt], seen: &[SeenCell]) -> Option<CellBytes> {
        let is_it = |cell: &&SeenCell| {
            is_of(cell, prompts, suspect)
                && cell.served == suspect.served
                && cell.digest.iter().flatten().eq([suspect.digest])
        };
        let came_late = suspect.copies.contains(&suspect.digest);
        seen.iter().find(is_it).filter(|_| !came_late).and_then(|cell| self.read(cell))
    }

    /// Loads prompts once more whose wrong cells had lost their blocks before they could be looked at, while what served them is
    /// still there and all counters of the round have been read. Bytes with the digest that was judged are those bytes.
    pub(super) async fn load_again(&self, worker: &mut Worker) -> Result<(), StageError> {
        let again: Vec<Prompt> = match &*self.state.borrow() {
            State::Found(found) => found.unseen().filter_map(|cell| found.prompt(&cell.question)).collect(),
            State::Searching | State::Writing | State::Told => Vec::new(),
        };
        for prompt in again {
            let prompts = [prompt];
            worker.score(&prompts, PrefixCache::Read, || ()).await?;
            worker.take_kv_records();
            let wanted: Vec<NumberedChunk> = match &*self.state.borrow() {
                State::Found(found) => found
                    .unseen()
                    .filter_map(|cell| numbered(&prompts, &cell.question, cell.chunk, cell.rank, &cell.layer))
                    .collect(),
                State::Searching | State::Writing | State::Told => Vec::new(),
            };
            let seen = self.dump(worker, &wanted).await?;
            if let State::Found(found) = &mut *self.state.borrow_mut() {
                for (suspect, bytes) in found.cells.iter_mut().filter(|(_, bytes)| bytes.is_none()) {
                    *bytes = self.as_judged(suspect, &prompts, &seen);
                }
            }
        }
        Ok(())
    }

    /// Has what was wrong computed again, behind the last pass, and ends the engine. What keeps it from that is a warning: what was
    /// judged must not be lost.
    pub(super) async fn finish(&self, mut worker: Worker) -> Result<(), StageError> {
        let Some(found) = self.take_found() else { return Ok(worker.finish().await?) };
        let (looks, outcome) = match self.compute_again(&mut worker, &found).await {
            Ok(looks) => (looks, worker.finish().await),
            Err(error) => {
                let reason = format!("the prompt could not be computed again: failed to {}", error.in_full());
                self.events.warn(format!("{}: wrong KV was not looked at to the end: {reason}", self.model));
                let told = found.cells.iter();
                let looks = told.map(|(cell, bytes)| unpaired(found.pass, cell, bytes.as_ref(), &reason));
                (looks.collect(), Ok(()))
            }
        };
        *self.looks.borrow_mut() = looks;
        Ok(outcome?)
    }

    fn take_found(&self) -> Option<Found> {
        let mut state = self.state.borrow_mut();
        match std::mem::replace(&mut *state, State::Told) {
            State::Found(found) => Some(found),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Writes down what was seen.
    pub(super) fn write(&self, context: &Context<'_>) -> Result<(), StageError> {
        write_json(context.draft.path(LOOKS), &*self.looks.borrow())
    }

    async fn compute_again(&self, worker: &mut Worker, found: &Found) -> Result<Vec<SecondLook>, StageError> {
        let cell_bytes = found.cells.iter().find_map(|(_, bytes)| Some(bytes.as_ref()?.elements() * 4));
        let mut left = (KNOWN_BYTES / cell_bytes.unwrap_or(KNOWN_BYTES).max(1)).max(CELLS);
        let is_wrong =
            |prompt: &&Prompt| found.cells.iter().any(|(cell, _)| cell.question == prompt.question);
        let others = found.round.iter().filter(|prompt| !is_wrong(prompt)).take(OTHERS);
        let mut known: Vec<Known> = Vec::new();
        // One prompt after the other: the blocks of one that has ended may be given to the next at once.
        for prompt in found.round.iter().filter(is_wrong).chain(others) {
            let mut wanted = self.wanted(worker.digested_layers(), prompt, found);
            wanted.truncate(left);
            left -= wanted.len();
            known.extend(self.compute(worker, std::slice::from_ref(prompt), &wanted).await?);
        }
        // What has left a window is not there any more when a prompt ends, but is when one ends behind the chunk.
        for (cell, _) in &found.cells {
            let prompt = found.round.iter().find(|prompt| prompt.question == cell.question);
            let cut = prompt.and_then(|prompt| self.cut_behind(cell.chunk, prompt));
            if let Some(cut) = cut.filter(|_| !known.iter().any(|known| known.is_of(cell))) {
                let prompts = [cut];
                let wanted = numbered(&prompts, &cell.question, cell.chunk, cell.rank, &cell.layer);
                known.extend(self.compute(worker, &prompts, &wanted.into_iter().collect::<Vec<_>>()).await?);
            }
        }
        let is_copied = |(cell, _): &(SuspectCell, Option<CellBytes>)| {
            known.iter().any(|known| known.is_of(cell) && known.is_copy_for(cell))
        };
        if (2..=TOGETHER).contains(&found.round.len()) && !found.cells.iter().all(is_copied) {
            let cells = found.cells.iter();
            let wanted = cells.filter_map(|(cell, _)| {
                numbered(&found.round, &cell.question, cell.chunk, cell.rank, &cell.layer)
            });
            known.extend(self.compute(worker, &found.round, &wanted.collect::<Vec<_>>()).await?);
        }
        let cells = found.cells.iter();
        let looks = cells.map(|(cell, bytes)| look_at(found.pass, cell, bytes.as_ref(), &known)).collect();
        for other in known.iter().filter(|known| !found.cells.iter().any(|(cell, _)| known.is_of(cell))) {
            // They have served; what is left behind is both sides of each wrong cell.
            let _ = fs::remove_file(self.folder.join(&other.cell.file));
        }
        Ok(looks)
    }

    /// A prompt up to the end of a chunk; none where it is no longer.
    fn cut_behind(&self, chunk: u32, prompt: &Prompt) -> Option<Prompt> {
        let end = usize::try_from(chunk.checked_add(1)?.checked_mul(self.chunk_tokens)?).ok()?;
        let token_ids = prompt.token_ids.get(..end).filter(|part| part.len() < prompt.token_ids.len())?;
        Some(Prompt { token_ids: token_ids.to_vec(), ..prompt.clone() })
    }

    /// Computes prompts without any cache, and looks at cells of them: at those that still hold what was computed.
    async fn compute(
        &self,
        worker: &mut Worker,
        prompts: &[Prompt],
        wanted: &[NumberedChunk],
    ) -> Result<Vec<Known>, StageError> {
        worker.score(prompts, PrefixCache::FillOnly, || ()).await?;
        let records = worker.take_kv_records();
        let seen = self.dump(worker, wanted).await?;
        let layers = worker.digested_layers();
        let known = seen.into_iter().filter_map(|cell| {
            let question = prompts.get(usize::try_from(cell.question).ok()?)?.question.clone();
            let is_still_there = computed_digest(&records, layers, &question, &cell)
                .is_some_and(|digest| cell.digest.iter().flatten().eq([digest]));
            let bytes = self.read(&cell).filter(|_| is_still_there && !cell.served)?;
            Some(Known { question, cell, bytes })
        });
        Ok(known.collect())
    }

    /// The cells of one prompt to look at, one an entry: those that are wrong, then those that they are likely to be taken for.
    fn wanted(&self, layers: &[Vec<String>], prompt: &Prompt, found: &Found) -> Vec<NumberedChunk> {
        let chunks = u32::try_from(prompt.token_ids.len()).unwrap_or(u32::MAX) / self.chunk_tokens;
        let mut in_order: Vec<(u32, u32, &str)> = Vec::new();
        let own = found.cells.iter().map(|(cell, _)| cell).filter(|cell| cell.question == prompt.question);
        in_order.extend(own.clone().map(|cell| (cell.chunk, cell.rank, cell.layer.as_str())));
        for (cell, _) in &found.cells {
            in_order.extend((0..chunks).map(|chunk| (chunk, cell.rank, cell.layer.as_str())));
        }
        for cell in own {
            for (rank, layers) in (0_u32..).zip(layers) {
                in_order.extend(layers.iter().map(|layer| (cell.chunk, rank, layer.as_str())));
            }
        }
        let mut taken = BTreeSet::new();
        in_order.retain(|cell| taken.insert(*cell));
        let one = |(chunk, rank, layer): (u32, u32, &str)| NumberedChunk {
            question: 0,
            chunk,
            rank,
            layers: vec![layer.to_owned()],
        };
        in_order.into_iter().map(one).collect()
    }

    async fn dump(&self, worker: &mut Worker, chunks: &[NumberedChunk]) -> Result<Vec<SeenCell>, StageError> {
        let (seen, problem) = match fs::create_dir_all(&self.folder) {
            Ok(()) => worker.look(&self.folder, chunks).await?,
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        if let Some(problem) = problem {
            self.events.warn(format!("{}: wrong KV could not be looked at: {problem}", self.model));
        }
        Ok(seen)
    }

    /// What a file holds; none where it is not what the worker says of it.
    fn read(&self, cell: &SeenCell) -> Option<CellBytes> {
        read_cell(&self.folder.join(&cell.file), cell, self.chunk_tokens)
    }
}

impl Found {
    /// Wrong cells that a cache served, were not seen, and are still to be had.
    fn unseen(&self) -> impl Iterator<Item = &SuspectCell> {
        let unseen = self.cells.iter().filter(|(_, bytes)| bytes.is_none()).map(|(cell, _)| cell);
        unseen.filter(|cell| cell.served && !cell.copies.contains(&cell.digest))
    }

    fn prompt(&self, question: &QuestionId) -> Option<Prompt> {
        self.batch.iter().find(|prompt| prompt.question == *question).cloned()
    }
}

/// A computed cell of a repetition.
struct Known {
    question: QuestionId,
    cell: SeenCell,
    bytes: CellBytes,
}

impl Known {
    fn is_copy_for(&self, suspect: &SuspectCell) -> bool {
        self.cell.digest.iter().flatten().any(|digest| suspect.copies.contains(&digest))
    }

    fn is_of(&self, suspect: &SuspectCell) -> bool {
        let SeenCell { chunk, layer, rank, .. } = &self.cell;
        (&self.question, chunk, layer, rank)
            == (&suspect.question, &suspect.chunk, &suspect.layer, &suspect.rank)
    }

    fn as_cell(&self) -> KnownCell<'_> {
        let SeenCell { chunk, layer, rank, .. } = &self.cell;
        KnownCell { question: &self.question, chunk: *chunk, layer, rank: *rank, bytes: &self.bytes }
    }
}

fn look_at(pass: Pass, suspect: &SuspectCell, served: Option<&CellBytes>, known: &[Known]) -> SecondLook {
    // A copy if there is one.
    let computed =
        known.iter().filter(|known| known.is_of(suspect)).max_by_key(|known| known.is_copy_for(suspect));
    let (Some(bytes), Some(computed)) = (served, computed) else {
        return unpaired(pass, suspect, served, "the prompt, asked again, was not computed in full");
    };
    let against = if computed.is_copy_for(suspect) { ComputedKv::Copy } else { ComputedKv::Repetition };
    let cells: Vec<KnownCell<'_>> = known.iter().map(Known::as_cell).collect();
    match look_closely(bytes, computed.as_cell(), against, &cells) {
        Some(difference) => {
            let unknown_layout = computed.cell.problem.clone();
            look(pass, suspect, Sight::Held(KvDifference { unknown_layout, ..difference }))
        }
        None => unpaired(pass, suspect, served, "what was computed has another shape"),
    }
}

/// What is said of a cell that has nothing to be held against, for this reason, or that is not there itself.
fn unpaired(pass: Pass, suspect: &SuspectCell, served: Option<&CellBytes>, reason: &str) -> SecondLook {
    let gone = if suspect.copies.contains(&suspect.digest) {
        "attention read other bytes, and the right ones have taken their place since"
    } else {
        "its blocks held something else before they could be looked at"
    };
    let sight = match served {
        Some(bytes) => Sight::Alone { zeros: bytes.is_zero(), reason: reason.to_owned() },
        None => Sight::Gone { reason: gone.to_owned() },
    };
    look(pass, suspect, sight)
}

fn look(pass: Pass, suspect: &SuspectCell, sight: Sight) -> SecondLook {
    let SuspectCell { question, chunk, rank, layer, .. } = suspect;
    SecondLook { question: question.clone(), pass, chunk: *chunk, layer: layer.clone(), rank: *rank, sight }
}

/// The digest of what was computed, or of what a lossy form of storage makes of it, as it was recorded.
fn computed_digest(
    records: &[KvRecord],
    layers: &[Vec<String>],
    question: &QuestionId,
    cell: &SeenCell,
) -> Option<u128> {
    let place = layers.get(usize::try_from(cell.rank).ok()?)?.iter().position(|name| *name == cell.layer)?;
    records.iter().find_map(|record| match record {
        KvRecord::Request { question: asked, chunks } if asked == question => {
            let of_cell =
                |chunk: &&ChunkDigests| !chunk.served && (chunk.chunk, chunk.rank) == (cell.chunk, cell.rank);
            let chunk = chunks.iter().find(of_cell)?;
            chunk.stored.as_ref().or(chunk.last.as_ref()).unwrap_or(&chunk.first).of_layer(place)
        }
        KvRecord::Request { .. } | KvRecord::NotObserved { .. } => None,
    })
}

/// A chunk of a prompt of the last batch under its number; none where the batch has no such prompt.
fn numbered(
    prompts: &[Prompt],
    question: &QuestionId,
    chunk: u32,
    rank: u32,
    layer: &str,
) -> Option<NumberedChunk> {
    let place = prompts.iter().position(|prompt| prompt.question == *question)?;
    Some(NumberedChunk { question: u32::try_from(place).ok()?, chunk, rank, layers: vec![layer.to_owned()] })
}

fn is_of(cell: &SeenCell, prompts: &[Prompt], suspect: &SuspectCell) -> bool {
    let question = usize::try_from(cell.question).ok().and_then(|place| prompts.get(place));
    question.is_some_and(|prompt| prompt.question == suspect.question)
        && (cell.chunk, cell.rank, &cell.layer) == (suspect.chunk, suspect.rank, &suspect.layer)
}

fn read_cell(path: &Utf8Path, cell: &SeenCell, chunk_tokens: u32) -> Option<CellBytes> {
    let bytes = fs::read(path).ok()?;
    match Element::named(&cell.dtype) {
        Some(element) if !cell.parts.is_empty() => {
            CellBytes::of_tokens(chunk_tokens, cell.parts.clone(), element, bytes)
        }
        _ => CellBytes::of_blocks(cell.blocks, chunk_tokens.checked_div(cell.blocks)?, bytes),
    }
}

/// What was looked at again of a pass with a cache.
pub(super) fn read_looks(cached: &Artifact) -> Result<Vec<SecondLook>, StageError> {
    read_json(&cached.path(LOOKS))
}
