//! What [`extract`] accepts comes out exactly as it stands. What it refuses is tested in `refusal_tests.rs`.

use std::io::{self, Read};
use std::path::PathBuf;

use proptest::prelude::*;
use tar::EntryType;

use super::testing::{Entry, file, gzip, sound_entries, tar, xz};
use super::{Dataset, ExtractError, Limits, Question, Split, extract};

fn extracted(archive: &[u8]) -> Result<Dataset, ExtractError> {
    extract(archive, &Limits::default())
}

/// Gives one byte a time, so that nothing may depend on how input is cut.
struct Trickle<R>(R);

impl<R: Read> Read for Trickle<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(1);
        self.0.read(&mut buffer[..length])
    }
}

fn field() -> impl Strategy<Value = String> {
    let special = r#"[ \t\r\n",\u{feff}Aé\u{1}]{1,6}"#;
    prop_oneof![2 => special, 1 => "\\PC{1,20}", 1 => Just("None".to_owned()), 1 => Just("\"\"".to_owned())]
}

fn rows() -> impl Strategy<Value = Vec<[String; 6]>> {
    let letter = "[ABCD]";
    let row = ([field(), field(), field(), field(), field()], letter)
        .prop_map(|([question, a, b, c, d], answer)| [question, a, b, c, d, answer]);
    prop::collection::vec(row, 1..8)
}

fn csv_of(rows: &[[String; 6]], quote_style: csv::QuoteStyle) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().quote_style(quote_style).from_writer(Vec::new());
    for row in rows {
        writer.write_record(row).unwrap();
    }
    writer.into_inner().unwrap()
}

