//! What an engine is put under pressure by: settings of a suite's table `[pressure]`. Main type: [`PressureSettings`].

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// What an engine is put under pressure by, instead of the suite's own settings of engine and LMCache. A suite with this table
/// is run under pressure, too; `--pressure` does so with any suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PressureSettings {
    /// How many schedules are asked, each by a seed of its own.
    pub seeds: u32,
    /// The seed of the first; the others have the numbers behind it. vLLM's own prefix cache serves, too, under even ones.
    pub first_seed: u32,
    /// Requests of one schedule.
    pub requests: u32,
    /// Sequences in one batch.
    pub sequences: u32,
    /// Longest sequence in tokens, generated ones included: prompts are shortened to fit.
    pub max_model_len: u32,
    /// Tokens that one step computes at most, so that prompts are computed piece by piece.
    pub batched_tokens: u32,
    /// Tokens generated for a request at most.
    pub answer_tokens: u32,
    /// Tokens of a block of vLLM's KV cache, unless its attention takes others.
    pub block_tokens: u32,
    /// Blocks of vLLM's KV cache: too few for the sequences of a batch.
    pub blocks: u32,
    /// Tokens of one of LMCache's chunks.
    pub chunk_tokens: u32,
    /// Tokens whose KV LMCache's memory holds: too few for the requests of a schedule.
    pub memory_tokens: u32,
    /// Whether requests are broken off while their KV is loaded, too.
    pub abort_loads: bool,
}

impl Default for PressureSettings {
    fn default() -> Self {
        Self {
            seeds: 3,
            first_seed: 1,
            requests: 40,
            sequences: 16,
            max_model_len: 1024,
            batched_tokens: 256,
            answer_tokens: 64,
            block_tokens: 32,
            blocks: 96,
            chunk_tokens: 64,
            memory_tokens: 8192,
            abort_loads: true,
        }
    }
}

impl PressureSettings {
    /// The seeds of its schedules.
    #[must_use]
    pub fn seeds(self) -> RangeInclusive<u32> {
        self.first_seed..=self.first_seed.saturating_add(self.seeds.saturating_sub(1))
    }

    /// MiB of LMCache's memory, where a token's KV has so many bytes.
    #[must_use]
    pub fn memory_mib(self, bytes_per_token: u64) -> u32 {
        let bytes = u64::from(self.memory_tokens).saturating_mul(bytes_per_token);
        u32::try_from(bytes.div_ceil(MIB)).unwrap_or(u32::MAX).max(1)
    }

    /// The first setting that cannot be, and what is wrong with it.
    pub(super) fn first_absurdity(self) -> Option<(&'static str, String)> {
        let positive = [
            ("seeds", self.seeds),
            ("requests", self.requests),
            ("sequences", self.sequences),
            ("batched_tokens", self.batched_tokens),
            ("answer_tokens", self.answer_tokens),
            ("block_tokens", self.block_tokens),
            ("blocks", self.blocks),
            ("chunk_tokens", self.chunk_tokens),
            ("memory_tokens", self.memory_tokens),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Some((name, format!("`pressure.{name}` must be at least 1")));
        }
        let Self { max_model_len, answer_tokens, chunk_tokens, block_tokens, .. } = self;
        let least = answer_tokens.saturating_add(chunk_tokens.saturating_mul(4));
        if max_model_len < least {
            let problem = format!(
                "`pressure.max_model_len` leaves no room for a prompt of four chunks and its answer: {least} tokens"
            );
            return Some(("max_model_len", problem));
        }
        if self.blocks.saturating_mul(block_tokens) < max_model_len {
            let problem =
                "`pressure.blocks` of `pressure.block_tokens` hold less than `pressure.max_model_len`"
                    .to_owned();
            return Some(("blocks", problem));
        }
        if !chunk_tokens.is_multiple_of(block_tokens) {
            let problem = "`pressure.chunk_tokens` must be a multiple of `pressure.block_tokens`".to_owned();
            return Some(("chunk_tokens", problem));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_numbered_from_the_first_one() {
        assert_eq!(PressureSettings::default().seeds().collect::<Vec<_>>(), [1, 2, 3]);
        let one = PressureSettings { seeds: 1, first_seed: 7, ..PressureSettings::default() };
        assert_eq!(one.seeds().collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn memory_is_told_in_tokens_and_is_never_nothing() {
        let memory = |tokens, bytes| {
            PressureSettings { memory_tokens: tokens, ..PressureSettings::default() }.memory_mib(bytes)
        };
        assert_eq!([memory(8192, 2048), memory(8192, 4608), memory(1, 2)], [16, 36, 1]);
    }

    #[test]
    fn settings_under_which_nothing_can_be_asked_are_told() {
        let flaw = |change: fn(&mut PressureSettings)| {
            let mut settings = PressureSettings::default();
            change(&mut settings);
            settings.first_absurdity().map(|(name, _)| name)
        };
        assert_eq!(flaw(|_| {}), None);
        assert_eq!(flaw(|settings| settings.blocks = 0), Some("blocks"));
        assert_eq!(flaw(|settings| settings.blocks = 31), Some("blocks"));
        assert_eq!(flaw(|settings| settings.max_model_len = 319), Some("max_model_len"));
        assert_eq!(flaw(|settings| settings.chunk_tokens = 48), Some("chunk_tokens"));
    }
}
