//! Rounds of prompts, dealt to engines that may work beside each other. Main types: [`Rounds`], [`Pass`].
//!
//! A round is asked by one engine as a whole, so what is computed together does not depend on how many engines there are.
//! Rounds are taken in order, and what was asked is always the first so many of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::sync::watch;

use super::lines::LineWriter;
use super::prompts::read_prompts;
use super::{Context, StageError};
use crate::dataset::Prompt;
use crate::engine::{PrefixCache, Round, Worker};
use crate::event::{Event, Events};
use crate::model::{KvRecord, Observation};
use crate::store::{Artifact, Draft};

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
    name: String,
    done: Cell<usize>,
    total: usize,
    lines: RefCell<Lines<Observation>>,
    kv_lines: RefCell<Lines<KvRecord>>,
}

struct Lines<Value> {
    file: LineWriter,
    /// The round whose values are written at once.
    open: usize,
    /// Those of later rounds.
    waiting: BTreeMap<usize, Waiting<Value>>,
}

struct Waiting<Value> {
    values: Vec<Value>,
    is_over: bool,
}

impl<Value> Default for Waiting<Value> {
    fn default() -> Self {
        Self { values: Vec::new(), is_over: false }
    }
}

/// The file of a pass's KV records, beside that of its observations: `load.kv.jsonl` beside `load.jsonl`.
pub(super) fn kv_file(file: &str) -> String {
    format!("{}.kv.jsonl", file.trim_end_matches(".jsonl"))
}

impl<'a> Pass<'a> {
    pub(super) fn of(
        context: &Context<'a>,
        name: &str,
        file: &str,
        total: usize,
    ) -> Result<Self, StageError> {
        let (name, events) = (format!("{}, {name}", context.model_name()), &context.desk.events);
        events.emit(Event::QuestionsDone { pass: name.clone(), done: 0, total });
        let lines = RefCell::new(Lines::create(context.draft, file)?);
        let kv_lines = RefCell::new(Lines::create(context.draft, &kv_file(file))?);
        Ok(Self { events, name, done: Cell::new(0), total, lines, kv_lines })
    }

    /// Answers some prompts of a round and writes the observations down.
    pub(super) async fn score(
        &self,
        worker: &mut Worker,
        round: &DealtRound<'_>,
        prompts: &[Prompt],
        prefix_cache: PrefixCache,
    ) -> Result<Vec<Observation>, StageError> {
        let answered = || {
            self.done.set(self.done.get() + 1);
            let (pass, done, total) = (self.name.clone(), self.done.get(), self.total);
            self.events.emit(Event::QuestionsDone { pass, done, total });
        };
        let observations = worker.score(prompts, prefix_cache, answered).await?;
        self.lines.borrow_mut().write(round.number, &observations)?;
        self.kv_lines.borrow_mut().write(round.number, &worker.take_kv_records())?;
        Ok(observations)
    }

    /// Nothing more of this round is asked.
    pub(super) fn is_over(&self, round: &DealtRound<'_>) -> Result<(), StageError> {
        self.lines.borrow_mut().is_over(round.number)?;
        self.kv_lines.borrow_mut().is_over(round.number)
    }

    pub(super) fn finish(self) -> Result<(), StageError> {
        self.lines.into_inner().finish()?;
        self.kv_lines.into_inner().finish()
    }
}

impl<Value: Serialize + Clone> Lines<Value> {
    fn create(draft: &Draft, file: &str) -> Result<Self, StageError> {
        let file = LineWriter::create(draft.path(file))?;
        Ok(Self { file, open: 0, waiting: BTreeMap::new() })
    }

    fn write(&mut self, round: usize, values: &[Value]) -> Result<(), StageError> {
        if round == self.open {
            return values.iter().try_for_each(|value| self.file.write(value));
        }
        self.waiting.entry(round).or_default().values.extend_from_slice(values);
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
            self.write(self.open, &next.values)?;
            if !next.is_over {
                return Ok(());
            }
        }
    }

    /// Rounds that were broken off stay without their end.
    fn finish(mut self) -> Result<(), StageError> {
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            waiting.values.iter().try_for_each(|value| self.file.write(value))?;
        }
        self.file.finish()
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;
    use crate::dataset::{QuestionId, Split};

    fn observations(rows: [u32; 2]) -> Vec<Observation> {
        let one = |row| Observation {
            question: QuestionId { subject: "law".parse().unwrap(), split: Split::Test, row },
            prompt_tokens: 1,
            cached_tokens: 0,
            letters: [0.0; 4],
            steps: Vec::new(),
        };
        rows.map(one).to_vec()
    }

    /// The rows of a file after these steps: a round with rows, or with none once it is over.
    fn written(steps: &[(usize, Option<[u32; 2]>)]) -> Vec<u32> {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("lines");
        let file = LineWriter::create(path.clone()).unwrap();
        let mut lines = Lines { file, open: 0, waiting: BTreeMap::new() };
        for (round, rows) in steps {
            match rows {
                Some(rows) => lines.write(*round, &observations(*rows)).unwrap(),
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
    fn what_was_observed_of_rounds_that_were_broken_off_is_kept_in_order() {
        let steps = [(0, Some([1, 2])), (2, Some([5, 6])), (2, None), (1, Some([3, 4]))];
        assert_eq!(written(&steps), [1, 2, 3, 4, 5, 6]);
    }
}
