//! Rounds of prompts, dealt to engines that may work beside each other. Main types: [`Rounds`], [`Pass`].
//!
//! A round is asked by one engine as a whole, so what is computed together does not depend on how many engines there are.
//! Rounds are taken in order, and what was asked is always the first so many of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use futures_util::future::try_join_all;
use tokio::sync::watch;

use super::files::PassName;
use super::lines::LineWriter;
use super::prompts::read_prompts;
use super::second_look::Looker;
use super::watch::Watch;
use super::{Context, StageError};
use crate::comparison::{self, EarlyStop};
use crate::dataset::Prompt;
use crate::engine::{EngineHits, Handing, PrefixCache, Round, Worker};
use crate::event::{Event, Events, JobName};
use crate::model::{KvRecord, Observation};
use crate::store::Artifact;

/// The rounds of a plan, to be taken by engines.
pub(super) struct Rounds<'a> {
    planned: &'a [Round],
    prompts: RefCell<Box<dyn Iterator<Item = Result<Prompt, StageError>>>>,
    dealt: Cell<usize>,
    dealt_prompts: Cell<usize>,
    closed: Cell<bool>,
    /// The first round is a probe: no other one is dealt before it is over.
    probe_is_over: watch::Sender<bool>,
}

/// A round that one engine has taken.
pub(super) struct DealtRound<'a> {
    /// Its place in the plan, from 0.
    pub(super) number: usize,
    pub(super) round: &'a Round,
    pub(super) prompts: Vec<Prompt>,
}

impl<'a> Rounds<'a> {
    pub(super) fn of(prompts: &Artifact, rounds: &'a [Round]) -> Result<Self, StageError> {
        Ok(Self {
            planned: rounds,
            prompts: RefCell::new(Box::new(read_prompts(prompts)?)),
            dealt: Cell::new(0),
            dealt_prompts: Cell::new(0),
            closed: Cell::new(false),
            probe_is_over: watch::Sender::new(false),
        })
    }

    /// Has `work` done by so many engines at the same time, at most one for each round behind the first. Each is given its
    /// number, from 1, if it is not the only one.
    pub(super) async fn share(
        &self,
        engines: usize,
        work: impl AsyncFn(Option<usize>) -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        match engines.min(self.planned.len().saturating_sub(1)) {
            0 | 1 => work(None).await,
            engines => try_join_all((1..=engines).map(|number| work(Some(number)))).await.map(drop),
        }
    }

    /// The next round; none once all are dealt or no more are wanted.
    pub(super) async fn take(&self) -> Result<Option<DealtRound<'a>>, StageError> {
        if self.dealt.get() > 0 {
            // The sender is this.
            let _ = self.probe_is_over.subscribe().wait_for(|over| *over).await;
        }
        let number = self.dealt.get();
        let Some(round) = self.planned.get(number).filter(|_| !self.closed.get()) else {
            return Ok(None);
        };
        let prompts: Result<Vec<Prompt>, StageError> =
            self.prompts.borrow_mut().by_ref().take(round.prompts).collect();
        self.dealt.set(number + 1);
        self.dealt_prompts.set(self.dealt_prompts.get() + round.prompts);
        Ok(Some(DealtRound { number, round, prompts: prompts? }))
    }

    /// The engine is done with a round.
    pub(super) fn is_over(&self, _: &DealtRound<'_>) {
        self.probe_is_over.send_replace(true);
    }

    /// Deals no more rounds.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.probe_is_over.send_replace(true);
    }

    /// Prompts of the rounds that were dealt.
    pub(super) fn asked(&self) -> usize {
        self.dealt_prompts.get()
    }
}

/// One pass over all prompts, round by round. What is observed is written down in the order of the rounds.
pub(super) struct Pass<'a> {
    events: &'a Events,
    job: JobName,
    name: PassName,
    /// What it is called where people are told of it.
    words: String,
    done: Cell<usize>,
    total: usize,
    /// Tokens that vLLM counts as served.
    hits: RefCell<EngineHits>,
    lines: RefCell<Lines>,
    /// Looks at wrong KV while it is there, in a pass with a cache.
    looker: Option<(&'a Looker<'a>, comparison::Pass)>,
}

/// Says once harm is beyond doubt.
type Look = Box<dyn FnMut(&[Observation]) -> Option<EarlyStop>>;

struct Lines {
    file: LineWriter,
    kv_file: LineWriter,
    /// The round whose slices are written at once.
    open: usize,
    /// Those of later rounds.
    waiting: BTreeMap<usize, Waiting>,
    /// Looks at what is written, in the order of writing, so that what it finds does not depend on how many engines there are.
    watch: Option<Look>,
    /// What it found, and in which round: nothing more is written then.
    harm: Option<(usize, EarlyStop)>,
}

