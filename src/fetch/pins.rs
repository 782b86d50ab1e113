//! What is pinned: `data/models.lock.toml` and `data/archive.lock.toml`. Main types: [`ModelPin`], [`ArchivePin`].

use std::collections::BTreeMap;
use std::sync::LazyLock;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use super::Verified;
use super::verified::fetched;
use crate::digest::{Digest, digest_json};
use crate::event::Events;

/// The hub, unless `HF_ENDPOINT` names a mirror.
pub(super) const HUB: &str = "https://huggingface.co";

static MODELS: LazyLock<Vec<ModelPin>> = LazyLock::new(|| {
    let lock: ModelLock = toml::from_str(include_str!("../../data/models.lock.toml"))
        .expect("the lock of models was read by a test");
    lock.models
});
static ARCHIVES: LazyLock<Vec<ArchivePin>> = LazyLock::new(|| {
    let lock: ArchiveLock = toml::from_str(include_str!("../../data/archive.lock.toml"))
        .expect("the lock of archives was read by a test");
    lock.archives
});

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelLock {
    #[serde(rename = "schema")]
    _schema: u32,
    models: Vec<ModelPin>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchiveLock {
    #[serde(rename = "schema")]
    _schema: u32,
    archives: Vec<ArchivePin>,
}

/// A model whose files are known by digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPin {
    /// What suites call it: on the hub, organisation and name.
    pub name: String,
    /// The licence's name.
    pub licence: String,
    /// Where the licence is read and, for a gated model, accepted.
    pub licence_page: String,
    /// Where its files come from.
    pub origin: Origin,
    /// The files of its folder.
    pub files: Vec<FilePin>,
}

/// Where a model's files come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Origin {
    /// The Hugging Face hub.
    Hub {
        /// The commit.
        revision: String,
        /// Whether its licence must be accepted, and so a token sent.
        gated: bool,
    },
    /// A GGUF file in Python packages, converted here.
    Packages(GgufPin),
}

/// A GGUF file that lies in Python packages, whole or in parts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GgufPin {
    /// Which of the lists of packages with hashes under `nix/stacks` names them.
    pub list: PackageList,
    /// The parts in their order, each a file of an installed package.
    pub parts: Vec<Utf8PathBuf>,
    /// The whole file's size in bytes.
    pub size: u64,
    /// The whole file's digest.
    pub sha256: Digest,
}

impl GgufPin {
    /// Bytes of disk that it takes: the packages, what is unpacked from them and, of a file in parts, the whole.
    #[must_use]
    pub fn room(&self) -> u64 {
        (if self.parts.len() > 1 { 3 } else { 2 }) * self.size
    }
}

/// A list of packages that carry a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackageList {
    /// `nix/stacks/smollm2.txt`.
    Smollm2,
    /// `nix/stacks/qwen.txt`.
    Qwen,
}

impl PackageList {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Smollm2 => "smollm2",
            Self::Qwen => "qwen",
        }
    }

    /// The packages with their hashes, as pip reads them.
    #[must_use]
    pub fn requirements(self) -> &'static str {
        match self {
            Self::Smollm2 => include_str!("../../nix/stacks/smollm2.txt"),
            Self::Qwen => include_str!("../../nix/stacks/qwen.txt"),
        }
    }
}

/// A file known by digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePin {
    /// Its name in the folder.
    pub name: String,
    /// Digest of its content.
    pub sha256: Digest,
    /// Its size in bytes, where it is known.
    pub size: Option<u64>,
}

/// A dataset's archive, known by digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivePin {
    /// What suites call it.
    pub name: String,
    /// Its file name.
    pub file: String,
    /// The licence's name.
    pub licence: String,
    /// Where the licence is read.
    pub licence_page: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: Digest,
    /// Where it can be had, best first.
    pub addresses: Vec<String>,
}

impl ModelPin {
    /// All pinned models.
    #[must_use]
    pub fn all() -> &'static [Self] {
        &MODELS
    }

    /// The pinned model of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        MODELS.iter().find(|pin| pin.name == name)
    }

    /// Digest over names and digests of its files, as of any model's folder.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest_json(&self.files.iter().map(|file| (&file.name, file.sha256)).collect::<BTreeMap<_, _>>())
    }

    /// Where its files lie once they are fetched.
    #[must_use]
    pub fn folder(&self, cache: &Utf8Path) -> Utf8PathBuf {
        fetched(cache).join("models").join(self.name.replace('/', "--"))
    }

    /// Whether all its files are there and what is pinned; those that are not known yet are read.
    #[must_use]
    pub fn is_complete(&self, cache: &Utf8Path, verified: &mut Verified, events: &Events) -> bool {
        let folder = self.folder(cache);
        let mut is_there =
            |file: &FilePin| verified.recognises(&folder.join(&file.name), file.sha256, file.size, events);
        self.files.iter().all(&mut is_there)
    }

    /// Bytes of its weights.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        let weights = self.files.iter().filter(|file| file.name.ends_with(".safetensors"));
        weights.filter_map(|file| file.size).sum()
    }
}

impl ArchivePin {
    /// All pinned archives.
    #[must_use]
    pub fn all() -> &'static [Self] {
        &ARCHIVES
    }

    /// The pinned archive of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        ARCHIVES.iter().find(|pin| pin.name == name)
    }

    /// Whether it is there and what is pinned; it is read if that is not known yet.
    #[must_use]
    pub fn is_complete(&self, cache: &Utf8Path, verified: &mut Verified, events: &Events) -> bool {
        verified.recognises(&self.path(cache), self.sha256, Some(self.size), events)
    }

    /// Where it lies once it is fetched.
    #[must_use]
    pub fn path(&self, cache: &Utf8Path) -> Utf8PathBuf {
        fetched(cache).join("datasets").join(&self.name).join(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_can_be_loaded_by_vllm_and_names_its_licence() {
        for pin in ModelPin::all() {
            let has = |end: &str| pin.files.iter().any(|file| file.name.ends_with(end));
            assert!(has("config.json") && has("tokenizer.json") && has(".safetensors"), "{}", pin.name);
            assert!(pin.licence_page.starts_with("https://"));
            assert!(pin.files.iter().all(|file| Utf8Path::new(&file.name).components().count() == 1));
        }
        assert_eq!(ModelPin::all().len(), 4);
        assert_eq!(ArchivePin::find("mmlu").unwrap().addresses.len(), 2);
    }

    // The published sizes: 16.06 GB and 31.41 GB.
    #[test]
    fn the_weights_of_the_pinned_models_have_the_published_size() {
        let weights = |name| ModelPin::find(name).unwrap().weight_bytes();
        assert_eq!(weights("meta-llama/Llama-3.1-8B-Instruct"), 16_060_556_376);
        assert_eq!(weights("deepseek-ai/DeepSeek-V2-Lite"), 31_413_626_576);
    }

    #[test]
    fn what_is_converted_comes_from_a_package_that_is_pinned_by_hash() {
        let mut found = 0;
        for pin in ModelPin::all() {
            if let Origin::Packages(gguf) = &pin.origin {
                let requirements = gguf.list.requirements();
                let packages = requirements.lines().filter_map(|line| line.split_once("=="));
                let folders: Vec<_> = packages.map(|(name, _)| name.replace('-', "_")).collect();
                for part in &gguf.parts {
                    assert!(folders.iter().any(|folder| part.starts_with(folder)), "{part}");
                }
                assert!(requirements.contains("--hash=sha256:") && !requirements.contains("://"));
                found += 1;
            }
        }
        assert_eq!(found, 2);
    }
}
