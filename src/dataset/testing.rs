//! Small datasets, archives and tokenizers for the tests of this module.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::json;
use tar::EntryType;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::{Choice, Dataset, Question, QuestionId, Split, Tokenizer, write_questions};

/// Two questions in each split of each subject; row 1 is answered A and row 2 is answered B.
pub(super) fn dataset(subjects: &[&str]) -> Dataset {
    let mut splits = BTreeMap::new();
    for subject in subjects {
        for split in Split::ALL {
            let rows = [(1, Choice::A), (2, Choice::B)].map(|(row, answer)| {
                let id = QuestionId { subject: subject.parse().unwrap(), split, row };
                let options = ["one", "two", "three", "four"].map(str::to_owned);
                Question { text: format!("{id} ?"), id, options, answer }
            });
            splits.insert((subject.parse().unwrap(), split), rows.to_vec());
        }
    }
    Dataset::from_splits(splits).unwrap()
}

pub(super) fn write_to_string(dataset: &Dataset) -> String {
    let mut lines = Vec::new();
    write_questions(dataset, &mut lines).unwrap();
    String::from_utf8(lines).unwrap()
}

/// A tokenizer of bytes, each letter with its space (of `letters`), and `<s>` before every text.
pub(super) fn tokenizer_json(letters: &[&str]) -> serde_json::Value {
    let mut tokens: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    tokens.sort();
    tokens.extend(letters.iter().map(|letter| format!("Ġ{letter}")));
    let beginning = tokens.len();
    let vocabulary: BTreeMap<String, usize> = tokens.into_iter().zip(0..).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "added_tokens": [{"id": beginning, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false}],
        "pre_tokenizer": byte_level,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [beginning], "tokens": ["<s>"]}}},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary,
            "merges": letters.iter().map(|letter| format!("Ġ {letter}")).collect::<Vec<_>>()},
    })
}

pub(super) fn byte_tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(tokenizer_json(&["A", "B", "C", "D"]).to_string().as_bytes()).unwrap()
}

/// One member for [`tar`]: a file, unless its kind is changed.
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) kind: EntryType,
    pub(super) content: Vec<u8>,
}

pub(super) fn file(path: &str, content: impl Into<Vec<u8>>) -> Entry {
    Entry { path: path.to_owned(), kind: EntryType::Regular, content: content.into() }
}

/// A sound archive of one subject with one question a split.
pub(super) fn sound_entries() -> Vec<Entry> {
    let path = |split| format!("data/{split}/law_{split}.csv");
    Split::ALL.map(|split| file(&path(split), format!("{split}?,1,2,3,4,A\n"))).into()
}

/// An archive with exactly these members, also where the tar library would refuse to write them.
pub(super) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        builder.append(&header, entry.content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    xz2::read::XzEncoder::new(bytes, 0).read_to_end(&mut compressed).unwrap();
    compressed
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut compressed).unwrap();
    compressed
}
