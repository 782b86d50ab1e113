//! Shows events: bars on a terminal, plain lines elsewhere, nothing when quiet. The only consumer of [`Event`]s.
//!
//! Everything goes to standard error. Main type: [`Progress`].

mod forecast;
mod terminal;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressState};

use self::forecast::{Forecast, Outlook};
use self::terminal::{clear_bar, make_bar, say_above, with_bar};
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
    /// Shared with the bar, which tells the time that is left as it passes.
    forecast: Arc<Mutex<Forecast>>,
    /// What the bar shows, if there is one.
    shown: Option<Shown>,
    passes: Passes,
    /// When a fetch was last told of in a line.
    fetch_line: Option<Instant>,
}

/// What a bar is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The whole run, and what it is at.
    Run,
    /// Bytes that are fetched.
    Fetch,
}

/// The passes that are under way; a store and a load pass take turns.
#[derive(Debug, Default)]
struct Passes {
    begun: BTreeMap<String, PassProgress>,
}

#[derive(Debug)]
struct PassProgress {
    started: Instant,
    last_line: Instant,
}

impl Passes {
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
            forecast: Arc::new(Mutex::new(Forecast::new(Instant::now()))),
            shown: None,
            passes: Passes::default(),
            fetch_line: None,
        }));
        Events::new(move |event| {
            record(&event);
            progress.lock().unwrap_or_else(PoisonError::into_inner).show(&event);
        })
    }

    fn show(&mut self, event: &Event) {
        let outlook = {
            let (mut forecast, now) = (lock(&self.forecast), Instant::now());
            forecast.note(event, now);
            forecast.outlook(now)
        };
        let shows = self.verbosity > Verbosity::Quiet;
        if let Event::FetchProgress { done, total } = event {
            if shows {
                self.show_fetch(*done, *total);
            }
            return;
        }
        if let Some((least, text)) = describe(event)
            && self.verbosity >= least
        {
            say(&text);
        }
        if let Event::QuestionsDone { pass, done, total, .. } = event
            && let Some(line) = self.passes.line(pass, *done, *total, Instant::now())
            && shows
            && !self.terminal
        {
            let run = outlook.map_or_else(String::new, |outlook| format!("; the run: {}", words(outlook)));
            say(&format!("{line}{run}"));
        }
        if shows && self.terminal {
            self.show_run(event, outlook);
        }
    }

    /// Keeps a bar on the terminal as long as there is something to wait for.
    fn show_run(&mut self, event: &Event, outlook: Option<Outlook>) {
        let at = match event {
            Event::EngineStarting { label, .. } => format!("starting the {label}"),
            Event::EngineReady { label, .. } => format!("{label}: ready"),
            Event::ServerStarting { server, .. } => format!("starting the {server}"),
            Event::EnvironmentStarted { .. } => "making the Python environment".to_owned(),
            Event::EnvironmentStep { text } => text.clone(),
            Event::ConversionStarted { model } => format!("converting {model}"),
            Event::BuildStarted { what, .. } => format!("building {what}"),
            Event::QuestionsDone { pass, done, total, .. } => format!("{pass}: {done} of {total} questions"),
            _ if outlook.is_none() => {
                clear_bar();
                self.shown = None;
                return;
            }
            _ => String::new(),
        };
        if self.shown != Some(Shown::Run) {
            clear_bar();
            self.shown = Some(Shown::Run);
        }
        let forecast = &self.forecast;
        with_bar(
            || make_run_bar(forecast),
            |bar| {
                bar.set_position(outlook.map_or(0, |outlook| thousandths(outlook.done)));
                if !at.is_empty() {
                    bar.set_message(printable(&at).into_owned());
                }
            },
        );
    }

    fn show_fetch(&mut self, done: u64, total: u64) {
        if self.terminal {
            if self.shown != Some(Shown::Fetch) {
                clear_bar();
                self.shown = Some(Shown::Fetch);
            }
            let make =
                || make_bar(Some(total), "{wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
            with_bar(make, |bar| bar.set_position(done));
        } else if self.fetch_line.is_none_or(|last| last.elapsed() > LINE_INTERVAL) {
            self.fetch_line = Some(Instant::now());
            say(&format!("{} of {}", HumanBytes(done), HumanBytes(total)));
        }
    }
}

fn lock(forecast: &Mutex<Forecast>) -> MutexGuard<'_, Forecast> {
    forecast.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bar of the whole run, which goes on telling the time while nothing happens.
fn make_run_bar(forecast: &Arc<Mutex<Forecast>>) -> ProgressBar {
    let forecast = Arc::clone(forecast);
    let run = move |_: &ProgressState, text: &mut dyn fmt::Write| {
        if let Some(outlook) = lock(&forecast).outlook(Instant::now()) {
            text.write_str(&words(outlook)).ok();
        }
    };
    let bar = make_bar(Some(thousandths(1.0)), "{spinner} {bar:20} {run}  {wide_msg}");
    bar.set_style(bar.style().with_key("run", run));
    // The bar's own thread must not be refused.
    if std::thread::Builder::new().spawn(|| ()).is_ok() {
        bar.enable_steady_tick(Duration::from_millis(120));
    }
    bar
}

fn thousandths(share: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
    let thousandths = (1000.0 * share.clamp(0.0, 1.0)) as u64;
    thousandths
}

/// How far a run is: `42 %, about 1 min 50 s left`.
fn words(outlook: Outlook) -> String {
    let seconds = outlook.left.as_secs();
    let left = match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60 / 10 * 10),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    };
    format!("{} %, about {left} left", thousandths(outlook.done) / 10)
}

/// Writes an event into the run's log.
fn record(event: &Event) {
    let fields = format!("{event:?}");
    let kind = fields.split(' ').next().unwrap_or_default();
    match (event, describe(event)) {
        (Event::Warning { message }, _) => tracing::warn!(event = kind, "{message}"),
        (Event::QuestionsDone { pass, done, total, .. }, _) => {
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
        Event::StageBrought { stage, label } => {
            (Verbosity::Normal, format!("{stage:<9}{}: re-used from the depot", of(label)))
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
        Event::EngineReady { label, elapsed, .. } => {
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
        Event::AtlasStep { words } => (Verbosity::Normal, format!("atlas: {words}")),
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
        Event::ConversionFinished { model, elapsed } => {
            (Verbosity::Normal, format!("{model}: converted and verified in {}", seconds(elapsed)))
        }
        Event::EnvironmentStep { .. }
        | Event::QuestionsDone { .. }
        | Event::FetchProgress { .. }
        | Event::WorkPlanned { .. }
        | Event::StageAbandoned { .. }
        | Event::ConversionStarted { .. } => return None,
    };
    Some(described)
}

fn count_files(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

/// Whoever closed standard error does not want to be told.
fn say(text: &str) {
    say_above(|| {
        writeln!(std::io::stderr().lock(), "{}", printable(text)).ok();
    });
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
