//! Ends a load pass once harm is beyond doubt. Main type: [`Watch`].

use std::collections::BTreeMap;

use super::StageError;
use super::answer::{published_answers, read_answer};
use super::engine_run::EngineRun;
use super::files::BASELINE;
use super::lines::read_lines;
use super::prompts::load_tokenizer;
use crate::comparison::{EarlyStop, HarmMonitor, pair_predictions};
use crate::dataset::Tokenizer;
use crate::model::Observation;
use crate::model::{Choice, QuestionId};
use crate::stage_name::StageName;

/// Holds each answer of a load pass against the baseline's, as it comes.
pub(super) struct Watch {
    monitor: HarmMonitor,
    tokenizer: Tokenizer,
    known: BTreeMap<QuestionId, (Choice, Option<Choice>)>,
}

impl Watch {
    /// A watch over one of so many comparisons. Inputs: questions and baseline.
    pub(super) fn new(run: &EngineRun<'_>, comparisons: u32) -> Result<Self, StageError> {
        let tokenizer = load_tokenizer(run.files, run.context.model_name())?;
        let published = published_answers(run.context.inputs.of(StageName::Extract))?;
        let baseline = run.context.inputs.of(StageName::Baseline);
        let mut known = BTreeMap::new();
        for observation in read_lines::<Observation>(baseline.path(BASELINE))? {
            let observation = observation?;
            if let Some(&answer) = published.get(&observation.question) {
                let given = read_answer(&tokenizer, &observation);
                known.insert(observation.question, (answer, given));
            }
        }
        Ok(Self { monitor: HarmMonitor::new(comparisons), tokenizer, known })
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
