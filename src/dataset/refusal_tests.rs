//! What [`extract`] refuses, and in which words.

use std::error::Error;

use tar::EntryType;

use super::testing::{Entry, file, gzip, sound_entries, tar, xz};
use super::{Bound, Dataset, ExtractError, Limits, extract};

fn extracted(archive: &[u8]) -> Result<Dataset, ExtractError> {
    extract(archive, &Limits::default())
}

fn render(error: &ExtractError) -> String {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}\nhint: {}", error.hint().unwrap())
}

fn refusal(archive: &[u8]) -> String {
    render(&extracted(archive).unwrap_err())
}

/// The refusal of a sound archive to which a member is added.
fn refusal_with(entry: Entry) -> String {
    let mut entries = sound_entries();
    entries.push(entry);
    refusal(&tar(&entries))
}

/// The refusal of a sound archive whose `test` file is this one.
fn refusal_of_rows(csv: impl Into<Vec<u8>>) -> String {
    let mut entries = sound_entries();
    entries[2].content = csv.into();
    refusal(&tar(&entries))
}

#[test]
fn what_is_not_an_archive_is_refused() {
    insta::assert_snapshot!(refusal(b""), @r#"
    read the archive: the file is neither tar, tar.xz nor tar.gz (it starts with "")
    hint: give the archive itself (`data.tar`, `.tar.xz` or `.tar.gz`), not a zip or a saved web page; or the folder that it was made of
    "#);
    insta::assert_snapshot!(refusal(b"<!DOCTYPE html>\n<html>"), @r#"
    read the archive: the file is neither tar, tar.xz nor tar.gz (it starts with "<!DOCTYPE html>\n")
    hint: give the archive itself (`data.tar`, `.tar.xz` or `.tar.gz`), not a zip or a saved web page; or the folder that it was made of
    "#);
    insta::assert_snapshot!(refusal(&xz(b"question,A,B,C,D,answer")), @r#"
    read the archive: what it decompresses to is neither tar, tar.xz nor tar.gz (it starts with "question,A,B,C,D")
    hint: give the archive itself (`data.tar`, `.tar.xz` or `.tar.gz`), not a zip or a saved web page; or the folder that it was made of
    "#);
    let folder = std::fs::File::open(env!("CARGO_MANIFEST_DIR")).unwrap();
    insta::assert_snapshot!(render(&extract(folder, &Limits::default()).unwrap_err()), @r"
    read the archive, near its start: Is a directory (os error 21)
    hint: check that the path is a file which this user may read, then run again
    ");
}

#[test]
fn truncated_and_damaged_archives_are_refused() {
    let tar = tar(&sound_entries());
    let xz = xz(&tar);
    insta::assert_snapshot!(refusal(&xz[..xz.len() - 9]), @r"
    read the archive to its end: past its last member, it is cut off or followed by something else
    hint: download the archive again and compare its SHA-256 with the published one; nothing may be appended to it
    ");
    insta::assert_snapshot!(refusal(&gzip(&tar)[..20]), @r"
    read the archive to its end: it is cut off near its start
    hint: download the archive again and compare its SHA-256 with the published one
    ");
    insta::assert_snapshot!(refusal(&tar[..512 + 7]), @r"
    read the archive to its end: it is cut off in or after member `data/dev/law_dev.csv`
    hint: download the archive again and compare its SHA-256 with the published one
    ");
    insta::assert_snapshot!(refusal(&tar[..1024]), @r"
    read the archive to its end: it is cut off in or after member `data/dev/law_dev.csv`
    hint: download the archive again and compare its SHA-256 with the published one
    ");
    insta::assert_snapshot!(refusal(&tar[..1024 + 100]), @r"
    read the archive to its end: it is cut off in or after member `data/dev/law_dev.csv`
    hint: download the archive again and compare its SHA-256 with the published one
    ");
    let mut damaged = xz.clone();
    damaged[xz.len() / 2] ^= 1;
    insta::assert_snapshot!(refusal(&damaged), @r"
    read the archive: it is damaged in or after member `data/dev/law_dev.csv`: lzma data error
    hint: download the archive again and compare its SHA-256 with the published one
    ");
    let mut damaged = tar.clone();
    damaged[1024 + 1] ^= 1;
    insta::assert_snapshot!(refusal(&damaged), @r"
    read the archive: it is damaged in or after member `data/dev/law_dev.csv`: archive header checksum mismatch
    hint: download the archive again and compare its SHA-256 with the published one
    ");
    insta::assert_snapshot!(refusal(&[xz.as_slice(), b"garbage"].concat()), @r"
    read the archive to its end: past its last member, it is cut off or followed by something else
    hint: download the archive again and compare its SHA-256 with the published one; nothing may be appended to it
    ");
    insta::assert_snapshot!(refusal(&[gzip(&tar).as_slice(), b"garbage"].concat()), @r"
    read the archive to its end: past its last member, it is cut off or followed by something else
    hint: download the archive again and compare its SHA-256 with the published one; nothing may be appended to it
    ");
    insta::assert_snapshot!(refusal(&[tar.as_slice(), tar.as_slice()].concat()), @r"
    read the archive: data follows its end mark, in or after member `data/test/law_test.csv`
    hint: give one archive, not several joined into one file; `tar -tf FILE` shows what tar reads of it
    ");
}

#[test]
fn dangerous_members_are_refused_wherever_they_stand() {
    insta::assert_snapshot!(refusal_with(file("docs/../../etc/passwd", "")), @r"
    accept archive member `docs/../../etc/passwd`: its path is absolute or holds `..`
    hint: do not trust this archive; if it is yours, pack it again from the folder above `data`: `tar -cf data.tar data`
    ");
    insta::assert_snapshot!(refusal_with(file("/etc/\u{1b}[31mpasswd", "")), @r"
    accept archive member `/etc/\u{1b}[31mpasswd`: its path is absolute or holds `..`
    hint: do not trust this archive; if it is yours, pack it again from the folder above `data`: `tar -cf data.tar data`
    ");
    let special = |kind| refusal_with(Entry { kind, ..file("docs/README", "") });
    insta::assert_snapshot!(special(EntryType::Symlink), @r"
    accept archive member `docs/README`: it is a symbolic link
    hint: pack plain files only: `tar --dereference --hard-dereference -cf data.tar data`
    ");
    for kind in [EntryType::Link, EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::new(b'M')] {
        assert!(special(kind).starts_with("accept archive member `docs/README`: it is "), "{kind:?}");
    }
}

#[test]
fn incomplete_datasets_are_refused() {
    insta::assert_snapshot!(refusal(&tar(&[file("README", "")])), @r"
    find a question: no member is named like `data/test/anatomy_test.csv`
    hint: the archive must hold `<folder>/{dev,val,test}/<subject>_<split>.csv`; `tar -tf FILE` shows what it holds
    ");
    insta::assert_snapshot!(refusal(&tar(&sound_entries()[..2])), @r"
    complete the dataset: subject law has no test questions
    hint: add `data/test/law_test.csv` with at least one row, or remove the subject
    ");
    insta::assert_snapshot!(refusal_of_rows(""), @r"
    complete the dataset: subject law has no test questions
    hint: add `data/test/law_test.csv` with at least one row, or remove the subject
    ");
    insta::assert_snapshot!(refusal_with(file("./data/dev/law_dev.csv", "q,1,2,3,4,A\n")), @r"
    accept archive member `./data/dev/law_dev.csv`: the dev questions of law came before
    hint: keep one of the two files; `tar --append` leaves both, so pack the archive anew
    ");
    insta::assert_snapshot!(refusal_with(file("data/dev/Law School_dev.csv", "q,1,2,3,4,A\n")), @r#"
    accept archive member `data/dev/Law School_dev.csv`: "Law School" is not a subject name (1 to 100 lower-case letters, digits and underscores)
    hint: rename the file to `<subject>_<split>.csv`, or move it out of the split's folder
    "#);
}

#[test]
fn ill_formed_rows_are_refused_by_number() {
    insta::assert_snapshot!(refusal_of_rows("q,1,2,3,4,A\n\"q\n\n\",1,2,3,A\n"), @r"
    read `data/test/law_test.csv`, row 2: 5 columns instead of 6
    hint: a row is `question,A,B,C,D,answer`; a field with a comma, quote or line end stands in double quotes
    ");
    insta::assert_snapshot!(refusal_of_rows("q,1,2,3,4,5,6,7,A\n"), @r"
    read `data/test/law_test.csv`, row 1: at least 7 columns instead of 6
    hint: a row is `question,A,B,C,D,answer`; a field with a comma, quote or line end stands in double quotes
    ");
    insta::assert_snapshot!(refusal_of_rows("question,A,B,C,D,answer\n"), @r#"
    read `data/test/law_test.csv`, row 1: column 6: "answer" is not one of A, B, C and D
    hint: the last column holds the letter of the right option; a header line is not expected
    "#);
    insta::assert_snapshot!(refusal_of_rows("q,1,2,,4,A\n"), @r"
    read `data/test/law_test.csv`, row 1: column 4 is empty
    hint: a question and its options need text; write `None` for none
    ");
    insta::assert_snapshot!(refusal_of_rows(*b"q,1,\xe9,3,4,A\n"), @r"
    read `data/test/law_test.csv`, row 1: column 3 is not valid UTF-8
    hint: convert the file to UTF-8: `iconv -f latin1 -t utf-8 FILE > NEW`, if it is of Western Europe; `file -i FILE` guesses
    ");
    insta::assert_snapshot!(refusal_of_rows(format!("\"q{}", ",1,2,3,4,A\n".repeat(7000))), @r"
    read `data/test/law_test.csv`, row 1: more than 65536 bytes
    hint: look for a double quote that is never closed on or before this row
    ");
}

#[test]
fn more_than_the_limits_is_refused_while_it_streams() {
    let sound = || Limits { archive_bytes: 1 << 20, ..Limits::default() };
    let bounded = |archive: &[u8], limits: Limits| extract(archive, &limits).unwrap_err();
    let zeros = vec![0; 2 << 20];
    let with = |entry: Entry| {
        let mut entries = sound_entries();
        entries.insert(0, entry);
        tar(&entries)
    };

    let ignored = with(file("ignored", zeros.clone()));
    insta::assert_snapshot!(render(&bounded(&xz(&ignored), sound())), @r"
    read the archive within its limits: more than 1048576 bytes once decompressed, in or after member `ignored`
    hint: if you trust the archive, repack it with only the folders `dev`, `val` and `test`
    ");
    let long_name = with(Entry { kind: EntryType::GNULongName, ..file("././@LongLink", zeros.clone()) });
    insta::assert_snapshot!(render(&bounded(&gzip(&long_name), Limits::default())), @r"
    read the archive within its limits: more than 1048576 bytes of headers before one member, near its start
    hint: pack it again without extended attributes: `tar --no-xattrs --no-acls --no-selinux -cf data.tar data`
    ");
    let after_the_end = [tar(&sound_entries()), zeros].concat();
    insta::assert_snapshot!(render(&bounded(&xz(&after_the_end), sound())), @r"
    read the archive within its limits: more than 1048576 bytes once decompressed, in or after member `data/test/law_test.csv`
    hint: if you trust the archive, repack it with only the folders `dev`, `val` and `test`
    ");

    let archive = tar(&sound_entries());
    let bound = |limits| match bounded(&archive, limits) {
        ExtractError::LimitExceeded { bound, .. } => bound,
        other => panic!("{other}"),
    };
    assert_eq!(bound(Limits { members: 2, ..sound() }), Bound::Members);
    assert_eq!(bound(Limits { member_bytes: 10, ..sound() }), Bound::MemberBytes);
    assert_eq!(bound(Limits { questions: 2, ..sound() }), Bound::Questions);
    assert_eq!(bound(Limits { text_bytes: 20, ..sound() }), Bound::TextBytes);
    insta::assert_snapshot!(render(&bounded(&xz(&archive), Limits { xz_memory_bytes: 1000, ..sound() })), @r"
    read the archive within its limits: more than 1000 bytes of memory to decompress, near its start
    hint: compress it again with a smaller dictionary, for instance with `xz -6`
    ");
}

#[test]
fn a_sparse_map_without_end_is_refused() {
    let mut header = tar::Header::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.as_gnu_mut().unwrap().set_is_extended(true);
    header.set_size(0);
    header.set_cksum();
    let mut extension = [0; 512];
    extension[504] = 1;
    let archive = [header.as_bytes().as_slice(), &extension.repeat(3000)].concat();
    let error = extracted(&archive).unwrap_err();
    assert!(matches!(error, ExtractError::LimitExceeded { bound: Bound::HeaderBytes, .. }), "{error}");
}
