//! Which releases of vLLM the worker knows. Main constant: [`KNOWN_VLLM`].

use std::ops::RangeInclusive;

/// The releases of vLLM among which those are that the worker was seen to work in, but for the last number of each; docs/architecture.md
/// has which these are, and what each needed.
pub(super) const KNOWN_VLLM: RangeInclusive<(u64, u64)> = (0, 24)..=(0, 33);
