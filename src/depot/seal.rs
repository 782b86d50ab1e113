//! What makes an artifact of parts: the object that is put last. Main type: [`Seal`].

use std::collections::BTreeMap;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::store::{OutputFile, StageKey, output_digest};

/// The most that one object holds of a file. Three of them are in memory at a time.
pub(super) const PART_BYTES: usize = 8 << 20;
const SCHEMA: u32 = 1;

/// `artifacts/<stage>/<key digest>.json`: an artifact's key and files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    schema: u32,
    /// What the artifact is found by.
    pub key: StageKey,
    /// What it is of, for people.
    pub label: String,
    /// The artifact's output digest: what a turned bit in a name below would otherwise go by.
    output: Digest,
    /// What is in it, by name.
    files: BTreeMap<Utf8PathBuf, SealedFile>,
}

/// A file's size, digest, and the digests of its parts, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SealedFile {
    size: u64,
    sha256: Digest,
    parts: Vec<Digest>,
}

impl Seal {
    pub(super) fn of(key: StageKey, label: &str, files: BTreeMap<Utf8PathBuf, SealedFile>) -> Self {
        let output = output_of(&files);
        Self { schema: SCHEMA, key, label: label.to_owned(), output, files }
    }

    /// Reads one and sees that it can be of this key, and that its files can be written below a folder; the error says what is
    /// wrong.
    pub(super) fn read(bytes: &[u8], key: Digest) -> Result<Self, String> {
        let seal: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("it is malformed: {error}"))?;
        if seal.schema != SCHEMA {
            return Err(format!("it has schema {} instead of {SCHEMA}", seal.schema));
        }
        if seal.key.digest() != key {
            return Err("its key is not the one that names it".to_owned());
        }
        if seal.output != output_of(&seal.files) {
            return Err("its files are not those that it was made of".to_owned());
        }
        for (name, file) in &seal.files {
            if !is_plain(name) {
                return Err(format!("its file {name:?} would lie outside of the artifact"));
            }
            if part_sizes(file.size).count() != file.parts.len() {
                return Err(format!(
                    "its file {name} has {} parts for {} bytes",
                    file.parts.len(),
                    file.size
                ));
            }
        }
        Ok(seal)
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a seal has a JSON form")
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&Utf8Path, &SealedFile)> {
        self.files.iter().map(|(name, file)| (name.as_path(), file))
    }

    /// Bytes of all its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }

    /// The artifact's output digest, as `store` has it.
    #[must_use]
    pub fn output_digest(&self) -> Digest {
        self.output
    }

    /// Digests of the artifacts that it was made from, as far as its key tells.
    pub(super) fn inputs(&self) -> impl Iterator<Item = Digest> + '_ {
        let inputs = self.key.fields().get("inputs").and_then(serde_json::Value::as_object);
        inputs
            .into_iter()
            .flat_map(|inputs| inputs.values())
            .filter_map(|digest| digest.as_str()?.parse().ok())
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Digest> + '_ {
        self.files.values().flat_map(|file| file.parts.iter().copied())
    }
}

fn output_of(files: &BTreeMap<Utf8PathBuf, SealedFile>) -> Digest {
    let file = |file: &SealedFile| OutputFile { size: file.size, sha256: file.sha256 };
    output_digest(&files.iter().map(|(name, sealed)| (name.clone(), file(sealed))).collect())
}

impl SealedFile {
    pub(super) fn of(size: u64, sha256: Digest, parts: Vec<Digest>) -> Self {
        Self { size, sha256, parts }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn sha256(&self) -> Digest {
        self.sha256
    }

    /// Digest and size of each part, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Digest, usize)> + use<> {
        self.parts.clone().into_iter().zip(part_sizes(self.size))
    }
}

/// How a file of this size is cut: whole parts, and what is left.
fn part_sizes(size: u64) -> impl Iterator<Item = usize> {
    let part = PART_BYTES as u64;
    let whole = std::iter::repeat_n(PART_BYTES, usize::try_from(size / part).unwrap_or(usize::MAX));
    let rest = usize::try_from(size % part).unwrap_or(PART_BYTES);
    whole.chain((rest > 0).then_some(rest))
}

/// Whether a name leads to a file below a folder: no root, no `..`.
fn is_plain(name: &Utf8Path) -> bool {
    name != "" && name.components().all(|part| matches!(part, Utf8Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::digest::digest_bytes;
    use crate::stage_name::StageName;

    fn key() -> StageKey {
        StageKey::new(
            1,
            StageName::Baseline,
            &json!({"inputs": {"prompts": digest_bytes(b"p")}, "parameters": {}}),
        )
    }

    fn seal(name: &str, size: u64, parts: usize) -> Seal {
        let file = SealedFile::of(size, digest_bytes(b"x"), vec![digest_bytes(b"x"); parts]);
        Seal::of(key(), "dense", BTreeMap::from([(name.into(), file)]))
    }

    #[test]
    fn a_seal_is_read_back_and_names_what_it_is_made_from() {
        let written = seal("a/b.jsonl", PART_BYTES as u64 + 1, 2);
        let read = Seal::read(&written.to_json(), key().digest()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.inputs().collect::<Vec<_>>(), [digest_bytes(b"p")]);
        let sizes: Vec<usize> =
            read.files().flat_map(|(_, file)| file.parts().map(|(_, size)| size)).collect();
        assert_eq!(sizes, [PART_BYTES, 1]);
        assert_eq!(read.output_digest(), written.output_digest());
    }

    #[test]
    fn what_is_no_seal_of_the_key_or_leads_out_of_its_folder_is_refused() {
        let refused = |bytes: &[u8]| Seal::read(bytes, key().digest()).unwrap_err();
        for (name, size, parts, words) in [
            ("../x", 1, 1, "outside"),
            ("/etc/x", 1, 1, "outside"),
            ("", 1, 1, "outside"),
            ("x", 1, 2, "has 2 parts for 1 bytes"),
            ("x", u64::MAX, 0, "has 0 parts"),
        ] {
            let problem = refused(&seal(name, size, parts).to_json());
            assert!(problem.contains(words), "{problem}");
        }
        assert!(refused(b"{").contains("malformed"));
        let renamed =
            String::from_utf8(seal("a.jsonl", 1, 1).to_json()).unwrap().replace("a.jsonl", "b.jsonl");
        assert!(refused(renamed.as_bytes()).contains("not those that it was made of"));
        let other = Seal::read(&seal("x", 0, 0).to_json(), digest_bytes(b"another key"));
        assert!(other.unwrap_err().contains("not the one that names it"));
    }
}
