//! The command line: what can be asked for, and where errors become exit codes.
//!
//! Standard output carries data (the summary, or the report with `--json`), standard error everything else.

mod arguments;
mod atlas;
mod atlas_arguments;
mod atlas_environments;
mod bisect;
mod depot;
mod doctor;
mod explain;
mod fetch;
mod fleet_arguments;
mod help;
mod hint;
mod inspect;
mod limits;
mod log;
mod merge;
mod minimise;
mod output;
mod plan;
mod prepare;
mod publish;
mod report;
mod reproduce;
mod run;
mod run_arguments;
mod shell;
mod stack;
mod store;
mod suite;
mod untestable;
mod write_report;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::arguments::{Cli, Command, Document, SuiteCommand};
use self::atlas::tend_atlas;
use self::atlas_arguments::AtlasCommand;
use self::bisect::{bisect, run_step};
use self::depot::tend_depot;
use self::doctor::examine;
use self::explain::explain_stages;
use self::fetch::fetch_assets;
use self::hint::report_error;
use self::limits::meet_limits;
use self::merge::merge_parts;
use self::output::print;
use self::plan::print_plan;
use self::prepare::{cache_folder, choose_device, stack};
use self::report::write_report;
use self::reproduce::reproduce;
use self::run::{export_stage, run_suite};
use self::run_arguments::DeviceChoice;
use self::shell::{print_completions, write_manual_pages};
use self::store::{clean_store, list_store};
use self::suite::{check_suite, show_suite};
use crate::atlas::Chart;
use crate::engine::environment::{EnvironmentRequest, Stack};
use crate::engine::{end_all, kill_all};
use crate::exit_code::ERROR;
use crate::progress::{self, Progress, Verbosity};
use crate::report::{Report, describe_catalogue, json_schema};
use crate::thread::on_thread;

const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// Runs the program with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log::listen();
    let done = meet_limits().and_then(|()| {
        if let Some(folder) = out_folder(&cli.command) {
            log::begin(folder);
        }
        dispatch(cli.command)
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            progress::close();
            report_error(&error);
            ExitCode::from(ERROR)
        }
    }
}

/// Where a command that runs stages writes to.
fn out_folder(command: &Command) -> Option<&Utf8Path> {
    match command {
        Command::Run { arguments, .. } | Command::Stage { arguments, .. } => Some(&arguments.out),
        Command::Bisect(arguments) => Some(&arguments.run.out),
        Command::Reproduce(arguments) => Some(&arguments.out),
        Command::Merge { arguments, .. } => Some(&arguments.out),
        Command::Atlas(AtlasCommand::Run(arguments)) => Some(&arguments.out),
        _ => None,
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { arguments, .. } if arguments.as_bisect_step => until_interrupted(run_step(&arguments)),
        Command::Run { arguments, publish } => until_interrupted(run_suite(&arguments, &publish)),
        Command::Bisect(arguments) => until_interrupted(bisect(&arguments)),
        Command::Reproduce(arguments) => until_interrupted(reproduce(&arguments)),
        Command::Plan(arguments) => until_interrupted(print_plan(&arguments)),
        Command::Report(arguments) => write_report(&arguments),
        Command::Merge { arguments, publish } => until_interrupted(merge_parts(&arguments, &publish)),
        Command::Stage { name, arguments } => until_interrupted(export_stage(name, &arguments)),
        Command::Explain { stage, arguments } => until_interrupted(explain_stages(stage, &arguments)),
        Command::Suite(SuiteCommand::Show { name }) => show_suite(&name),
        Command::Suite(SuiteCommand::Check { name, cache }) => check_suite(&name, cache),
        Command::Fetch(arguments) => {
            until_interrupted(async { on_thread(move || fetch_assets(&arguments)).await? })
        }
        Command::Faults => {
            print(&describe_catalogue())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Env { device, cache } => {
            until_interrupted(async { on_thread(move || make_environment(device, cache)).await? })
        }
        Command::Doctor { suite, device, cache } => examine(suite.as_deref(), device, cache),
        Command::Atlas(command) => until_interrupted(tend_atlas(command)),
        Command::Depot(command) => until_interrupted(tend_depot(command)),
        Command::Ls { cache } => list_store(cache),
        Command::Gc { unused_days, dry_run, cache } => clean_store(unused_days, dry_run, cache),
        Command::Schema { of } => {
            print(&match of {
                Document::Report => json_schema::<Report>(),
                Document::Atlas => json_schema::<Chart>(),
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => print_completions(shell),
        Command::Man { folder } => write_manual_pages(&folder),
        Command::InternalGuard { driver, fork_server, command } => {
            crate::engine::guard(driver, fork_server.as_deref(), &command)
        }
    }
}

/// An environment needs no device to be made, so it can be made for a GPU on a machine without one.
fn make_environment(device: DeviceChoice, cache: Option<Utf8PathBuf>) -> anyhow::Result<ExitCode> {
    let stack = match device {
        DeviceChoice::Cuda => Stack::Cuda,
        DeviceChoice::Auto | DeviceChoice::Cpu => stack(&choose_device(device)?),
    };
    let events = Progress::events(Verbosity::Normal);
    let request = EnvironmentRequest::from_variables(stack, cache_folder(cache)?);
    print(&format!("{}\n", request.provide(&events)?.python()))?;
    Ok(ExitCode::SUCCESS)
}

/// Drives the work on this thread alone, which its processes' guards watch. A first signal tells them all to end, and drops the
/// work; a second one kills them and ends this process at once.
fn until_interrupted(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("listen to signals")?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("listen to signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen to signals")?;
        let mut work = Box::pin(work);
        let code = tokio::select! {
            finished = &mut work => return finished,
            _ = interrupt.recv() => INTERRUPTED,
            _ = terminate.recv() => TERMINATED,
        };
        progress::close();
        say_interrupted("interrupted: ending what still runs, or at once if told so again");
        let again = move || end_at_once_when_told_again(interrupt, terminate, code);
        // Where the system refuses this thread, what was asked to end is waited for.
        std::thread::Builder::new().spawn(again).ok();
        end_all().await;
        drop(work);
        say_interrupted("what is finished is kept, and the same command goes on from there");
        Ok(ExitCode::from(code))
    });
    runtime.shutdown_background(); // a thread may still wait for another run's lock
    code
}

/// Waits for a second signal, whatever the first one's work is held up by.
#[expect(clippy::exit, reason = "what is held up on another thread cannot be waited for")]
fn end_at_once_when_told_again(mut interrupt: Signal, mut terminate: Signal, code: u8) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    kill_all();
    std::process::exit(i32::from(code));
}

fn say_interrupted(message: &str) {
    tracing::warn!("{message}");
    // Where a terminal shows `^C`, the message takes its place.
    let start = if std::io::stderr().is_terminal() { "\r" } else { "" };
    writeln!(std::io::stderr(), "{start}{message}").ok();
}
