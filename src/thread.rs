//! Threads, where the system may refuse one: that is an error, and no panic. Main function: [`on_thread`].

use std::io;

/// Why work was not done on a thread of its own.
#[derive(Debug, thiserror::Error)]
pub enum NoThread {
    /// There is none to be had.
    #[error("start another thread, which the system refuses")]
    Refused(#[source] io::Error),
    /// It broke off.
    #[error("finish what a thread did: it ended without a result")]
    Ended,
}

impl NoThread {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Refused(_) => {
                "raise the limit on processes (`ulimit -u`, a container's `pids` limit) or free memory, and run the same \
                 command again"
            }
            Self::Ended => "run the same command again, and report it if it ends so again",
        }
        .to_owned()
    }
}

/// Does work that waits for disks, networks or other runs on a thread of its own, so that an interrupt need not wait.
pub(crate) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoThread> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let run = move || {
        // Whoever was interrupted no longer waits for it.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().spawn(run).map_err(NoThread::Refused)?;
    receiver.await.map_err(|_| NoThread::Ended)
}
