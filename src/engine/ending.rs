//! Ends all process groups that this process has started at the same time. Main functions: [`end_all`], [`kill_all`].

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use super::group::{GRACE, signal_group};

/// Between two looks at who is left.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Leaders of the groups that were started and not yet ended.
static GROUPS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

pub(super) fn note_group(group: u32) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
}

pub(super) fn forget_group(group: u32) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
}

fn groups() -> Vec<u32> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
}

/// Tells every group to end, waits until their leaders have, at most one grace period for all of them together, and kills
/// what is left. Their values can be dropped in no time then.
pub async fn end_all() {
    let groups = groups();
    for group in &groups {
        signal_group(*group, Signal::TERM);
    }
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && groups.iter().any(|group| runs(*group)) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    kill_all();
}

/// Kills every group at once.
pub fn kill_all() {
    for group in groups() {
        signal_group(group, Signal::KILL);
    }
}

/// Whether a child of this process still runs; it is left to be waited for by its owner.
fn runs(child: u32) -> bool {
    let Some(child) = i32::try_from(child).ok().and_then(Pid::from_raw) else { return false };
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::Pid(child), look), Ok(None))
}
