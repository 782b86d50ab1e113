//! How much of a run is done and how long the rest will take, pure. Main type: [`Forecast`].
//!
//! A run is its planned jobs. Each takes time around its questions (engines and servers that start and end) and for them, some
//! computed in full and some served by a cache. Both are measured as the run goes on, by stage and model; what was not
//! measured yet is taken from the most similar thing that was, and at first from [`UNITS`](OVERHEAD_OF_ENGINE) that only say
//! how parts compare. Jobs beside each other share the time by as much as jobs so far were beside each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::event::{Answering, Effort, Event, JobName};
use crate::stage_name::StageName;

/// Seconds that starting and ending an engine takes, as long as none was measured.
const OVERHEAD_OF_ENGINE: f64 = 4.0;
/// What each further rank of an engine takes, a process that imports vLLM by itself.
const OVERHEAD_OF_RANK: f64 = 12.0;
/// The same of an LMCache server.
const OVERHEAD_OF_SERVER: f64 = 6.0;
/// What the first engine takes longer, since vLLM is imported.
const OVERHEAD_OF_FIRST: f64 = 17.0;
/// Seconds to compute a question, as long as none was measured, and the part of that for one that is served.
const SECONDS_OF_QUESTION: f64 = 0.2;
const SERVED_SHARE: f64 = 0.5;
/// Questions of a job's own after which its own pace is the measure.
const OWN_PACE_FROM: f64 = 8.0;
/// Seconds that making the Python environment takes, and the least that are left as long as it is not made.
const ENVIRONMENT: f64 = 45.0;
const LEAST_OF_ENVIRONMENT: f64 = 10.0;

/// What is known of a run's time.
#[derive(Debug)]
pub(super) struct Forecast {
    begun: Instant,
    planned: BTreeMap<JobName, Effort>,
    running: BTreeMap<JobName, Running>,
    /// Jobs that have ended, one way or another.
    over: BTreeSet<JobName>,
    /// Since when the environment is being made.
    environment: Option<Instant>,
    /// Time for questions, by stage, kind and model.
    paces: BTreeMap<(StageName, Answering, String), Spent>,
    /// Time around questions by stage, in units of what was expected of it beforehand.
    overheads: BTreeMap<StageName, Spent>,
    /// Seconds of jobs, and seconds in which there was any: how many are beside each other.
    beside: Spent,
    last: Instant,
}

/// A job under way.
#[derive(Debug)]
struct Running {
    effort: Effort,
    started: Instant,
    is_first: bool,
    /// When it last was heard of.
    heard: Instant,
    /// Whether it has been answering questions since then.
    answers: bool,
    /// How many of its engines have started.
    ready: usize,
    /// Whether its engine has yet to give its first answer.
    is_fresh: bool,
    /// Questions answered in each pass.
    done: BTreeMap<String, (Answering, usize)>,
    /// Time for questions so far.
    asked: f64,
    pace: BTreeMap<Answering, Spent>,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outlook {
    /// From 0 to 1, of the time that it takes.
    pub(super) done: f64,
    /// The time that is left.
    pub(super) left: Duration,
}

/// Seconds that something took, and how much of it there was.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    seconds: f64,
    units: f64,
}

impl Spent {
    fn add(&mut self, seconds: f64, units: f64) {
        self.seconds += seconds;
        self.units += units;
    }

    /// Seconds a unit; none where there was none.
    fn pace(self) -> Option<f64> {
        (self.units > 0.0).then(|| self.seconds / self.units)
    }

    fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            seconds: sum.seconds + one.seconds,
            units: sum.units + one.units,
        })
    }
}

