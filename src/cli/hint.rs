//! How an error reads: what failed, why, and what to do next.

use std::error::Error;
use std::io::{self, Write};

use super::limits::hint_of_limit;
use super::output::OutputError;
use super::report::ReadReportError;
use crate::assets::AssetError;
use crate::atlas::{ChartError, DescriptionError};
use crate::bisect::LogError;
use crate::depot::DepotError;
use crate::engine::environment::{BuildError, EnvironmentError};
use crate::fetch::FetchError;
use crate::pipeline::MergeError;
use crate::progress::printable;
use crate::report::JsonlError;
use crate::stage::StageError;
use crate::store::StoreError;
use crate::suite::SuiteError;
use crate::thread::NoThread;

/// What to do next, of an error of one type; none for any other error.
type HintOf = fn(&(dyn Error + 'static)) -> Option<String>;

/// Every type of error that knows what to do next.
const HINTS: [HintOf; 16] = [
    |cause| cause.downcast_ref().and_then(StageError::hint),
    |cause| cause.downcast_ref().and_then(AssetError::hint),
    |cause| cause.downcast_ref().and_then(SuiteError::hint),
    |cause| cause.downcast_ref().and_then(StoreError::hint),
    |cause| cause.downcast_ref().and_then(FetchError::hint),
    |cause| cause.downcast_ref().and_then(BuildError::hint),
    |cause| cause.downcast_ref().and_then(EnvironmentError::hint),
    |cause| cause.downcast_ref().and_then(JsonlError::hint),
    |cause| cause.downcast_ref().map(DepotError::hint),
    |cause| cause.downcast_ref().map(MergeError::hint),
    |cause| cause.downcast_ref().map(NoThread::hint),
    |cause| cause.downcast_ref().map(OutputError::hint),
    |cause| cause.downcast_ref().map(LogError::hint),
    |cause| cause.downcast_ref().map(ReadReportError::hint),
    |cause| cause.downcast_ref().map(DescriptionError::hint),
    |cause| cause.downcast_ref().map(ChartError::hint),
];

/// For an error of the system that nothing else is known of.
const OF_SYSTEM: &str =
    "see to it that what it names is there and that this user may use it, and run the same command again";

/// Says on standard error what failed, and what to do next.
pub(super) fn report_error(error: &anyhow::Error) {
    if let Some(Several(errors)) = error.downcast_ref() {
        for (number, error) in errors.iter().enumerate() {
            if number > 0 {
                writeln!(io::stderr()).ok();
            }
            report_error(error);
        }
        return;
    }
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let causes = causes.join(": ");
    let hint = hint_of_limit(&causes).or_else(|| hint(error));
    let hint = hint.map_or_else(String::new, |hint| format!("\n\nhint: {hint}"));
    let message = format!("failed to {causes}{hint}");
    tracing::error!("{message}");
    writeln!(io::stderr(), "error: {}", printable(&message)).ok();
}

/// Several things that failed, each told by itself.
#[derive(Debug, thiserror::Error)]
#[error("do {} things", .0.len())]
struct Several(Vec<anyhow::Error>);

/// All values; or all errors as one, where there are several.
///
/// # Errors
/// When there is one.
pub(super) fn all<T>(results: impl IntoIterator<Item = anyhow::Result<T>>) -> anyhow::Result<Vec<T>> {
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) => errors.push(error),
        }
    }
    if errors.len() > 1 { Err(Several(errors).into()) } else { errors.pop().map_or(Ok(values), Err) }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    let own = error.chain().find_map(|cause| HINTS.iter().find_map(|hint_of| hint_of(cause)));
    let of_system =
        || error.chain().any(<dyn std::error::Error>::is::<io::Error>).then(|| OF_SYSTEM.to_owned());
    own.or_else(of_system)
}
