//! One engine run: the Python worker, asked and listened to. Main type: [`Worker`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use include_dir::{Dir, File, include_dir};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

use super::engine_hits::EngineHits;
use super::error::{EngineError, quote};
use super::lmcache_server::CONNECTOR;
use super::process::{Launch, OwnedProcess, Streams, named_error, points_elsewhere, telling_line};
use super::protocol::{
    Asker, ChangedCell, Misreading, NumberedChunk, NumberedPrompt, PROTOCOL, Probed, Ready, Reply, Request,
    Scored, SeenCell, Start, TimingFault,
};
use super::segments::Segments;
use crate::cache::Bucket;
use crate::dataset::Prompt;
use crate::digest::{Digest, digest_bytes, digest_json};
use crate::model::{ChunkDigests, KvRecord, Observation, SpoiltAnswers, SpoiltProbe};

static PACKAGE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/src/engine/worker/kv_worker");

/// The package's modules, without what Python leaves beside them.
fn sources() -> impl Iterator<Item = &'static File<'static>> {
    PACKAGE.files().filter(|file| file.path().extension() == Some("py".as_ref()))
}

/// How long to wait for the worker before it counts as hung.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the start to `ready`.
    pub start: Duration,
    /// From one answer to the next.
    pub answer: Duration,
    /// From `finish` to the end of the process.
    pub finish: Duration,
}

/// Whether a cache may serve a request. vLLM asks neither its own prefix cache nor a connector for one that only fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixCache {
    /// Whatever cache there is may serve it.
    Read,
    /// It is computed in full, and fills the cache; vLLM's own is emptied before.
    FillOnly,
}

/// How the KV of prompts gets from one engine to another that waits for it.
#[derive(Debug, Clone, Copy)]
pub enum Handing<'a> {
    /// Not by what their answers say.
    None,
    /// It is left to the other engine: one token is generated, and the answer says where the KV is.
    Over,
    /// It was left by the other engine, which said of each prompt where.
    From(&'a [serde_json::Value]),
}

/// An engine that takes prompts.
#[derive(Debug)]
pub struct Worker {
    process: OwnedProcess,
    requests: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
    patience: Patience,
    what: String,
    asks_server: bool,
    /// Each rank's layers whose KV is digested.
    digested_layers: Vec<Vec<String>>,
    /// Why this engine's KV cannot be digested, where it should be.
    digest_problem: Option<String>,
    kv_records: Vec<KvRecord>,
    transfers: Vec<serde_json::Value>,
    /// Tokens that vLLM counts as served since the start, and those before the last prompts.
    hits: [EngineHits; 2],
    misreading: Option<Misreading>,
    asker: Option<Asker>,
    /// Bytes of its log that were there before it.
    log_before: u64,
    /// Behind the process, since fields are dropped in their order.
    segments: Segments,
}

impl Worker {
    /// SHA-256 over the names and digests of the worker's sources; part of every engine stage's key.
    #[must_use]
    pub fn digest() -> Digest {
        let name = |file: &File<'_>| file.path().display().to_string();
        digest_json(
            &sources().map(|file| (name(file), digest_bytes(file.contents()))).collect::<BTreeMap<_, _>>(),
        )
    }