impl Forecast {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            planned: BTreeMap::new(),
            running: BTreeMap::new(),
            over: BTreeSet::new(),
            environment: None,
            paces: BTreeMap::new(),
            overheads: BTreeMap::new(),
            beside: Spent::default(),
            last: now,
        }
    }

    /// Takes an event as it happens.
    pub(super) fn note(&mut self, event: &Event, now: Instant) {
        if !self.running.is_empty() {
            let since = (now - self.last).as_secs_f64();
            self.beside.add(since * count(self.running.len()), since);
        }
        self.last = now;
        match event {
            Event::WorkPlanned { jobs } => {
                let is_known = |name: &JobName| self.running.contains_key(name) || self.over.contains(name);
                self.planned = jobs.iter().filter(|(name, _)| !is_known(name)).cloned().collect();
            }
            Event::EnvironmentStarted { .. } => self.environment = Some(now),
            Event::EnvironmentFinished { .. } => self.environment = None,
            Event::StageStarted { stage, label } => self.start(JobName::new(*stage, label), now),
            Event::StageReused { stage, label } | Event::StageAbandoned { stage, label } => {
                self.end(JobName::new(*stage, label), None);
            }
            Event::StageFinished { stage, label, .. } => self.end(JobName::new(*stage, label), Some(now)),
            Event::EngineReady { job, .. } => {
                if let Some(running) = self.running.get_mut(job) {
                    running.ready += 1;
                    (running.heard, running.answers, running.is_fresh) = (now, true, true);
                }
            }
            Event::QuestionsDone { job, answering, pass, done, .. } => {
                self.answer(job, (pass, *answering, *done), now);
            }
            _ => {}
        }
    }

    /// What is done and what is left; none where nothing that takes a while is left.
    pub(super) fn outlook(&self, now: Instant) -> Option<Outlook> {
        if self.planned.is_empty() && self.running.is_empty() && self.environment.is_none() {
            return None;
        }
        let (mut is_first, mut jobs) = (self.overheads.is_empty() && self.running.is_empty(), 0.0);
        for (name, effort) in &self.planned {
            jobs += self.questions(name, None, [effort.computed, effort.served]);
            jobs += self.overhead(name.stage, effort, is_first, now);
            is_first = false;
        }
        jobs += self.running.iter().map(|(name, running)| self.left_of(name, running, now)).sum::<f64>();
        let environment = self
            .environment
            .map_or(0.0, |since| (ENVIRONMENT - (now - since).as_secs_f64()).max(LEAST_OF_ENVIRONMENT));
        let left = environment + jobs / self.beside.pace().unwrap_or(1.0).max(1.0);
        let spent = (now - self.begun).as_secs_f64();
        Some(Outlook { done: spent / (spent + left).max(1e-9), left: Duration::from_secs_f64(left) })
    }

    fn start(&mut self, name: JobName, now: Instant) {
        let Some(effort) = self.planned.remove(&name) else { return };
        let is_first = self.overheads.is_empty() && self.running.is_empty();
        let running = Running {
            effort,
            started: now,
            is_first,
            heard: now,
            answers: false,
            ready: 0,
            is_fresh: false,
            done: BTreeMap::new(),
            asked: 0.0,
            pace: BTreeMap::new(),
        };
        self.running.insert(name, running);
    }

    /// A job has its artifact since `finished`, or needs no time any more.
    fn end(&mut self, name: JobName, finished: Option<Instant>) {
        self.planned.remove(&name);
        if let (Some(running), Some(now)) = (self.running.remove(&name), finished) {
            let around = running.around(now);
            self.overheads
                .entry(name.stage)
                .or_default()
                .add(around, units(&running.effort, running.is_first));
        }
        self.over.insert(name);
    }

    fn answer(&mut self, name: &JobName, (pass, answering, done): (&str, Answering, usize), now: Instant) {
        let Some(running) = self.running.get_mut(name) else { return };
        let entry = running.done.entry(pass.to_owned()).or_insert((answering, 0));
        let more = count(done.saturating_sub(entry.1));
        entry.1 = done;
        if more == 0.0 {
            return;
        }
        let since = (now - running.heard).as_secs_f64();
        // An engine's first answer is of its start as well: ranks find each other in their first forward pass. It is no measure.
        let is_measure = !(std::mem::take(&mut running.is_fresh) && more <= 1.0);
        if running.answers && is_measure {
            running.asked += since;
            running.pace.entry(answering).or_default().add(since, more);
            let key = (name.stage, answering, name.model().to_owned());
            self.paces.entry(key).or_default().add(since, more);
        }
        (running.heard, running.answers) = (now, true);
    }

    fn left_of(&self, name: &JobName, running: &Running, now: Instant) -> f64 {
        let done =
            |kind| running.done.values().filter(|(of, _)| *of == kind).map(|(_, done)| done).sum::<usize>();
        let Effort { computed, served, .. } = running.effort;
        let open = [
            computed.saturating_sub(done(Answering::Computed)),
            served.saturating_sub(done(Answering::Served)),
        ];
        let questions = self.questions(name, Some(running), open);
        // What it has been silent for went into a question, or beyond that into an engine that ends or starts.
        let silent = running.silent(now).min(questions);
        let around = running.around(now) - silent;
        let expected = self.overhead(name.stage, &running.effort, running.is_first, now);
        // With all engines at work only their end is left, and what comes with their first answer.
        let at_most = match (running.ready >= running.effort.engines, running.is_fresh) {
            (false, _) => f64::INFINITY,
            (true, true) if running.effort.further_ranks > 0 => OVERHEAD_OF_RANK,
            (true, _) => OVERHEAD_OF_ENGINE,
        };
        questions - silent + (expected - around).clamp(0.0, at_most)
    }

    /// Seconds for so many questions, computed and served.
    fn questions(&self, name: &JobName, running: Option<&Running>, open: [usize; 2]) -> f64 {
        let pace = |kind| self.pace(name, running, kind);
        count(open[0]) * pace(Answering::Computed) + count(open[1]) * pace(Answering::Served)
    }

    /// Seconds for a question: as the job itself, the same stage of other models, or any stage has it.
    fn pace(&self, name: &JobName, running: Option<&Running>, kind: Answering) -> f64 {
        let own =
            running.and_then(|running| running.pace.get(&kind)).filter(|spent| spent.units >= OWN_PACE_FROM);
        if let Some(own) = own.and_then(|spent| spent.pace()) {
            return own;
        }
        let model = name.model();
        let of = |stage: Option<StageName>, kind| {
            self.mean(|key| key.1 == kind && stage.is_none_or(|stage| key.0 == stage), model)
        };
        let other = match kind {
            Answering::Computed => of(None, Answering::Served).map(|served| served / SERVED_SHARE),
            Answering::Served => of(None, Answering::Computed).map(|computed| computed * SERVED_SHARE),
        };
        of(Some(name.stage), kind)
            .or_else(|| of(None, kind))
            .or(other)
            .unwrap_or(SECONDS_OF_QUESTION * if kind == Answering::Served { SERVED_SHARE } else { 1.0 })
    }

    /// The mean pace of what was measured of this model; else that of other models, corrected by how this model's pace
    /// compares with theirs in what was measured of it.
    fn mean(&self, which: impl Fn(&(StageName, Answering, String)) -> bool, model: &str) -> Option<f64> {
        let measured = |own: bool| {
            let of = self.paces.iter().filter(|(key, _)| which(key) && (key.2 == model) == own);
            Spent::sum(of.map(|(_, spent)| *spent)).pace()
        };
        measured(true).or_else(|| Some(measured(false)? * self.compared_with_others(model)))
    }

    /// How many times slower than the others a model is.
    fn compared_with_others(&self, model: &str) -> f64 {
        let (mut took, mut others_would) = (0.0, 0.0);
        for ((stage, kind, _), spent) in self.paces.iter().filter(|(key, _)| key.2 == model) {
            let same =
                |key: &&(StageName, Answering, String)| key.0 == *stage && key.1 == *kind && key.2 != model;
            let others = Spent::sum(self.paces.iter().filter(|(key, _)| same(key)).map(|(_, spent)| *spent));
            if let Some(pace) = others.pace() {
                took += spent.seconds;
                others_would += pace * spent.units;
            }
        }
        if others_would > 0.0 { took / others_would } else { 1.0 }
    }

    /// Seconds around a job's questions: as the same stage took, or all, or as long as jobs under way have taken already.
    fn overhead(&self, stage: StageName, effort: &Effort, is_first: bool, now: Instant) -> f64 {
        let same = self.overheads.get(&stage).and_then(|spent| spent.pace());
        let all = || Spent::sum(self.overheads.values().copied()).pace();
        let so_far = |running: &Running| {
            (running.around(now) - running.silent(now)) / units(&running.effort, running.is_first)
        };
        let at_least = self.running.values().map(so_far).fold(0.0, f64::max);
        units(effort, is_first) * same.unwrap_or_else(|| all().unwrap_or(1.0).max(at_least))
    }
}

impl Running {
    /// Seconds that were not for questions, as far as is known.
    fn around(&self, now: Instant) -> f64 {
        (now - self.started).as_secs_f64() - self.asked
    }

    /// Seconds since it was last heard of, if it was answering.
    fn silent(&self, now: Instant) -> f64 {
        if self.answers { (now - self.heard).as_secs_f64() } else { 0.0 }
    }
}

/// Seconds around questions, as expected before any was measured.
fn units(effort: &Effort, is_first: bool) -> f64 {
    let first = if is_first { OVERHEAD_OF_FIRST } else { 0.0 };
    first
        + count(effort.engines) * OVERHEAD_OF_ENGINE
        + count(effort.further_ranks) * OVERHEAD_OF_RANK
        + count(effort.servers) * OVERHEAD_OF_SERVER
}

#[expect(clippy::cast_precision_loss, reason = "fewer than 2^53")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
