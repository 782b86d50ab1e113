//! Processes that have imported vLLM or LMCache and fork each engine or LMCache server. Main type: [`ForkServers`].
//!
//! Imports are most of the start of both, and engines that start at the same time hinder each other at it. A fork server is
//! started with the first that it forks and ends with the run, or with its step of a bisection. Where it cannot serve, as when
//! vLLM cannot be imported, an engine starts by itself, and says what is wrong. The Python counterpart, which tells the
//! protocol, is `src/engine/worker/kv_worker/forkserver.py`.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::getpgrp;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};

use super::error::EngineError;
use super::process::{Launch, OwnedProcess, Streams};

const WHAT: &str = "the fork server";
const MODULE: &str = "kv_worker.forkserver";
/// How long Python may take until it listens, which is before it imports.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a fork server imports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imports {
    /// What an engine needs.
    Engine,
    /// What an LMCache server needs.
    Lmcache,
}

impl Imports {
    fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Lmcache => "lmcache",
        }
    }
}

/// The fork servers of a run.
#[derive(Debug, Default)]
pub struct ForkServers {
    started: tokio::sync::Mutex<Vec<ForkServer>>,
}

/// A fork server, with what it was started for.
#[derive(Debug)]
struct ForkServer {
    imports: Imports,
    python: Utf8PathBuf,
    variables: Vec<(String, String)>,
    /// None if it did not start.
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    process: OwnedProcess,
    socket: Utf8PathBuf,
    /// Holds the socket.
    _folder: tempfile::TempDir,
}

impl ForkServers {
    /// The socket of a server that forks what `launch` starts, a program of this Python that needs these imports, with variables
    /// of its own on top if need be. The worker's package must be on its path. It is started if there is none, with its
    /// output in this launch's log, and may still be importing. None where it does not start.
    pub async fn socket(&self, imports: Imports, python: &Utf8Path, launch: &Launch) -> Option<Utf8PathBuf> {
        let mut started = self.started.lock().await;
        let serves = |server: &ForkServer| {
            server.imports == imports && server.python == python && server.variables == launch.variables
        };
        if !started.iter().any(serves) {
            let (python, variables) = (python.to_owned(), launch.variables.clone());
            let running = Running::start(imports, &python, launch).await.ok();
            started.push(ForkServer { imports, python, variables, running });
        }
        let running = started.iter_mut().find(|server| serves(server))?.running.as_mut()?;
        running.process.try_wait().is_none().then(|| running.socket.clone())
    }

    /// Ends them all, as before an environment that none of them is for. Those that are asked for again start anew.
    pub async fn end(&self) {
        self.started.lock().await.clear();
    }
}

impl Running {
    async fn start(imports: Imports, python: &Utf8Path, launch: &Launch) -> Result<Self, EngineError> {
        let spawn = |source| EngineError::Spawn { command: WHAT.to_owned(), source };
        let folder = tempfile::tempdir().map_err(spawn)?;
        let socket = Utf8PathBuf::try_from(folder.path().join("socket"))
            .map_err(|error| spawn(std::io::Error::other(error)))?;
        let command =
            [python.as_str(), "-m", MODULE, socket.as_str(), imports.name()].map(str::to_owned).to_vec();
        let launch = Launch { command, ..launch.clone() };
        let mut process = OwnedProcess::start(&launch, Streams::Logged)?;
        process.until_ready(WHAT, PATIENCE, &[], async || socket.exists()).await?;
        Ok(Self { process, socket, _folder: folder })
    }
}

/// What was forked for this process: it has its standard streams and variables, and is in its process group.
pub(super) struct Forked {
    replies: Lines<BufReader<tokio::net::UnixStream>>,
}

impl Forked {
    /// Asks for what this command would start, and waits until the server has imported.
    ///
    /// # Errors
    /// When there is no such server, or not any more, or it cannot import.
    pub(super) async fn ask(socket: &Utf8Path, command: &[String]) -> std::io::Result<Self> {
        let connection = UnixStream::connect(socket)?;
        let head = format!("{} {}\n", getpgrp().as_raw_nonzero(), command.len());
        let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let streams = [input.as_fd(), output.as_fd(), error.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&streams));
        sendmsg(&connection, &[IoSlice::new(head.as_bytes())], &mut ancillary, SendFlags::empty())?;
        connection.set_nonblocking(true)?;
        let mut connection = tokio::net::UnixStream::from_std(connection)?;
        let words = command.iter().map(|word| word.clone().into_bytes());
        connection.write_all(&words.chain(variables_of_this_process()).collect::<Vec<_>>().join(&0)).await?;
        connection.shutdown().await?;
        let mut forked = Self { replies: BufReader::new(connection).lines() };
        forked.reply().await?;
        Ok(forked)
    }

    /// Waits for its end, and returns its exit status, or minus the number of the signal that ended it.
    ///
    /// # Errors
    /// When the process that waits for it is gone.
    pub(super) async fn wait(&mut self) -> std::io::Result<i32> {
        self.reply().await?.parse().map_err(std::io::Error::other)
    }

    async fn reply(&mut self) -> std::io::Result<String> {
        self.replies.next_line().await?.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// `NAME=VALUE` of each.
fn variables_of_this_process() -> impl Iterator<Item = Vec<u8>> {
    std::env::vars_os().map(|(name, value)| [name.as_bytes(), value.as_bytes()].join(&b'='))
}
