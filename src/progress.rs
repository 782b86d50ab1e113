//! Shows events: bars on a terminal, plain lines elsewhere, nothing when quiet. The only consumer of [`Event`]s.
//!
//! Everything goes to standard error. Main type: [`Progress`].

mod terminal;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;

use self::terminal::{clear_bar, make_bar, with_bar};
pub use self::terminal::{close, printable};
use crate::event::{Event, Events};

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings only.
    Quiet,
    /// Stages, engines and questions.
    Normal,
    /// Where logs go as well.
    Verbose,
}

/// Without a terminal, a pass says how far it is so often.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows events as they come.
#[derive(Debug)]
pub struct Progress {
    verbosity: Verbosity,
    terminal: bool,
    /// Whether the bar is one that only turns.
    spins: bool,
    passes: Passes,
    /// When a fetch was last told of in a line.
    fetch_line: Option<Instant>,
}

/// The passes that are under way; a store and a load pass take turns.
#[derive(Debug, Default)]
struct Passes {
    current: String,
    begun: BTreeMap<String, PassProgress>,
}

#[derive(Debug)]
struct PassProgress {
    started: Instant,
    last_line: Instant,
}

impl Passes {
    /// Makes this the current pass, and says whether another one was.
    fn turn_to(&mut self, name: &str) -> bool {
        let turned = self.current != name;
        if turned {
            name.clone_into(&mut self.current);
        }
        turned
    }

    /// The line on a pass, if one is due: so often, and at its end.
    fn line(&mut self, name: &str, done: usize, total: usize, now: Instant) -> Option<String> {
        if done == 0 {
            self.begun.insert(name.to_owned(), PassProgress { started: now, last_line: now });
            return None;
        }
        let pass = self.begun.entry(name.to_owned()).or_insert(PassProgress { started: now, last_line: now });
        (done == total || now - pass.last_line > LINE_INTERVAL).then(|| {
            pass.last_line = now;
            format!("{name}: {done} of {total} questions, {:.0} s", (now - pass.started).as_secs_f64())
        })
    }
}

impl Progress {
    /// Events that are shown on standard error.
    #[must_use]
    pub fn events(verbosity: Verbosity) -> Events {
        let terminal = std::io::stderr().is_terminal();
        let progress = Arc::new(Mutex::new(Self {
            verbosity,
            terminal,
            spins: false,
            passes: Passes::default(),
            fetch_line: None,
        }));
        Events::new(move |event| {
            record(&event);
            progress.lock().unwrap_or_else(PoisonError::into_inner).show(&event);
        })
    }

    fn show(&mut self, event: &Event) {
        if let Event::QuestionsDone { pass, done, total } = event {
            if self.verbosity > Verbosity::Quiet {
                self.show_questions(pass, *done, *total);
            }
            return;
        }
        if let Event::FetchProgress { done, total } = event {
            if self.verbosity > Verbosity::Quiet {
                self.show_fetch(*done, *total);
            }
            return;
        }
        if let Event::EnvironmentStep { text } = event {
            if self.terminal && self.verbosity > Verbosity::Quiet {
                self.spin(text);
            }
            return;
        }
        clear_bar();
        if let Some((least, text)) = describe(event)
            && self.verbosity >= least
        {
            say(&text);
        }
        let waits_for = match event {
            Event::EngineStarting { label, .. } => format!("starting the {label}"),
            Event::ServerStarting { server, .. } => format!("starting the {server}"),
            Event::EnvironmentStarted { .. } => "making the Python environment".to_owned(),
            Event::ConversionStarted { model } => format!("converting {model}"),
            Event::BuildStarted { what, .. } => format!("building {what}"),
            _ => return,
        };
        if self.terminal && self.verbosity > Verbosity::Quiet {
            self.spin(&waits_for);
        }
    }