    /// Writes the worker's package below the cache folder, if it is not there, and returns the folder for `PYTHONPATH`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn install(cache: &Utf8Path) -> Result<Utf8PathBuf, EngineError> {
        let workers = Bucket::Worker.folder(cache);
        let folder = workers.join(Self::digest().short());
        let write = || -> std::io::Result<()> {
            let package = folder.join("kv_worker");
            if package.exists() {
                return Ok(());
            }
            fs::create_dir_all(&workers)?;
            let draft = tempfile::tempdir_in(&workers)?;
            fs::create_dir(draft.path().join("kv_worker"))?;
            for source in sources() {
                fs::write(draft.path().join("kv_worker").join(source.path()), source.contents())?;
            }
            match fs::rename(draft.path(), &folder) {
                Err(_) if package.exists() => Ok(()), // another run was faster
                outcome => outcome,
            }
        };
        write().map_err(|source| EngineError::Worker { path: folder.clone(), source })?;
        Ok(folder)
    }

    /// Starts a worker process and its engine. `what` names it in messages: `the baseline engine of canary-mla`.
    ///
    /// # Errors
    /// When the process or the engine does not start in time, or speaks another protocol.
    pub async fn start(
        launch: &Launch,
        start: &Start,
        patience: Patience,
        what: String,
    ) -> Result<(Self, Ready), EngineError> {
        let log_before = fs::metadata(&launch.log).map_or(0, |log| log.len());
        let mut process = OwnedProcess::start(launch, Streams::Piped)?;
        let (requests, replies) = process.take_pipes().expect("the pipes were asked for and not yet taken");
        let asks_server = start.connector.as_ref().is_some_and(|connector| connector.name == CONNECTOR);
        let replies = BufReader::new(replies).lines();
        let mut worker = Self {
            process,
            requests,
            replies,
            patience,
            what,
            asks_server,
            digested_layers: Vec::new(),
            digest_problem: None,
            kv_records: Vec::new(),
            transfers: Vec::new(),
            hits: <[EngineHits; 2]>::default(),
            misreading: None,
            asker: None,
            log_before,
            segments: Segments::default(),
        };
        worker.send(&Request::Start(start)).await?;
        match worker.receive(worker.patience.start).await? {
            Reply::Ready(ready) if ready.protocol == PROTOCOL => {
                if let Some(digests) = &ready.digests {
                    worker.digested_layers.clone_from(&digests.layers);
                    worker.digest_problem.clone_from(&digests.problem);
                }
                worker.segments.expect_of(&worker.process.members());
                Ok((worker, ready))
            }
            Reply::Ready(ready) => {
                Err(worker.garbled(format!("it speaks protocol {}, not {PROTOCOL}", ready.protocol)))
            }
            other => Err(worker.garbled(format!("{other:?} came instead of `ready`"))),
        }
    }

    /// Answers prompts in the given order, and returns the observations in that order. `answered` is told after each.
    ///
    /// # Errors
    /// When the worker dies, goes silent or fails, when an answer is missing or not finite.
    pub async fn score(
        &mut self,
        prompts: &[Prompt],
        prefix_cache: PrefixCache,
        answered: impl FnMut(),
    ) -> Result<Vec<Observation>, EngineError> {
        self.score_handing(prompts, prefix_cache, Handing::None, answered).await
    }

    /// The same, of prompts whose KV is left to another engine or was left by one.
    ///
    /// # Errors
    /// As [`score`](Self::score); and when an answer does not say where the KV was left.
    pub async fn score_handing(
        &mut self,
        prompts: &[Prompt],
        prefix_cache: PrefixCache,
        handing: Handing<'_>,
        mut answered: impl FnMut(),
    ) -> Result<Vec<Observation>, EngineError> {
        let numbered = (0..).zip(prompts).enumerate().map(|(place, (question, prompt))| {
            let transfer = match handing {
                Handing::From(transfers) => transfers.get(place),
                Handing::None | Handing::Over => None,
            };
            NumberedPrompt { question, token_ids: &prompt.token_ids, transfer }
        });
        let read_cache = prefix_cache == PrefixCache::Read;
        let (hand_over, misreading) = (matches!(handing, Handing::Over), self.misreading);
        let (asker, prompts_to_ask) = (self.asker.clone(), numbered.collect());
        let request = Request::Score {
            read_cache,
            hand_over,
            misreading,
            asker: asker.as_ref(),
            prompts: prompts_to_ask,
        };
        self.send(&request).await?;
        let mut observations: Vec<Option<Observation>> = vec![None; prompts.len()];
        let mut transfers: Vec<Option<serde_json::Value>> = vec![None; prompts.len()];
        let mut digests: Vec<Option<Vec<ChunkDigests>>> = vec![None; prompts.len()];
        let mut digest_problem = self.digest_problem.clone();
        loop {
            let scored = match self.receive_about(prompts).await? {
                Reply::Scored(scored) => scored,
                Reply::Digested { question, chunks } => {
                    let place = usize::try_from(question).ok().and_then(|place| digests.get_mut(place));
                    match place {
                        Some(place @ None) => *place = Some(chunks),
                        _ => {
                            return Err(self.garbled(format!(
                                "digests came for prompt {question}, which waits for none"
                            )));
                        }
                    }
                    continue;
                }
                Reply::Counted { digest_problem: problem, counters } => {
                    digest_problem = digest_problem.or(problem);
                    self.count(EngineHits::read(&counters));
                    break;
                }
                other => return Err(self.garbled(format!("{other:?} came instead of `scored`"))),
            };
            let place = usize::try_from(scored.question).ok().filter(|&place| place < prompts.len());
            let Some(place) = place.filter(|&place| observations[place].is_none()) else {
                return Err(self.garbled(format!(
                    "an answer came for prompt {}, which waits for none",
                    scored.question
                )));
            };
            let mut scored = scored;
            transfers[place] = scored.transfer.take();
            observations[place] = Some(self.observe(&prompts[place], scored)?);
            answered();
        }
        let missing = observations.iter().position(Option::is_none);
        if let Some(place) = missing {
            return Err(self.garbled(format!("no answer came for {}", prompts[place].question)));
        }
        self.kv_records = prompts
            .iter()
            .zip(digests)
            .filter_map(|(prompt, chunks)| {
                Some(KvRecord::Request { question: prompt.question.clone(), chunks: chunks? })
            })
            .chain(digest_problem.map(|reason| KvRecord::NotObserved { reason }))
            .collect();
        self.transfers = match handing {
            Handing::Over => match transfers.iter().position(Option::is_none) {
                Some(place) => {
                    let question = &prompts[place].question;
                    return Err(
                        self.garbled(format!("its answer to {question} does not say where the KV was left"))
                    );
                }
                None => transfers.into_iter().flatten().collect(),
            },
            Handing::None | Handing::From(_) => Vec::new(),
        };
        Ok(observations.into_iter().flatten().collect())
    }

    /// Where the KV of the prompts that were scored last was left, in their order.
    pub fn take_transfers(&mut self) -> Vec<serde_json::Value> {
        std::mem::take(&mut self.transfers)
    }

    /// Takes in what was served since the start; what was since the last time comes back.
    pub(super) fn count(&mut self, since_start: EngineHits) -> EngineHits {
        self.hits.rotate_right(1);
        self.hits[0] = since_start;
        self.hits()
    }

    /// Why this engine's KV cannot be digested, where it should be.
    pub(super) fn digest_problem(&self) -> Option<String> {
        self.digest_problem.clone()
    }

    /// How long one answer may take behind another.
    pub(super) fn answer_patience(&self) -> Duration {
        self.patience.answer
    }

    /// Tokens of the prompts that were scored last which vLLM counts as served.
    #[must_use]
    pub fn hits(&self) -> EngineHits {
        self.hits[0].since(&self.hits[1])
    }

    /// Has the engine misread prompts that are served whole from now on, or read them as it does.
    pub fn misread(&mut self, misreading: Option<Misreading>) {
        self.misreading = misreading;
    }

    /// Asks as somebody from now on.
    pub fn ask_as(&mut self, asker: Asker) {
        self.asker = Some(asker);
    }

    /// Answers a prompt that the cache serves three times by itself, the third time with this chunk of it at zero when
    /// attention reads it; nothing of it stays in the engine. `transfers` say three times where another engine has left its KV,
    /// where one has. An engine whose KV cannot be reached is not asked.
    ///
    /// # Errors
    /// When the worker dies, goes silent or fails, or an answer is not finite.
    pub async fn spoil(
        &mut self,
        prompt: &Prompt,
        chunk: u32,
        transfers: &[serde_json::Value],
    ) -> Result<SpoiltProbe, EngineError> {
        if let Some(problem) = &self.digest_problem {
            return Ok(SpoiltProbe::NotAsked {
                reason: format!("This engine's KV cannot be reached: {problem}."),
            });
        }
        let one = |place| NumberedPrompt {
            question: 0,
            token_ids: &prompt.token_ids,
            transfer: transfers.get(place),
        };
        self.send(&Request::Spoil { prompts: (0..3).map(one).collect(), chunk }).await?;
        match self.receive_about(std::slice::from_ref(prompt)).await? {
            Reply::Spoilt(spoilt) => {
                let Probed { alone, again, spoilt, cells, counters } = *spoilt;
                // What the next pass is served is counted from here.
                let since_start = EngineHits::read(&counters);
                self.hits = [since_start.clone(), since_start];
                let [alone, again, spoilt] =
                    [alone, again, spoilt].map(|scored| self.observe(prompt, scored));
                let answers = SpoiltAnswers { chunk, cells, alone: alone?, again: again?, spoilt: spoilt? };
                Ok(SpoiltProbe::Asked(Box::new(answers)))
            }
            other => Err(self.garbled(format!("{other:?} came instead of `spoilt`"))),
        }
    }

    /// Fails at the first answer that is no number, for those who have nothing else to hold it against.
    ///
    /// # Errors
    /// When there is one.
    pub fn require_numbers(&self, observations: &[Observation]) -> Result<(), EngineError> {
        let Some(without) = observations.iter().find(|observation| observation.no_numbers) else {
            return Ok(());
        };
        Err(EngineError::NoNumbers {
            what: format!("{} at {}", self.what, without.question),
            message: "its log-probabilities are no numbers".to_owned(),
            log: self.process.log().to_owned(),
        })
    }

    /// What an answer shows of its prompt.
    fn observe(&self, prompt: &Prompt, scored: Scored) -> Result<Observation, EngineError> {
        if scored.steps.is_empty() || !scored.logprobs().all(f64::is_finite) {
            return Err(self.garbled(format!("the answer to {} is empty or not finite", prompt.question)));
        }
        let prompt_tokens = u32::try_from(prompt.token_ids.len()).unwrap_or(u32::MAX);
        Ok(Observation {
            question: prompt.question.clone(),
            prompt_tokens,
            // Of a prompt that a connector loads whole beside the computing, as LMCache's does on a GPU, vLLM counts the last
            // token as served, and computes it again like any other engine.
            cached_tokens: match scored.cached_tokens {
                all if all == prompt_tokens => all.saturating_sub(1),
                some => some,
            },
            preemptions: scored.preemptions,
            served_again: scored.served_again,
            letters: scored.letters,
            no_numbers: scored.no_numbers,
            steps: scored.steps,
        })
    }

    /// What the last [`score`](Self::score) showed of the KV itself, in the order of the prompts.
    pub fn take_kv_records(&mut self) -> Vec<KvRecord> {
        std::mem::take(&mut self.kv_records)
    }

    /// Plants a fault of timing in the prompts that are scored next; says why where this engine cannot have one.
    ///
    /// # Errors
    /// When the worker dies, goes silent or fails.
    pub async fn plant(&mut self, fault: &TimingFault) -> Result<Option<String>, EngineError> {
        self.change_fault(Some(fault)).await.map(|(_, problem)| problem)
    }

    /// Ends the fault that was planted; returns what it did to the prompts that were scored first since.
    ///
    /// # Errors
    /// When the worker dies, goes silent or fails.
    pub async fn end_fault(&mut self) -> Result<Vec<ChangedCell>, EngineError> {
        self.change_fault(None).await.map(|(cells, _)| cells)
    }

    async fn change_fault(
        &mut self,
        fault: Option<&TimingFault>,
    ) -> Result<(Vec<ChangedCell>, Option<String>), EngineError> {
        self.send(&Request::Plant { fault }).await?;
        match self.receive(self.patience.answer).await? {
            Reply::Planted { cells, problem } => Ok((cells, problem)),
            other => Err(self.garbled(format!("{other:?} came instead of `planted`"))),
        }
    }

    /// Each rank's layers by name, in the order of their digests; none where nothing is digested.
    #[must_use]
    pub fn digested_layers(&self) -> &[Vec<String>] {
        &self.digested_layers
    }

    /// Has what chunks of the prompts of the last [`score`](Self::score) hold now written into files in a folder; those that the
    /// engine still knows, and what kept it from looking at others.
    ///
    /// # Errors
    /// When the worker dies, goes silent or fails.
    pub async fn look(
        &mut self,
        folder: &Utf8Path,
        chunks: &[NumberedChunk],
    ) -> Result<(Vec<SeenCell>, Option<String>), EngineError> {
        self.send(&Request::Look { folder, chunks }).await?;
        match self.receive(self.patience.answer).await? {
            Reply::Looked { cells, problem } => Ok((cells, problem)),
            other => Err(self.garbled(format!("{other:?} came instead of `looked`"))),
        }
    }

    /// Shuts the engine down; one that does not leave in time is ended.
    ///
    /// # Errors
    /// When the worker fails while it shuts down. All answers were received by then.
    pub async fn finish(mut self) -> Result<(), EngineError> {
        self.send(&Request::Finish).await?;
        match self.receive(self.patience.finish).await {
            Ok(Reply::Finished {}) | Err(EngineError::Silent { .. }) => {}
            Ok(other) => return Err(self.garbled(format!("{other:?} came instead of `finished`"))),
            Err(error) => return Err(error),
        }
        self.process.wait(self.patience.finish).await;
        Ok(())
    }

    pub(super) async fn send(&mut self, request: &Request<'_>) -> Result<(), EngineError> {
        let mut line = serde_json::to_vec(request).expect("a request has a JSON form");
        line.push(b'\n');
        let written = async {
            self.requests.write_all(&line).await?;
            self.requests.flush().await
        };
        // A worker that died while it was written to says why in its last reply or its log.
        match written.await {
            Ok(()) => Ok(()),
            Err(_) => match self.receive(self.patience.finish).await {
                Ok(reply) => Err(self.garbled(format!("it left after {reply:?}"))),
                Err(error) => Err(error),
            },
        }
    }

    async fn receive_about(&mut self, prompts: &[Prompt]) -> Result<Reply, EngineError> {
        self.receive_naming(self.patience.answer, |question| {
            prompts.get(usize::try_from(question).ok()?).map(|prompt| prompt.question.to_string())
        })
        .await
    }

    pub(super) async fn receive(&mut self, patience: Duration) -> Result<Reply, EngineError> {
        self.receive_naming(patience, |_| None).await
    }

    async fn receive_naming(
        &mut self,
        patience: Duration,
        name: impl Fn(u32) -> Option<String>,
    ) -> Result<Reply, EngineError> {
        let line = match tokio::time::timeout(patience, self.replies.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(self.died().await),
            Ok(Err(error)) => return Err(self.garbled(format!("its output cannot be read: {error}"))),
            Err(_) => {
                let (log, what) = (self.process.log().to_owned(), self.what.clone());
                let asks_server = self.asks_server;
                return Err(EngineError::Silent {
                    what,
                    patience,
                    said: telling_line(&log),
                    log,
                    asks_server,
                });
            }
        };
        let reply = serde_json::from_str(&line).map_err(|error| {
            let start: String = line.chars().take(200).collect();
            self.garbled(format!("{start:?} is no reply ({error})"))
        })?;
        let Reply::Failed { kind, message, question } = reply else { return Ok(reply) };
        let at = question.and_then(&name).map_or_else(String::new, |question| format!(" at {question}"));
        let (what, log) = (format!("{}{at}", self.what), self.process.log().to_owned());
        if kind == "observation" {
            // What a connector says of a load that it could not do is in the log alone.
            let cause = named_error(&log, self.log_before);
            let message = format!("{message}{}", quote(cause.as_deref()));
            return Err(EngineError::NoNumbers { what, message, log });
        }
        let cause = telling_line(&log).filter(|_| points_elsewhere(&message));
        let message = format!("{message}{}", quote(cause.as_deref()));
        Err(EngineError::Failed { what, message, log })
    }

    async fn died(&mut self) -> EngineError {
        let (log, what) = (self.process.log().to_owned(), self.what.clone());
        let asked = Instant::now();
        if let Some(status) = self.process.wait(self.patience.finish).await {
            return self.process.died(what, status);
        }
        let (patience, asks_server) = (asked.elapsed(), self.asks_server);
        EngineError::Silent { what, patience, said: telling_line(&log), log, asks_server }
    }

    pub(super) fn garbled(&self, problem: String) -> EngineError {
        EngineError::Garbled { what: self.what.clone(), problem, log: self.process.log().to_owned() }
    }
}