fn row_of(question: &Question) -> [String; 6] {
    let [a, b, c, d] = question.options.clone();
    [question.text.clone(), a, b, c, d, question.answer.to_string()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_field_comes_out_as_it_was_written(
        splits in [rows(), rows(), rows()],
        quote_all in any::<bool>(),
        compress in prop::sample::select(vec![<[u8]>::to_vec as fn(&[u8]) -> Vec<u8>, xz, gzip]),
        folder in prop::sample::select(vec!["data", "mmlu", "./data", "data/."]),
    ) {
        let style = if quote_all { csv::QuoteStyle::Always } else { csv::QuoteStyle::Necessary };
        let mut entries = vec![file("data/README.txt", "ignored"), file("data/auxiliary_train/law.csv", "ignored")];
        for (split, rows) in Split::ALL.into_iter().zip(&splits) {
            let csv = csv_of(rows, style);
            // At the very start of a file this character is a byte order mark, and no part of the text.
            prop_assume!(!csv.starts_with("\u{feff}".as_bytes()));
            entries.push(file(&format!("{folder}/{split}/law_{split}.csv"), csv));
        }
        let archive = compress(&tar(&entries));
        let dataset = extracted(&archive).unwrap();
        for (split, rows) in Split::ALL.into_iter().zip(&splits) {
            let questions = dataset.subjects[&"law".parse().unwrap()].split(split);
            prop_assert_eq!(&questions.iter().map(row_of).collect::<Vec<_>>(), rows);
        }
        prop_assert_eq!(extract(Trickle(archive.as_slice()), &Limits::default()).unwrap(), dataset);
    }

    #[test]
    fn an_archive_that_is_cut_short_anywhere_is_refused(at in any::<prop::sample::Index>()) {
        let tar = tar(&sound_entries());
        for archive in [xz(&tar), gzip(&tar)] {
            prop_assert!(extracted(&archive[..at.index(archive.len())]).is_err());
        }
        // Of tar's end mark, two blocks of zeros, the first is enough.
        prop_assert!(extracted(&tar[..at.index(tar.len() - 512)]).is_err());
    }

    #[test]
    fn a_damaged_byte_is_noticed_or_harmless(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let tar = tar(&sound_entries());
        let sound = extracted(&tar).unwrap();
        for mut archive in [xz(&tar), gzip(&tar)] {
            let at = at.index(archive.len());
            archive[at] ^= flip;
            if let Ok(dataset) = extracted(&archive) {
                prop_assert_eq!(&dataset, &sound);
            }
        }
    }
}

#[test]
fn other_members_are_ignored() {
    let mut entries = sound_entries();
    let folder = |path| Entry { kind: EntryType::Directory, ..file(path, "") };
    entries.extend([folder("data/"), folder("data/dev/")]);
    entries.extend([
        file("data/dev/._law_dev.csv", "not a row"),
        file("data/dev/more/law_dev.csv", "not a row"),
        file("data/law_dev.csv", "not a row"),
    ]);
    assert_eq!(extracted(&tar(&entries)).unwrap(), extracted(&tar(&sound_entries())).unwrap());
}

#[test]
fn long_names_are_read_in_gnu_and_in_pax_style() {
    let subject = "a".repeat(100);
    let mut builder = tar::Builder::new(Vec::new());
    for split in Split::ALL {
        let path = format!("data/{split}/{subject}_{split}.csv");
        let mut header = tar::Header::new_ustar();
        header.set_size(12);
        if split == Split::Dev {
            builder.append_pax_extensions([("path", path.as_bytes())]).unwrap();
            header.set_path("shortened").unwrap();
            header.set_cksum();
            builder.append(&header, &b"q,1,2,3,4,A\n"[..]).unwrap();
        } else {
            header = tar::Header::new_gnu();
            header.set_size(12);
            builder.append_data(&mut header, path, &b"q,1,2,3,4,A\n"[..]).unwrap();
        }
    }
    let dataset = extracted(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(dataset.subjects.into_keys().next().unwrap().as_str(), subject);
}

#[test]
fn several_compressed_streams_are_one_archive() {
    let tar = tar(&sound_entries());
    let (start, end) = tar.split_at(700);
    let sound = extracted(&tar).unwrap();
    assert_eq!(extracted(&[xz(start), xz(end)].concat()).unwrap(), sound);
    assert_eq!(extracted(&[xz(start), vec![0; 8], xz(end)].concat()).unwrap(), sound);
    assert_eq!(extracted(&[gzip(start), gzip(end)].concat()).unwrap(), sound);
}

/// Rows of a split in which a field satisfies `holds`.
fn rows_where(dataset: &Dataset, split: Split, holds: impl Fn(&str) -> bool) -> usize {
    let fields =
        |question: &Question| [std::slice::from_ref(&question.text), question.options.as_slice()].concat();
    let questions = dataset.questions().filter(|question| question.id.split == split);
    questions.filter(|question| fields(question).iter().any(|field| holds(field))).count()
}

#[test]
fn every_peculiarity_of_mmlu_survives() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/mmlu/mmlu.tar.xz");
    let path = std::env::var_os("KV_CORRECTNESS_MMLU").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    if !path.exists() {
        println!("SKIPPED: there is no MMLU archive; name one in KV_CORRECTNESS_MMLU");
        return;
    }
    let dataset = extract(fs_err::File::open(path).unwrap(), &Limits::default()).unwrap();
    assert_eq!(dataset.subjects.len(), 57);
    let by_split = |count: &dyn Fn(Split) -> usize| Split::ALL.map(count);
    let rows = |holds: fn(&str) -> bool| by_split(&|split| rows_where(&dataset, split, holds));
    assert_eq!(by_split(&|split| dataset.count(split)), [285, 1531, 14042]);
    assert_eq!(rows(|field| field.contains('\n')), [32, 126, 1127]);
    assert_eq!(rows(|field| field.contains("\r\n")), [1, 3, 0]);
    assert_eq!(rows(|field| field.contains('"')), [23, 153, 1346]);
    assert_eq!(rows(|field| field.contains("\"\"")), [1, 3, 29]);
    assert_eq!(rows(|field| field.contains('\t')), [1, 0, 4]);
    assert_eq!(rows(|field| field.trim() != field), [20, 219, 1003]);
    assert_eq!(rows(|field| !field.is_ascii()), [39, 197, 1821]);
    assert_eq!(rows(|field| field.contains('\u{feff}')), [0, 0, 2]);
    assert_eq!(rows(|field| field == "None"), [0, 2, 10]);

    let answers = |letter| {
        dataset.questions().filter(|q| q.id.split == Split::Test && q.answer.letter() == letter).count()
    };
    assert_eq!(['A', 'B', 'C', 'D'].map(answers), [3222, 3462, 3582, 3776]);
    let repeated = by_split(&|split| {
        let questions = dataset.questions().filter(|question| question.id.split == split);
        let distinct: std::collections::BTreeSet<_> = questions.map(row_of).collect();
        dataset.count(split) - distinct.len()
    });
    assert_eq!(repeated, [1, 2, 105]);
}
