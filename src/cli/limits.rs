//! Limits that the system sets to this process: met as errors that say what raises them. Main function: [`meet_limits`].

use anyhow::Context;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Pairs of descriptors that are surely enough until a first stage runs.
const PAIRS: usize = 24;
/// Linux's number of the signal that a write beyond the limit on file sizes raises.
const SIGXFSZ: i32 = 25;

/// Sees that a limit of the system ends this process with an error, not by a signal or by a library's panic.
///
/// # Errors
/// When fewer files can be opened than any command needs.
pub(super) fn meet_limits() -> anyhow::Result<()> {
    let pairs: Result<Vec<_>, _> = (0..PAIRS).map(|_| std::io::pipe()).collect();
    drop(pairs.context("open files")?);
    // Once there is something that takes the signal, a write that is refused is an error like any other. It stays when this
    // runtime goes.
    let runtime = Builder::new_current_thread().enable_all().build().context("listen to signals")?;
    let _inside = runtime.enter();
    drop(signal(SignalKind::from_raw(SIGXFSZ)).context("listen to signals")?);
    Ok(())
}

/// What raises each limit, by the system's number of the error that it causes.
const RAISE: [(&str, &str); 4] = [
    ("(os error 23)", "end what else holds many files open, or raise `fs.file-max`"),
    ("(os error 24)", "raise the limit on open files (`ulimit -n 4096`)"),
    ("(os error 27)", "raise the limit on file sizes (`ulimit -f unlimited`)"),
    ("(os error 122)", "free some of this user's quota of that disk, or name another place"),
];

/// What raises the limit that an error tells of, if it tells of one.
pub(super) fn hint_of_limit(message: &str) -> Option<String> {
    let (_, raise) = RAISE.into_iter().find(|(number, _)| message.contains(number))?;
    Some(format!("{raise}, and run the same command again"))
}