/// What was asked at once.
struct Slice {
    observations: Vec<Observation>,
    kv_records: Vec<KvRecord>,
}

#[derive(Default)]
struct Waiting {
    slices: Vec<Slice>,
    is_over: bool,
}

/// The file of a pass's KV records, beside that of its observations: `load.kv.jsonl` beside `load.jsonl`.
pub(super) fn kv_file(file: &str) -> String {
    format!("{}.kv.jsonl", file.trim_end_matches(".jsonl"))
}

impl<'a> Pass<'a> {
    pub(super) fn of(context: &Context<'a>, name: PassName, total: usize) -> Result<Self, StageError> {
        let words = format!("{}, {}", context.model_name(), name.words());
        let (file, kv_file) = (context.draft.path(name.file()), context.draft.path(&kv_file(name.file())));
        let pass = Self {
            events: &context.desk.events,
            job: context.job_name(),
            name,
            words,
            done: Cell::new(0),
            total,
            hits: RefCell::default(),
            lines: RefCell::new(Lines::create(file, kv_file)?),
            looker: None,
        };
        pass.tell();
        Ok(pass)
    }

    fn tell(&self) {
        self.events.emit(Event::QuestionsDone {
            job: self.job.clone(),
            answering: self.name.answering(),
            pass: self.words.clone(),
            done: self.done.get(),
            total: self.total,
        });
    }

    /// The same, ending where the watch finds harm beyond doubt.
    pub(super) fn watched(self, watch: Option<Watch>) -> Self {
        let look = |mut watch: Watch| -> Look { Box::new(move |observations| watch.observe(observations)) };
        self.lines.borrow_mut().watch = watch.map(look);
        self
    }

    /// The same, with a second look at wrong KV.
    pub(super) fn looked_at(self, looker: &'a Looker<'a>, pass: comparison::Pass) -> Self {
        Self { looker: Some((looker, pass)), ..self }
    }

    /// The round in which harm is beyond doubt, and the evidence.
    pub(super) fn harm(&self) -> Option<(usize, EarlyStop)> {
        self.lines.borrow().harm
    }

    /// Tokens that vLLM counts as served so far.
    pub(super) fn hits(&self) -> EngineHits {
        self.hits.borrow().clone()
    }

    /// Answers some prompts of a round and writes down what was observed.
    pub(super) async fn score(
        &self,
        worker: &mut Worker,
        round: &DealtRound<'_>,
        prompts: &[Prompt],
        prefix_cache: PrefixCache,
    ) -> Result<Vec<Observation>, StageError> {
        self.score_handing(worker, round, prompts, (prefix_cache, Handing::None)).await
    }

    /// The same, of prompts whose KV is left to another engine or was left by one.
    pub(super) async fn score_handing(
        &self,
        worker: &mut Worker,
        round: &DealtRound<'_>,
        prompts: &[Prompt],
        (prefix_cache, handing): (PrefixCache, Handing<'_>),
    ) -> Result<Vec<Observation>, StageError> {
        let answered = || {
            self.done.set(self.done.get() + 1);
            self.tell();
        };
        let observations = worker.score_handing(prompts, prefix_cache, handing, answered).await?;
        let hits = self.hits.borrow().plus(&worker.hits());
        self.hits.replace(hits);
        let kv_records = worker.take_kv_records();
        if let Some((looker, pass)) = self.looker {
            looker.inspect(worker, pass, &round.prompts, (prompts, &kv_records)).await?;
        }
        let slice = Slice { observations: observations.clone(), kv_records };
        self.lines.borrow_mut().write(round.number, slice)?;
        Ok(observations)
    }

    /// Nothing more of this round is asked.
    pub(super) fn is_over(&self, round: &DealtRound<'_>) -> Result<(), StageError> {
        self.lines.borrow_mut().is_over(round.number)
    }

    pub(super) fn finish(self) -> Result<(), StageError> {
        self.lines.into_inner().finish()
    }
}

impl Lines {
    fn create(file: Utf8PathBuf, kv_file: Utf8PathBuf) -> Result<Self, StageError> {
        Ok(Self {
            file: LineWriter::create(file)?,
            kv_file: LineWriter::create(kv_file)?,
            open: 0,
            waiting: BTreeMap::new(),
            watch: None,
            harm: None,
        })
    }

