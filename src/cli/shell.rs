//! Completions and manual pages, made from the command line's own description. Subcommands rather than a build script:
//! a package calls the binary that it has just built, and whoever has only the binary can do the same.

use std::process::ExitCode;

use camino::Utf8Path;
use clap::{Command, CommandFactory};
use fs_err as fs;

use super::arguments::Cli;
use super::output::{OutputError, print};

pub(super) fn print_completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut visible_commands(), "kv-correctness", &mut text);
    // For bash, clap spells the state behind a subcommand in two ways where a program's name holds a hyphen.
    print(&String::from_utf8(text)?.replace("kv__subcmd__correctness", "kv__correctness"))?;
    Ok(ExitCode::SUCCESS)
}

/// The command line without what only the program itself calls, which clap would complete all the same.
fn visible_commands() -> Command {
    let all = Cli::command();
    let visible = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("kv-correctness").version(env!("CARGO_PKG_VERSION")).subcommands(visible)
}

pub(super) fn write_manual_pages(folder: &Utf8Path) -> anyhow::Result<ExitCode> {
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        clap_mangen::generate_to(Cli::command(), folder)
    };
    write().map_err(OutputError::at(folder))?;
    Ok(ExitCode::SUCCESS)
}
