//! Packages beside an environment, which stays as it is. Main function: [`install_beside`].

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::installer::{Installer, clear};
use super::make::{PATIENCE, absolute};
use super::{Environment, EnvironmentError};
use crate::cache::Bucket;
use crate::digest::digest_json;
use crate::event::Events;
use crate::lock::FileLock;

/// Written last, so a folder without it is half-made.
pub(super) const MARKER: &str = "complete";

/// The folder's name: wheels of one release differ between Python's versions and machines.
fn folder_name(name: &str, requirements: &str, python: &str, platform: &str) -> String {
    let id = digest_json(&serde_json::json!({
        "requirements": requirements, "python": python, "platform": platform,
    }));
    format!("{name}-{}", id.short())
}

/// Installs requirements with hashes, and nothing that they depend on, into a folder for `PYTHONPATH`; returns it. Done
/// once for each text of the requirements and each version of Python.
///
/// # Errors
/// When there is no uv to be had, the package index is not reached, or a package has another hash.
pub fn install_beside(
    environment: &Environment,
    name: &str,
    requirements: &str,
    cache: &Utf8Path,
    events: &Events,
) -> Result<Utf8PathBuf, EnvironmentError> {
    let tools = Bucket::Tools.folder(&absolute(cache));
    let identity = environment.identity_of_baseline();
    let folder = tools.join(folder_name(name, requirements, &identity.python, &identity.platform));
    let failed = |source| EnvironmentError::Io { folder: folder.clone(), source };
    fs::create_dir_all(&tools).map_err(failed)?;
    let lock = FileLock::take(&folder.with_extension("lock"), folder.as_ref(), PATIENCE, events)?;
    let marker = folder.join(MARKER);
    if marker.exists() {
        return Ok(folder);
    }
    clear(&folder).map_err(failed)?;
    let log = folder.with_extension("log");
    fs::write(&log, "").map_err(failed)?;
    let listed = folder.with_extension("txt");
    fs::write(&listed, requirements).map_err(failed)?;
    let installer = Installer { log: &log, lock: &lock, events };
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let python = environment.python();
    let uv = installer.find_uv(&search_path, &tools, &python, PATIENCE)?;
    let mut command = Command::new(uv);
    command.args(["pip", "install", "--require-hashes", "--no-deps", "--no-build"]);
    command.args([
        "--target",
        folder.as_str(),
        "--python",
        python.as_str(),
        "--requirements",
        listed.as_str(),
    ]);
    command
        .current_dir(&tools)
        .env("NO_COLOR", "1")
        .env("UV_NO_PROGRESS", "1")
        .env("UV_PYTHON_DOWNLOADS", "never");
    installer.step("install packages beside the environment", &mut command)?;
    fs::write(&marker, "").map_err(failed)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_python_or_machine_gets_packages_of_its_own() {
        let name = |requirements, python, platform| folder_name("p2p", requirements, python, platform);
        let first = name("nixl==1", "3.11.7", "linux-x86_64");
        assert_eq!(first, name("nixl==1", "3.11.7", "linux-x86_64"));
        assert!(first.starts_with("p2p-"));
        for other in [
            name("nixl==2", "3.11.7", "linux-x86_64"),
            name("nixl==1", "3.12.1", "linux-x86_64"),
            name("nixl==1", "3.11.7", "linux-aarch64"),
        ] {
            assert_ne!(other, first);
        }
    }
}
