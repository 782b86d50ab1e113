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
use crate::suite::EngineSettings;

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
        Ok(Self { monitor: HarmMonitor::new(run.bench.suite.comparisons()), tokenizer, known })
    }

    /// Takes some observations of the load pass in the order of asking.
    pub(super) fn observe(&mut self, observations: &[Observation]) -> Option<EarlyStop> {
        for observation in observations {
            let Some(&(published, baseline)) = self.known.get(&observation.question) else { continue };
            let load = read_answer(&self.tokenizer, observation);
            let outcome = pair_predictions(published, baseline, load);
            if let Some(stop) = self.monitor.observe(&observation.question.subject, outcome) {
                return Some(stop);
            }
        }
        None
    }
}

/// Questions of a load pass between two looks at the evidence for harm, for each sequence of a batch.
const SLICE: usize = 32;

/// What a load pass and its control ask of a round, one slice after the other, since which requests meet in a batch may change
/// their last bits: in an order that is random, but the same on every machine.
pub(super) fn slices(prompts: &[Prompt], engine: &EngineSettings) -> Vec<Vec<Prompt>> {
    let mut by_question: BTreeMap<&QuestionId, &Prompt> =
        prompts.iter().map(|prompt| (&prompt.question, prompt)).collect();
    let questions = by_question.keys().map(|&question| question.clone()).collect();
    let order: Vec<Prompt> = shuffle_questions(questions, engine.seed)
        .iter()
        .filter_map(|question| by_question.remove(question).cloned())
        .collect();
    let batch = usize::try_from(engine.max_num_seqs).unwrap_or(1);
    order.chunks(SLICE * batch).map(<[Prompt]>::to_vec).collect()
}
