//! What the process's exit status means. Main function: [`exit_code`].
//!
//! | status | meaning |
//! |---|---|
//! | 0 | equivalent |
//! | 1 | degraded |
//! | 2 | no verdict: bad usage, bad input, infrastructure; or equivalent, but something that was asked for was not done: a route
//! cannot run here, or what was read of foreign KV proves nothing |
//! | 3 | inconclusive |
//! | 4 | not exercised |
//! | 5 | insensitive |
//! | 130, 143 | interrupted by SIGINT or SIGTERM |

use crate::comparison::Verdict;

/// No verdict.
pub const ERROR: u8 = 2;

/// The status of a run: that of its verdict. Where something that was asked for was not done (routes that cannot run, readers
/// of foreign KV without a control), equivalence is not what was asked for, and there is no verdict.
#[must_use]
pub fn exit_code_of_run(verdict: Verdict, not_done: usize) -> u8 {
    if verdict == Verdict::Equivalent && not_done > 0 { ERROR } else { exit_code(verdict) }
}

/// The status that tells a verdict.
#[must_use]
pub fn exit_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Equivalent => 0,
        Verdict::Degraded => 1,
        Verdict::Inconclusive => 3,
        Verdict::NotExercised => 4,
        Verdict::Insensitive => 5,
    }
}
