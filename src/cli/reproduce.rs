use std::process::ExitCode;
use super::arguments::ReproduceArguments;
pub(super) async fn reproduce(_arguments: &ReproduceArguments) -> anyhow::Result<ExitCode> { anyhow::bail!("x") }
