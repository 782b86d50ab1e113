//! What one request showed. Main type: [`Observation`]. Nothing here is judged; see `comparison`.

use serde::{Deserialize, Serialize};

use super::QuestionId;

/// A token and its natural-log probability, finite: the engine's own float32. Five arms of all of MMLU are in memory at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprob {
    /// Vocabulary index.
    pub token: u32,
    /// Natural logarithm of the probability, at most 0 up to rounding.
    pub logprob: f32,
}

impl TokenLogprob {
    /// The log-probability for arithmetic, which is done in double precision.
    #[must_use]
    pub fn nats(self) -> f64 {
        f64::from(self.logprob)
    }
}

/// One generated token: what was chosen and the most likely alternatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The chosen token.
    pub chosen: TokenLogprob,
    /// The k most likely tokens, most likely first; equal ones by token id.
    pub top: Vec<TokenLogprob>,
}

/// The answer to one request in one pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// The question that was asked.
    pub question: QuestionId,
    /// Length of the prompt in tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens whose KV was not computed for this request when it was first taken up, as vLLM reports it.
    pub cached_tokens: u32,
    /// How often the scheduler took its blocks away for lack of room, so that it had to be taken up again.
    #[serde(default, skip_serializing_if = "is_never")]
    pub preemptions: u32,
    /// Tokens that a connector served each time it was taken up again; of those times that it served any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub served_again: Vec<u32>,
    /// Log-probabilities of the letters A to D as the first generated token.
    pub letters: [f64; 4],
    /// Whether log-probabilities were no numbers, which only an engine with a cache may say; a finite one stands for each.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_numbers: bool,
    /// The generated tokens in order; never empty.
    pub steps: Vec<Step>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_never(times: &u32) -> bool {
    *times == 0
}
