//! Archives as people's tools write them: what is read in spite of a quirk, and what is refused for one.

use tar::{EntryType, Header};

use super::testing::{Entry, file, sound_entries, tar, xz};
use super::{Dataset, Limits, extract, extract_with_rest};

fn read(archive: &[u8]) -> Dataset {
    extract(archive, &Limits::default()).unwrap()
}

fn sound() -> Dataset {
    read(&tar(&sound_entries()))
}

fn refusal(archive: &[u8]) -> String {
    let error = extract(archive, &Limits::default()).unwrap_err();
    format!("{error}\nhint: {}", error.hint().unwrap())
}

fn with(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    tar(&sound_entries().into_iter().chain(entries).collect::<Vec<_>>())
}

fn row(path: &str) -> Entry {
    file(path, "q,1,2,3,4,A\n")
}

/// A block as GNU tar's `--label` writes it: most fields, the size too, are empty.
fn label_block() -> Vec<u8> {
    let mut header = Header::new_old();
    header.as_mut_bytes().fill(0);
    header.as_mut_bytes()[..4].copy_from_slice(b"MMLU");
    header.as_mut_bytes()[156] = b'V';
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A member of any kind with a header that the tar library would not write.
fn member(kind: u8, path: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(EntryType::new(kind));
    header.set_size(content.len() as u64);
    header.set_cksum();
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [header.as_bytes().as_slice(), content, &padding].concat()
}

/// A pax record: its own length, a name and a value.
fn record(name: &str, value: &str) -> String {
    let rest = format!(" {name}={value}\n");
    let length = (rest.len()..rest.len() + 20)
        .find(|length| *length == rest.len() + length.to_string().len())
        .unwrap();
    format!("{length}{rest}")
}

#[test]
fn the_format_without_a_magic_number_is_read() {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in [file("data/", ""), file("data/dev/", "")].into_iter().chain(sound_entries()) {
        let mut header = Header::new_old();
        header.set_path(&entry.path).unwrap();
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        builder.append(&header, entry.content.as_slice()).unwrap();
    }
    let archive = builder.into_inner().unwrap();
    assert_eq!(&archive[257..262], &[0; 5]);
    assert_eq!(read(&archive), sound());
    assert_eq!(read(&xz(&archive)), sound());
}

#[test]
fn labels_global_headers_and_lists_of_folders_are_passed_over() {
    let plain = tar(&sound_entries());
    assert_eq!(read(&[label_block(), plain.clone()].concat()), sound());
    assert_eq!(read(&xz(&[label_block(), plain.clone()].concat())), sound());
    let label = record("GNU.volume.label", "MMLU");
    let global = member(b'g', "/tmp/GlobalHead.1.1", label.as_bytes());
    assert_eq!(read(&[global, plain.clone()].concat()), sound());
    let list = member(b'D', "data/dev/", b"Ylaw_dev.csv\0\0");
    assert_eq!(read(&[list, plain.clone()].concat()), sound());
    let renames = member(b'g', "pax_global_header", record("path", "other").as_bytes());
    insta::assert_snapshot!(refusal(&[renames, plain].concat()), @r"
    accept archive member `pax_global_header`: it is a header that names or sizes every member after it
    hint: unpack it where it came from, and pack it again as one volume: `tar -cf data.tar data`
    ");
}

#[test]
fn a_sparse_file_is_refused_by_name_also_where_it_hides_behind_another() {
    let sparse =
        [record("GNU.sparse.major", "1"), record("GNU.sparse.name", "data/test/tax_test.csv")].concat();
    let hidden = [
        member(b'x', "data/test/PaxHeaders/tax_test.csv", sparse.as_bytes()),
        member(b'0', "data/test/GNUSparseFile.1/tax_test.csv", b"1\n0\n10\n"),
        tar(&sound_entries()),
    ];
    insta::assert_snapshot!(refusal(&hidden.concat()), @r"
    accept archive member `data/test/tax_test.csv`: it is a sparse file
    hint: pack it again without `--sparse` (`-S`): `tar -cf data.tar data`
    ");
}

#[test]
fn twenty_kilobytes_of_attributes_are_read_and_more_than_a_megabyte_has_a_hint_that_helps() {
    let attributes = |bytes: usize| {
        let records = record("SCHILY.xattr.user.note", &"x".repeat(bytes));
        [member(b'x', "PaxHeaders/law", records.as_bytes()), tar(&sound_entries())].concat()
    };
    assert_eq!(read(&attributes(20_000)), sound());
    insta::assert_snapshot!(refusal(&attributes(2 << 20)), @r"
    read the archive within its limits: more than 1048576 bytes of headers before one member, near its start
    hint: pack it again without extended attributes: `tar --no-xattrs --no-acls --no-selinux -cf data.tar data`
    ");
}

#[test]
fn a_layout_is_found_at_any_depth_and_only_at_one_place() {
    let below = |folder: &str| {
        let moved = |entry: Entry| Entry { path: entry.path.replacen("data/", folder, 1), ..entry };
        sound_entries().into_iter().map(moved).collect::<Vec<_>>()
    };
    for folder in ["", "./", "mmlu-1.0/data/", "a/b/c/d/e/"] {
        assert_eq!(read(&tar(&below(folder))), sound(), "{folder:?}");
    }
    insta::assert_snapshot!(refusal(&with([row("backup/dev/tax_dev.csv")])), @r"
    choose between the tables below `data` and `backup/dev/tax_dev.csv`: they lie in two folders
    hint: pack only the folder that is meant: `tar -cf data.tar data`
    ");
    assert!(
        refusal(&with([row("dev/tax_dev.csv")]))
            .starts_with("choose between the tables below `data` and `dev/")
    );
}

#[test]
fn a_table_under_another_name_is_refused_with_the_name_that_it_needs() {
    insta::assert_snapshot!(refusal(&with([row("data/test/tax_test.CSV")])), @r"
    accept archive member `data/test/tax_test.CSV`: it lies among the tables, and is not named like one
    hint: rename it to `tax_test.csv`, decompressed and with commas between its columns, or move it out of that folder
    ");
    for name in ["tax.csv", "tax-dev.csv", "tax_dev.csv.gz", "tax_test.csv", "tax_dev.csv.bak", "tax.tsv"] {
        let refused = refusal(&with([row(&format!("data/dev/{name}"))]));
        assert!(refused.contains("rename it to `tax_dev.csv`"), "{refused}");
    }
}

#[test]
fn what_holds_no_question_is_told() {
    let others =
        ["data/README.txt", "data/aux/mc_test.csv", "data/dev/notes.md", "LICENSE", "data/dev/._law_dev.csv"];
    let archive = with(others.map(row));
    let (dataset, left_out) = extract_with_rest(archive.as_slice(), &Limits::default()).unwrap();
    assert_eq!(dataset, sound());
    insta::assert_snapshot!(left_out, @"`data/README.txt`, `data/aux/mc_test.csv`, `data/dev/notes.md` and 1 more");
}

#[test]
fn a_table_that_is_no_text_in_utf_8_is_called_what_it_is() {
    let refused = |bytes: &[u8]| {
        let mut entries = sound_entries();
        entries[2].content = bytes.to_vec();
        refusal(&tar(&entries))
    };
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    insta::assert_snapshot!(refused(&utf16("\u{feff}q,1,2,3,4,A\n")), @r"
    read `data/test/law_test.csv`, row 1: the file is UTF-16, not UTF-8
    hint: convert the file: `iconv -f utf-16 -t utf-8 FILE > NEW`
    ");
    assert!(refused(&utf16("q,1,2,3,4,A\n")).ends_with("`iconv -f utf-16le -t utf-8 FILE > NEW`"));
    let big: Vec<u8> = "q,1,2,3,4,A\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert!(refused(&big).ends_with("`iconv -f utf-16be -t utf-8 FILE > NEW`"));
    assert!(refused(b"\xff\xfe\0\0q\0\0\0").contains("UTF-32"));
    insta::assert_snapshot!(refused(&super::testing::gzip(b"q,1,2,3,4,A\n")), @r"
    read `data/test/law_test.csv`, row 1: the file is compressed by gzip
    hint: decompress it: `gunzip FILE.gz`
    ");
    assert!(refused(b"PK\x03\x04....").contains("a zip, as spreadsheets are, too"));
}

#[test]
fn a_missing_answer_is_told_with_what_an_answer_is() {
    let mut entries = sound_entries();
    entries[2].content = b"q,1,2,3,4,".to_vec();
    insta::assert_snapshot!(refusal(&tar(&entries)), @r"
    read `data/test/law_test.csv`, row 1: column 6 is empty
    hint: the last column holds the letter of the right option: A, B, C or D
    ");
}

#[test]
fn other_ways_to_compress_are_named() {
    insta::assert_snapshot!(refusal(b"\x28\xb5\x2f\xfd...."), @r#"
    read the archive: the file is compressed by zstd, and neither tar, tar.xz nor tar.gz (it starts with "(\xb5/\xfd....")
    hint: decompress it: `unzstd FILE.zst`, and give the archive itself: `data.tar`, `.tar.xz` or `.tar.gz`
    "#);
    assert!(refusal(b"PK\x03\x04").contains("a zip"));
    assert!(refusal(&[0; 1024]).contains("neither tar"));
}

#[test]
fn every_case_beside_this_repository_behaves_as_it_should() {
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/cases"));
    if !folder.exists() {
        println!("SKIPPED: the archives of cases are not beside this repository");
        return;
    }
    let outcome = |name: &str| {
        let file = fs_err::File::open(folder.join(name)).unwrap();
        match extract(file, &Limits::default()) {
            Ok(dataset) => format!("read, {} subjects", dataset.subjects.len()),
            Err(error) => format!("{error}; {}", error.hint().unwrap()),
        }
    };
    for name in ["v7.tar", "label.tar", "label-pax.tar", "incremental.tar", "pax-xattr20k.tar"] {
        assert_eq!(outcome(name), "read, 1 subjects", "{name}");
    }
    assert_eq!(outcome("two-deep-prefix.tar.xz"), "read, 2 subjects");
    for (name, words) in [
        ("sparse-pax10-second.tar", "it is a sparse file; pack it again without `--sparse`"),
        ("name-CSV.tar", "rename it to `tax_dev.csv`"),
        ("name-plain.tar", "rename it to `tax_dev.csv`"),
        ("name-mismatch.tar", "rename it to `tax_dev.csv`"),
        ("name-gz-inside.tar", "rename it to `tax_dev.csv`"),
        ("two-tops.tar", "choose between the tables"),
        ("csv-utf16le.tar", "iconv -f utf-16 "),
        ("csv-answer-missing.tar", "the letter of the right option"),
    ] {
        assert!(outcome(name).contains(words), "{name}: {}", outcome(name));
    }
}
