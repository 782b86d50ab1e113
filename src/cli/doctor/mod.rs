//! Says what a machine has, which suites can run on it over which routes, and which command mends what is missing.

mod compilers;
mod line;
mod machine;
mod suites;

use std::fmt::Write;
use std::process::ExitCode;

use camino::Utf8PathBuf;

use self::line::Line;
use self::machine::describe_machine;
use self::suites::{Place, Readiness, examine_suite, extension_problem};
use super::inspect::Depth;
use super::output::print;
use super::prepare::{cache_folder, choose_device, load_suite, redis_address, stack};
use super::run_arguments::DeviceChoice;
use crate::engine::environment::EnvironmentRequest;
use crate::exit_code::ERROR;
use crate::suite::Suite;

pub(super) fn examine(
    suite: Option<&str>,
    choice: DeviceChoice,
    cache: Option<Utf8PathBuf>,
) -> anyhow::Result<ExitCode> {
    let device = choose_device(choice)?;
    let request = EnvironmentRequest::from_variables(stack(&device), cache_folder(cache)?);
    let redis = redis_address(std::env::var("KV_CORRECTNESS_REDIS_URL").ok().as_deref())?;
    let extension = extension_problem(&request);
    let place = Place {
        device: &device,
        choice,
        request: &request,
        redis: redis.as_ref(),
        extension: extension.as_deref(),
    };
    let mut text = String::new();
    for (title, lines) in describe_machine(&device, &request) {
        writeln!(text, "{title}")?;
        for Line { name, value } in lines {
            writeln!(text, "  {name:<14} {value}")?;
        }
        writeln!(text)?;
    }
    // All suites together would make many prompts.
    let depth = if suite.is_some() { Depth::Prompts } else { Depth::Files };
    let names = suite.map_or_else(Suite::names, |name| vec![name.to_owned()]);
    let mut best = Readiness::Never;
    for name in names {
        let examined = examine_suite(&name, &load_suite(&name)?, place, depth);
        writeln!(text, "suite {name} on {device}")?;
        for line in &examined.lines {
            writeln!(text, "  {line}")?;
        }
        writeln!(text)?;
        best = best.max(examined.readiness);
    }
    print(&text)?;
    Ok(if best == Readiness::Now { ExitCode::SUCCESS } else { ExitCode::from(ERROR) })
}
