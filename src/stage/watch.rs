//! Ends a load pass once harm is beyond doubt. Main type: [`Watch`].

use std::collections::BTreeMap;

use super::StageError;
use super::answer::{published_answers, read_answer};
use super::arms::BASELINE;
use super::engine_run::EngineRun;
use super::lines::read_lines;
use super::prompts::load_tokenizer;
use crate::comparison::{EarlyStop, HarmMonitor, pair_predictions, shuffle_questions};
use crate::dataset::{Choice, Prompt, QuestionId, Tokenizer};
use crate::engine::Observation;
use crate::store::Artifact;

/// Whether a load pass may end before its last question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as harm is beyond doubt.
    Allowed,
    /// Never.
    Refused,
}

/// Holds each answer of a load pass against the baseline's, as it comes.
pub(super) struct Watch {
    monitor: HarmMonitor,
    tokenizer: Tokenizer,
    known: BTreeMap<QuestionId, (Choice, Option<Choice>)>,
}

impl Watch {
    /// A watch over one of the suite's comparisons.
    pub(super) fn new(
        run: &EngineRun<'_>,
        questions: &Artifact,
        baseline: &Artifact,
    ) -> Result<Self, StageError> {
        let tokenizer = load_tokenizer(run.model)?;
        let published = published_answers(questions)?;
        let mut known = BTreeMap::new();
        for observation in read_lines::<Observation>(baseline.path(BASELINE))? {
            let observation = observation?;
            if let Some(&answer) = published.get(&observation.question) {
                let given = read_answer(&tokenizer, &observation);
                known.insert(observation.question, (answer, given));
            }
        }
        let suite = &run.bench.suite;
        let comparisons = u32::try_from(suite.models.len() * suite.routes.len()).unwrap_or(u32::MAX);
        Ok(Self { monitor: HarmMonitor::new(comparisons), tokenizer, known })
    }

    /// Takes some observations of the load pass in the order of asking.
    pub(super) fn observe(&mut self, observations: &[Observation]) -> Option<EarlyStop> {
        for observation in observations {
            let Some(&(published, baseline)) = self.known.get(&observation.question) else { continue };
            let load = read_answer(&self.tokenizer, observation);
            if let Some(stop) = self.monitor.observe(pair_predictions(published, baseline, load)) {
                return Some(stop);
            }
        }
        None
    }
}

/// The order in which a load pass and its control ask a round's questions: random, but the same on every machine.
pub(super) fn shuffle(prompts: &[Prompt], seed: u64) -> Vec<Prompt> {
    let mut by_question: BTreeMap<&QuestionId, &Prompt> =
        prompts.iter().map(|prompt| (&prompt.question, prompt)).collect();
    let order = shuffle_questions(by_question.keys().map(|&question| question.clone()).collect(), seed);
    order.iter().filter_map(|question| by_question.remove(question).cloned()).collect()
}
