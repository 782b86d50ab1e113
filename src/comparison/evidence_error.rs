//! Evidence that cannot be compared. Main type: [`EvidenceError`].

use thiserror::Error;

use crate::dataset::QuestionId;

use super::arm_name::ArmName;

/// Why there can be no comparison: the run itself is broken, so there is no verdict either.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum EvidenceError {
    /// Nothing was asked.
    #[error("compare: there is no question")]
    NoQuestions,
    /// The list of questions names one twice.
    #[error("compare: question {0} is listed twice")]
    AskedTwice(QuestionId),
    /// An arm observed a question twice.
    #[error("compare: the {arm} answers {question} twice")]
    Duplicate {
        /// Which arm.
        arm: ArmName,
        /// Which question.
        question: QuestionId,
    },
    /// An arm lacks a question.
    #[error("compare: the {arm} has no answer to {question}")]
    Missing {
        /// Which arm.
        arm: ArmName,
        /// Which question.
        question: QuestionId,
    },
    /// An arm answers what was not asked.
    #[error("compare: the {arm} answers {question}, which was not asked")]
    Unasked {
        /// Which arm.
        arm: ArmName,
        /// Which question.
        question: QuestionId,
    },
    /// An arm was given another prompt.
    #[error("compare: the {arm} saw {seen} prompt tokens for {question} instead of {expected}")]
    OtherPrompt {
        /// Which arm.
        arm: ArmName,
        /// Which question.
        question: QuestionId,
        /// Length of the prompt that was made, in tokens.
        expected: u32,
        /// Length of the prompt that was answered, in tokens.
        seen: u32,
    },
    /// An observation has no generated token, or a log-probability that is not finite.
    #[error("compare: the {arm} gives no finite log-probabilities for {question}")]
    NotNumbers {
        /// Which arm.
        arm: ArmName,
        /// Which question.
        question: QuestionId,
    },
    /// The load pass is said to have stopped early, on evidence that does not allow it.
    #[error(
        "compare: the load pass stopped early after {harms} harms and {gains} gains, which is not enough to stop"
    )]
    UnfoundedStop {
        /// Harms when it stopped.
        harms: u32,
        /// Gains when it stopped.
        gains: u32,
    },
    /// A criterion has a value that makes no sense.
    #[error("compare: criterion {0} is out of range")]
    AbsurdCriterion(&'static str),
}

impl EvidenceError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoQuestions => "choose a suite or --subjects with at least one test question".to_owned(),
            Self::AskedTwice(_) => {
                "the dataset lists a question twice; run the extract stage again".to_owned()
            }
            Self::Duplicate { arm, .. } | Self::Missing { arm, .. } | Self::Unasked { arm, .. } => {
                format!(
                    "the artifact of the {arm} does not belong to these questions; run its stage again with --force"
                )
            }
            Self::OtherPrompt { arm, .. } => format!(
                "the {arm} was made with another tokenizer or prompt template; run its stage again with --force"
            ),
            Self::NotNumbers { arm, .. } => {
                format!(
                    "the model computed NaN or infinity in the {arm}; look at the engine's log and the model's dtype"
                )
            }
            Self::UnfoundedStop { .. } => {
                "run the cached stage again with --force, or with --no-early-stop".to_owned()
            }
            Self::AbsurdCriterion(_) => {
                "shares lie between 0 and 1, gaps are not negative; correct the suite".to_owned()
            }
        })
    }
}