    fn spin(&mut self, text: &str) {
        if !self.spins {
            clear_bar();
        }
        self.spins = true;
        let make = || {
            let bar = make_bar(None, "{spinner} {wide_msg} {elapsed}");
            // The bar's own thread must not be refused.
            if std::thread::Builder::new().spawn(|| ()).is_ok() {
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            bar
        };
        with_bar(make, |bar| bar.set_message(printable(text).into_owned()));
    }

    fn show_questions(&mut self, name: &str, done: usize, total: usize) {
        if self.passes.turn_to(name) || self.spins {
            clear_bar();
        }
        if self.terminal {
            self.spins = false;
            let make = || {
                let bar = make_bar(
                    Some(total as u64),
                    "{msg} {wide_bar} {pos}/{len} questions, {per_sec}, {eta} left",
                );
                bar.set_message(printable(name).into_owned());
                bar.set_position(done as u64);
                bar.reset_eta();
                bar
            };
            with_bar(make, |bar| bar.set_position(done as u64));
        }
        if let Some(line) = self.passes.line(name, done, total, Instant::now())
            && !self.terminal
        {
            say(&line);
        }
        if done == total {
            clear_bar();
        }
    }

    fn show_fetch(&mut self, done: u64, total: u64) {
        if self.terminal {
            self.spins = false;
            let make =
                || make_bar(Some(total), "{wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
            with_bar(make, |bar| bar.set_position(done));
        } else if self.fetch_line.is_none_or(|last| last.elapsed() > LINE_INTERVAL) {
            self.fetch_line = Some(Instant::now());
            say(&format!("{} of {}", HumanBytes(done), HumanBytes(total)));
        }
    }
}

/// Writes an event into the run's log.
fn record(event: &Event) {
    let fields = format!("{event:?}");
    let kind = fields.split(' ').next().unwrap_or_default();
    match (event, describe(event)) {
        (Event::Warning { message }, _) => tracing::warn!(event = kind, "{message}"),
        (Event::QuestionsDone { pass, done, total }, _) => {
            let (done, total) = (*done as u64, *total as u64);
            if done == total {
                tracing::info!(event = kind, done, total, "{pass}");
            } else {
                tracing::debug!(event = kind, done, total, "{pass}");
            }
        }
        (_, Some((_, text))) => tracing::info!(event = kind, "{text}"),
        (_, None) => tracing::debug!(event = kind, "{fields}"),
    }
}

/// An event in words, and from which verbosity on they are shown.
fn describe(event: &Event) -> Option<(Verbosity, String)> {
    let seconds = |elapsed: &Duration| format!("{:.1} s", elapsed.as_secs_f64());
    let of = |label: &str| if label.is_empty() { String::new() } else { format!(" {label}") };
    let described = match event {
        Event::Warning { message } => (Verbosity::Quiet, format!("warning: {message}")),
        Event::StageReused { stage, label } => {
            (Verbosity::Normal, format!("{stage:<9}{}: re-used", of(label)))
        }
        Event::StageStarted { stage, label } => {
            (Verbosity::Verbose, format!("{stage:<9}{}: started", of(label)))
        }
        Event::StageFinished { stage, label, elapsed } => {
            (Verbosity::Normal, format!("{stage:<9}{}: done in {}", of(label), seconds(elapsed)))
        }
        Event::Planned { label, words } => (Verbosity::Normal, format!("{label}: {words}")),
        Event::EngineStarting { label, log } => {
            (Verbosity::Verbose, format!("starting the {label}, log {log}"))
        }
        Event::EngineReady { label, elapsed } => {
            (Verbosity::Normal, format!("{label}: ready after {}", seconds(elapsed)))
        }
        Event::ServerStarting { server, log } => {
            (Verbosity::Verbose, format!("starting the {server}, log {log}"))
        }
        Event::ServerHealthy { server, elapsed } => {
            (Verbosity::Normal, format!("{server}: healthy after {}", seconds(elapsed)))
        }
        Event::WaitingForLock { what, holder } => {
            let holder = holder.as_deref().unwrap_or("another process");
            (Verbosity::Quiet, format!("waiting for {what}, held by {holder}"))
        }
        Event::EnvironmentStarted { folder, packages, log } => (
            Verbosity::Normal,
            format!("making the Python environment {folder} ({packages} packages, log {log}); once only"),
        ),
        Event::EnvironmentFinished { elapsed, .. } => {
            (Verbosity::Normal, format!("environment: ready after {}", seconds(elapsed)))
        }
        Event::EnvironmentReused { folder } => {
            (Verbosity::Verbose, format!("environment: re-used, {folder}"))
        }
        Event::BisectStep { words } => (Verbosity::Normal, format!("bisect: {words}")),
        Event::BuildReused { what } => (Verbosity::Normal, format!("{what}: re-used")),
        Event::BuildStarted { what, log } => (Verbosity::Verbose, format!("building {what}, log {log}")),
        Event::BuildFinished { what, elapsed } => {
            (Verbosity::Normal, format!("{what}: built in {}", seconds(elapsed)))
        }
        Event::SuiteNeeds { lines } => (Verbosity::Normal, lines.join("\n")),
        Event::FetchStarted { files, bytes } => {
            (Verbosity::Normal, format!("fetching {}, {}", count_files(*files), HumanBytes(*bytes)))
        }
        Event::FetchFinished { files, bytes, elapsed } => (
            Verbosity::Normal,
            format!(
                "fetched and verified {}, {}, in {}",
                count_files(*files),
                HumanBytes(*bytes),
                seconds(elapsed)
            ),
        ),
        Event::FileReused { file, from } => (Verbosity::Normal, format!("{file}: re-used, {from}")),
        Event::ConversionStarted { .. } => return None,
        Event::ConversionFinished { model, elapsed } => {
            (Verbosity::Normal, format!("{model}: converted and verified in {}", seconds(elapsed)))
        }
        Event::EnvironmentStep { .. } | Event::QuestionsDone { .. } | Event::FetchProgress { .. } => {
            return None;
        }
    };
    Some(described)
}

fn count_files(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

/// Whoever closed standard error does not want to be told.
fn say(text: &str) {
    writeln!(std::io::stderr().lock(), "{}", printable(text)).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_that_take_turns_say_how_far_they_are() {
        let mut passes = Passes::default();
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(passes.line("store", 0, 40, begin), None);
        assert_eq!(passes.line("load", 0, 40, begin), None);
        assert_eq!(passes.line("store", 10, 40, after(6)), None);
        assert_eq!(passes.line("load", 10, 40, after(9)), None);
        assert_eq!(passes.line("store", 11, 40, after(12)).unwrap(), "store: 11 of 40 questions, 12 s");
        assert_eq!(passes.line("load", 12, 40, after(15)).unwrap(), "load: 12 of 40 questions, 15 s");
        assert_eq!(passes.line("store", 20, 40, after(16)), None);
        assert_eq!(passes.line("load", 40, 40, after(17)).unwrap(), "load: 40 of 40 questions, 17 s");
    }
}
