//! Packages beside an environment, which stays as it is. Main function: [`install_beside`].

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::installer::{Installer, clear};
use super::make::{PATIENCE, absolute};
use super::{Environment, EnvironmentError};
use crate::digest::digest_bytes;
use crate::event::Events;
use crate::lock::FileLock;

/// Installs requirements with hashes, and nothing that they depend on, into a folder for `PYTHONPATH`; returns it. Done
/// once for each text of the requirements.
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
    let tools = absolute(cache).join("tools");
    let folder = tools.join(format!("{name}-{}", digest_bytes(requirements.as_bytes()).short()));
    let failed = |source| EnvironmentError::Io { folder: folder.clone(), source };
    fs::create_dir_all(&tools).map_err(failed)?;
    let lock = FileLock::take(&folder.with_extension("lock"), folder.as_ref(), PATIENCE, events)?;
    let marker = folder.join("complete");
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
