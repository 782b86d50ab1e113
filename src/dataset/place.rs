//! What a file of an archive or a folder is by its path. Main function: [`place`].

use std::fmt;

use super::extract_error::Member;
use super::{NotASubject, Split, Subject};

/// What a path says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A subject's table of one split, and the folder that holds the split's.
    Table(String, Subject, Split),
    /// The same, but no subject is named so.
    BadSubject(NotASubject),
    /// Among the tables, and like one, but for its name.
    Misnamed {
        /// The name that it would be read by.
        wanted: String,
    },
    /// Not among the tables.
    Elsewhere,
    /// What operating systems leave beside files; it is nobody's data.
    Litter,
}

/// Names that operating systems leave everywhere.
const LITTER: [&str; 5] = [".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir"];

/// What the file with this path is.
pub(super) fn place(path: &[u8]) -> Place {
    let path = spelt(path);
    let components: Vec<&str> = path.split('/').filter(|component| !matches!(*component, "" | ".")).collect();
    // macOS packs `._<file>` beside each file that has extended attributes.
    if components.iter().any(|component| component.starts_with("._") || LITTER.contains(component)) {
        return Place::Litter;
    }
    let [folder @ .., parent, file] = components.as_slice() else { return Place::Elsewhere };
    let Some(split) = Split::ALL.into_iter().find(|split| split.name() == *parent) else {
        return Place::Elsewhere;
    };
    if !is_like_table(file) {
        return Place::Elsewhere;
    }
    match subject_of(file, split).map(str::parse) {
        Some(Ok(subject)) => Place::Table(folder.join("/"), subject, split),
        Some(Err(problem)) => Place::BadSubject(problem),
        None => Place::Misnamed { wanted: wanted_name(file, split) },
    }
}

/// A path as text that no other path has: what is not UTF-8 is written as `\xff`.
fn spelt(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    text
}

/// The `<subject>` of `<subject>_<split>.csv`.
fn subject_of(file: &str, split: Split) -> Option<&str> {
    file.strip_suffix(".csv")?.strip_suffix(split.name())?.strip_suffix('_')
}

/// Whether a file's name says that it is a table, packed or not. Hidden files are none.
pub(crate) fn is_like_table(file: &str) -> bool {
    let name = file.to_lowercase();
    !name.starts_with('.') && (name.contains(".csv") || name.contains(".tsv"))
}

/// What a table would have to be called.
fn wanted_name(file: &str, split: Split) -> String {
    let name = file.to_lowercase();
    let end = name.find(".csv").or_else(|| name.find(".tsv")).unwrap_or(name.len());
    let mut subject: String = name[..end]
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() { character } else { '_' })
        .collect();
    for split in Split::ALL {
        if let Some(shorter) = subject.strip_suffix(split.name()).and_then(|rest| rest.strip_suffix('_')) {
            subject = shorter.to_owned();
        }
    }
    subject.truncate(100); // all ASCII
    let subject = if subject.is_empty() { "subject" } else { subject.as_str() };
    format!("{subject}_{split}.csv")
}

/// How many names a list of them shows.
const SHOWN: usize = 3;

/// Files that hold no question, as they are told: how many, and the first names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    count: usize,
    first: Vec<Member>,
}

impl LeftOut {
    /// Adds one.
    pub(crate) fn add(&mut self, member: &Member) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(member.clone());
        }
    }

    /// Adds others.
    #[must_use]
    pub fn and(mut self, others: &Self) -> Self {
        self.first.extend(others.first.iter().take(SHOWN - self.first.len()).cloned());
        self.count += others.count;
        self
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.first.iter().map(ToString::to_string).collect();
        let more = match self.count - self.first.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        write!(formatter, "{}{more}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_known_by_its_folder_and_its_name() {
        let table = |path: &str| match place(path.as_bytes()) {
            Place::Table(folder, subject, split) => format!("{folder}: {subject} {split}"),
            Place::Misnamed { wanted } => format!("misnamed, {wanted}"),
            other => format!("{other:?}"),
        };
        assert_eq!(table("data/dev/law_dev.csv"), "data: law dev");
        assert_eq!(table("./a//b/./test/law_test.csv"), "a/b: law test");
        assert_eq!(table("dev/law_dev.csv"), ": law dev");
        for (name, wanted) in [
            ("tax_dev.CSV", "tax_dev.csv"),
            ("tax.csv", "tax_dev.csv"),
            ("tax-dev.csv", "tax_dev.csv"),
            ("Tax Law_dev.csv.gz", "tax_law_dev.csv"),
            ("tax_test.csv", "tax_dev.csv"),
            ("tax_dev.csv~", "tax_dev.csv"),
            ("tax.tsv", "tax_dev.csv"),
            ("dev.csv", "dev_dev.csv"),
        ] {
            assert_eq!(table(&format!("data/dev/{name}")), format!("misnamed, {wanted}"), "{name}");
        }
        for path in [
            "README.csv",
            "data/law_dev.csv",
            "data/dev/README",
            "data/dev/.law_dev.csv",
            "a/aux/mc_test.csv",
        ] {
            assert_eq!(table(path), "Elsewhere", "{path}");
        }
        for path in ["data/dev/._law_dev.csv", "__MACOSX/data/dev/law_dev.csv", "data/dev/Thumbs.db"] {
            assert_eq!(table(path), "Litter", "{path}");
        }
    }

    #[test]
    fn folders_that_differ_in_bytes_that_are_no_text_are_two() {
        let folder = |path: &[u8]| match place(path) {
            Place::Table(folder, ..) => folder,
            other => panic!("{other:?}"),
        };
        assert_eq!(folder(b"caf\xe9/dev/law_dev.csv"), "caf\\xe9");
        assert_ne!(folder(b"caf\xe9/dev/law_dev.csv"), folder(b"caf\xe8/dev/law_dev.csv"));
    }

    #[test]
    fn what_a_table_should_be_called_is_a_name_that_is_read() {
        for name in ["É.csv", ".x.csv.csv", &"a".repeat(300), "_test.tsv", "a b-c.d_val.csv.bz2"] {
            let name = if is_like_table(name) {
                name.to_owned()
            } else {
                format!("{name}.csv").replacen('.', "_", 1)
            };
            if let Place::Misnamed { wanted } = place(format!("data/val/{name}").as_bytes()) {
                let path = format!("data/val/{wanted}");
                assert!(matches!(place(path.as_bytes()), Place::Table(..)), "{name}: {wanted}");
            }
        }
    }
}