    fn write(&mut self, round: usize, slice: Slice) -> Result<(), StageError> {
        if round != self.open {
            self.waiting.entry(round).or_default().slices.push(slice);
            return Ok(());
        }
        if self.harm.is_some() {
            return Ok(());
        }
        slice.observations.iter().try_for_each(|observation| self.file.write(observation))?;
        slice.kv_records.iter().try_for_each(|record| self.kv_file.write(record))?;
        let found = self.watch.as_mut().and_then(|look| look(&slice.observations));
        self.harm = found.map(|stop| (round, stop));
        Ok(())
    }

    fn is_over(&mut self, round: usize) -> Result<(), StageError> {
        if round != self.open {
            self.waiting.entry(round).or_default().is_over = true;
            return Ok(());
        }
        loop {
            self.open += 1;
            let Some(next) = self.waiting.remove(&self.open) else { return Ok(()) };
            next.slices.into_iter().try_for_each(|slice| self.write(self.open, slice))?;
            if !next.is_over {
                return Ok(());
            }
        }
    }

    /// Rounds that were broken off stay without their end.
    fn finish(mut self) -> Result<(), StageError> {
        for (round, waiting) in std::mem::take(&mut self.waiting) {
            self.open = round;
            waiting.slices.into_iter().try_for_each(|slice| self.write(round, slice))?;
        }
        self.file.finish()?;
        self.kv_file.finish()
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;
    use crate::dataset::{QuestionId, Split};

    fn slice(rows: [u32; 2]) -> Slice {
        let one = |row| Observation {
            question: QuestionId { subject: "law".parse().unwrap(), split: Split::Test, row },
            prompt_tokens: 1,
            cached_tokens: 0,
            preemptions: 0,
            served_again: Vec::new(),
            no_numbers: false,
            letters: [0.0; 4],
            steps: Vec::new(),
        };
        Slice { observations: rows.map(one).to_vec(), kv_records: Vec::new() }
    }

    /// The rows of a file after these steps: a round with rows, or with none once it is over.
    fn written(steps: &[(usize, Option<[u32; 2]>)]) -> Vec<u32> {
        written_under(None, steps)
    }

    fn written_under(watch: Option<Look>, steps: &[(usize, Option<[u32; 2]>)]) -> Vec<u32> {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("lines");
        let mut lines = Lines::create(path.clone(), path.with_extension("kv")).unwrap();
        lines.watch = watch;
        for (round, rows) in steps {
            match rows {
                Some(rows) => lines.write(*round, slice(*rows)).unwrap(),
                None => lines.is_over(*round).unwrap(),
            }
        }
        lines.finish().unwrap();
        let lines = crate::stage::lines::read_lines::<Observation>(path).unwrap();
        lines.map(|observation| observation.unwrap().question.row).collect()
    }

    #[test]
    fn rounds_that_end_in_another_order_are_written_in_theirs() {
        let steps = [
            (0, Some([1, 2])),
            (2, Some([5, 6])),
            (1, Some([3, 4])),
            (2, None),
            (3, Some([7, 8])),
            (0, None),
            (1, None),
            (3, Some([9, 10])),
            (3, None),
        ];
        assert_eq!(written(&steps), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn harm_ends_a_pass_at_the_same_question_whatever_other_engines_had_answered_by_then() {
        let harm = |row: u32| -> Option<Look> {
            let stop = EarlyStop { pairs: 1, harms: 1, gains: 0, e_value: 1e9, bound: 1e3 };
            let look =
                move |seen: &[Observation]| seen.iter().any(|one| one.question.row == row).then_some(stop);
            Some(Box::new(look))
        };
        let in_order = [(0, Some([1, 2])), (0, Some([3, 4])), (0, None), (1, Some([5, 6])), (1, None)];
        let ahead = [(1, Some([5, 6])), (1, None), (0, Some([1, 2])), (0, Some([3, 4])), (0, None)];
        let broken_off = [(1, Some([5, 6])), (0, Some([1, 2])), (0, Some([3, 4]))];
        for steps in [&in_order[..], &ahead, &broken_off] {
            assert_eq!(written_under(harm(2), steps), [1, 2]);
            assert_eq!(written_under(harm(4), steps), [1, 2, 3, 4]);
            assert_eq!(written_under(harm(6), steps), [1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn what_was_observed_of_rounds_that_were_broken_off_is_kept_in_order() {
        let steps = [(0, Some([1, 2])), (2, Some([5, 6])), (2, None), (1, Some([3, 4]))];
        assert_eq!(written(&steps), [1, 2, 3, 4, 5, 6]);
    }
}
