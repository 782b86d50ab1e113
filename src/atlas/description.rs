//! What an atlas is made of, as data. Main type: [`Description`].

use std::io;
use std::num::NonZeroUsize;

use camino::{Utf8Path, Utf8PathBuf};
use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

use super::version::is_pre_release;
use crate::files::{MOST_TEXT, read_text};
use crate::machine::DeviceKind;
use crate::model::Route;

static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/data/atlas");

/// Releases, what is asked of each pair, and how many pairs there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Its name, and that of its files.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// What computes.
    pub device: DeviceKind,
    /// The suite that each cell runs: an embedded one's name, or a path.
    pub suite: String,
    /// How many questions of each subject are asked at most; the suite's number where it is not said.
    #[serde(default)]
    pub questions: Option<NonZeroUsize>,
    /// The routes that each pair is tested on.
    pub routes: Vec<Route>,
    /// Releases of LMCache, oldest first.
    pub lmcache: Vec<String>,
    /// Releases of vLLM, oldest first, by the torch that they were compiled for.
    pub vllm: Vec<VllmReleases>,
    /// Which cells there are.
    #[serde(default)]
    pub bounds: Bounds,
}

/// Releases of vLLM that were compiled for one torch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VllmReleases {
    /// The release of torch.
    pub torch: String,
    /// Releases of vLLM, oldest first.
    pub versions: Vec<String>,
}

/// Which cells an atlas has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// So many of the newest releases of each, and what was pre-released since, are tested all with all, with every model and
    /// route.
    pub newest: usize,
    /// Whether the newest release of each, and what was pre-released since, is tested with every release of the other, with
    /// every model and route: what who upgrades one of them alone gets.
    pub neighbours: bool,
    /// What is tested of all other pairs.
    pub rest: Rest,
}

/// What is tested of pairs that no other bound names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rest {
    /// Every model on every route.
    All,
    /// One model on one route, so chosen that each release meets each model and each route as soon as can be.
    Pairwise,
    /// Nothing.
    None,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { newest: 3, neighbours: true, rest: Rest::Pairwise }
    }
}

/// Why a description cannot be used; completes "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// It cannot be read.
    #[error("read the atlas {path}")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not of the format.
    #[error("understand the atlas {path}: {problem}")]
    Format {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong, with its place.
        problem: String,
    },
}

impl DescriptionError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } => {
                format!(
                    "name a TOML file, or one of {}; docs/atlas.md tells what stands in it",
                    names().join(", ")
                )
            }
            Self::Format { .. } => {
                "docs/atlas.md tells what stands in it, and data/atlas holds those that work".to_owned()
            }
        }
    }
}

/// Names of the embedded descriptions.
fn names() -> Vec<&'static str> {
    EMBEDDED.files().filter_map(|file| file.path().file_stem()?.to_str()).collect()
}

impl Description {
    /// Reads an embedded description by its name, or a file.
    ///
    /// # Errors
    /// When it cannot be read, is not of the format, or names a release twice or none.
    pub fn load(name: &str) -> Result<Self, DescriptionError> {
        let path = Utf8Path::new(name);
        let embedded = EMBEDDED.get_file(format!("{name}.toml")).and_then(|file| file.contents_utf8());
        let text = match embedded {
            Some(text) => text.to_owned(),
            None => read_text(path, MOST_TEXT)
                .map_err(|source| DescriptionError::Read { path: path.to_owned(), source })?,
        };
        let wrong = |problem: String| DescriptionError::Format { path: path.to_owned(), problem };
        let description: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        description.check().map_err(wrong)?;
        Ok(description)
    }

    fn check(&self) -> Result<(), String> {
        for (what, versions) in [
            ("lmcache", self.lmcache.iter().collect()),
            ("vllm", self.vllm().map(|(version, _)| version).collect::<Vec<_>>()),
        ] {
            for (place, version) in versions.iter().enumerate() {
                let word = |letter: char| letter.is_ascii_alphanumeric() || ".+-!".contains(letter);
                if version.is_empty() || !version.chars().all(word) {
                    return Err(format!("`{what}` names {version:?}, which is no version"));
                }
                if versions[..place].contains(version) {
                    return Err(format!("`{what}` names {version} twice"));
                }
            }
            if versions.iter().all(|version| is_pre_release(version)) {
                return Err(format!("`{what}` names no release"));
            }
        }
        if self.routes.is_empty() {
            return Err("`routes` is empty".to_owned());
        }
        Ok(())
    }

    /// Releases of vLLM with the torch that each was compiled for, oldest first.
    #[must_use]
    pub fn vllm(&self) -> impl DoubleEndedIterator<Item = (&String, &str)> {
        self.vllm
            .iter()
            .flat_map(|releases| releases.versions.iter().map(|version| (version, releases.torch.as_str())))
    }

    /// Versions of LMCache that are released, newest first.
    pub fn released_lmcache(&self) -> impl Iterator<Item = &String> {
        self.lmcache.iter().rev().filter(|version| !is_pre_release(version))
    }

    /// The torch that a vLLM was compiled for.
    #[must_use]
    pub fn torch_of(&self, vllm: &str) -> Option<&str> {
        self.vllm().find(|(version, _)| *version == vllm).map(|(_, torch)| torch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_can_be_loaded() {
        for name in names() {
            let description = Description::load(name).unwrap();
            assert_eq!(description.name, name);
        }
        assert!(names().contains(&"cpu"));
    }

    #[test]
    fn a_release_that_is_named_twice_or_is_none_is_refused_with_its_name() {
        let mut description = Description::load("cpu").unwrap();
        description.lmcache.push(description.lmcache[0].clone());
        let twice = format!("`lmcache` names {} twice", description.lmcache[0]);
        assert_eq!(description.check(), Err(twice));
        description.lmcache = vec!["0.5.6 ; rm".to_owned()];
        assert_eq!(
            description.check(),
            Err("`lmcache` names \"0.5.6 ; rm\", which is no version".to_owned())
        );
        for none in [vec![], vec!["0.5.7rc2".to_owned()]] {
            description.lmcache = none;
            assert_eq!(description.check(), Err("`lmcache` names no release".to_owned()));
        }
        let error = Description::load("no-such-atlas").unwrap_err();
        assert!(error.hint().contains("cpu"), "{}", error.hint());
    }
}
