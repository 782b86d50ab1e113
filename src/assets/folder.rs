//! A folder of tables as the archive that it would be packed into. Main function: [`pack`].

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::error::{AssetError, io_error};
use crate::dataset::{LeftOut, Limits, Member, Split, is_like_table};

/// How far below the folder that was named its tables are looked for.
const DEPTH: usize = 3;
/// Entries that are looked at; whoever names a larger folder did not mean it.
const MOST_ENTRIES: usize = 20_000;

/// Packs the tables of `dev`, `val` and `test`, so that only names and content count; and tells what lies beside them.
/// The three lie in `folder`, or in one folder below it.
pub(super) fn pack(folder: &Utf8Path) -> Result<(Vec<u8>, LeftOut), AssetError> {
    let mut search = Search::default();
    search.look(folder, DEPTH)?;
    let place = match search.found.as_slice() {
        [place] => place,
        [first, second, ..] => {
            return Err(AssetError::TwoLayouts { first: first.clone(), second: second.clone() });
        }
        // What could not be read may hold them.
        [] => {
            let unread = search.unread.into_iter().next().map(|(_, error)| error);
            return Err(unread.unwrap_or_else(|| AssetError::NoTables(folder.to_owned())));
        }
    };
    let is_part = |path: &std::path::Path| {
        Split::ALL.iter().any(|split| path == place.join(split.name()).as_std_path())
    };
    if let Some((_, error)) = search.unread.into_iter().find(|(path, _)| is_part(path)) {
        return Err(error);
    }
    let mut left_out = LeftOut::default();
    let mut leave_out = |path: &std::path::Path| {
        let path = path.strip_prefix(folder).unwrap_or(path);
        left_out.add(&Member::new(path.as_os_str().as_encoded_bytes()));
    };
    for parent in place.ancestors().skip(1).take_while(|parent| parent.starts_with(folder)) {
        for entry in list(parent)?.iter().filter(|entry| !place.as_std_path().starts_with(&entry.path)) {
            if !entry.is_litter() {
                leave_out(&entry.path);
            }
        }
    }
    let mut packer = Packer { archive: tar::Builder::new(Vec::new()), bytes: 0 };
    for entry in list(place)? {
        if !entry.is_split() && !entry.is_litter() {
            leave_out(&entry.path);
        }
    }
    for split in Split::ALL {
        let tables = place.join(split.name());
        if !tables.is_dir() {
            continue; // the subjects that lack it are named when the archive is read
        }
        for entry in list(&tables)? {
            if is_like_table(&entry.name) {
                packer.add(split, &entry)?;
            } else if !entry.is_litter() {
                leave_out(&entry.path);
            }
        }
    }
    let archive = packer.archive.into_inner().map_err(|source| io_error(place, source))?;
    Ok((archive, left_out))
}

/// Something in a folder.
struct Entry {
    /// Its name; what is not UTF-8 of it is replaced.
    name: String,
    path: std::path::PathBuf,
}

impl Entry {
    /// What operating systems leave; also whatever is hidden, such as `.git`, unless it is called like a table.
    fn is_litter(&self) -> bool {
        let hidden = self.name.strip_prefix('.').is_some_and(|name| !is_like_table(name));
        hidden
            || self.name.starts_with("._")
            || ["Thumbs.db", "desktop.ini", "__MACOSX"].contains(&self.name.as_str())
    }

    fn is_split(&self) -> bool {
        Split::ALL.iter().any(|split| split.name() == self.name)
    }

    /// Whether it is a folder that holds a table.
    fn tables(&self) -> Result<bool, AssetError> {
        let metadata = fs::metadata(&self.path).map_err(|source| io_error(&self.shown(), source))?;
        Ok(metadata.is_dir() && list(&self.shown())?.iter().any(|table| is_like_table(&table.name)))
    }

    fn shown(&self) -> Utf8PathBuf {
        self.path.to_string_lossy().into_owned().into()
    }
}

/// What is in a folder, by name.
fn list(folder: &Utf8Path) -> Result<Vec<Entry>, AssetError> {
    let failed = |source| io_error(folder, source);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        entries.push(Entry { name: entry.file_name().to_string_lossy().into_owned(), path: entry.path() });
    }
    entries.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(entries)
}

/// Looks for folders whose `dev`, `val` or `test` holds a table.
#[derive(Default)]
struct Search {
    entries: usize,
    /// Folders that were looked at, by device and number: links may lead in a circle.
    seen: BTreeSet<(u64, u64)>,
    found: Vec<Utf8PathBuf>,
    /// What may hold tables and cannot be looked at, and why.
    unread: Vec<(std::path::PathBuf, AssetError)>,
}

impl Search {
    fn look(&mut self, folder: &Utf8Path, depth: usize) -> Result<(), AssetError> {
        let metadata = fs::metadata(folder).map_err(|source| io_error(folder, source))?;
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        let entries = list(folder)?;
        self.entries += entries.len();
        if self.entries > MOST_ENTRIES {
            return Err(AssetError::TooManyFiles(folder.to_owned()));
        }
        let mut holds_tables = false;
        for entry in entries.iter().filter(|entry| entry.is_split()) {
            match entry.tables() {
                Ok(tables) => holds_tables |= tables,
                Err(error) => self.unread.push((entry.path.clone(), error)),
            }
        }
        if holds_tables {
            self.found.push(folder.to_owned());
        }
        for entry in entries.iter().filter(|entry| depth > 0 && !entry.is_split() && !entry.is_litter()) {
            // A name that is not UTF-8 is no folder of tables.
            let Some(path) = Utf8Path::from_path(&entry.path) else { continue };
            let looked = match fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => self.look(path, depth - 1),
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(io_error(path, error)),
            };
            match looked {
                Err(error @ AssetError::Io { .. }) => self.unread.push((entry.path.clone(), error)),
                looked => looked?,
            }
        }
        Ok(())
    }
}

struct Packer {
    archive: tar::Builder<Vec<u8>>,
    bytes: u64,
}

impl Packer {
    fn add(&mut self, split: Split, entry: &Entry) -> Result<(), AssetError> {
        let failed = |source| io_error(&entry.shown(), source);
        let metadata = fs::metadata(&entry.path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(AssetError::NotAFile { path: entry.shown(), what: what_it_is(&metadata) });
        }
        let limits = Limits::default();
        self.bytes = self.bytes.saturating_add(metadata.len());
        if metadata.len() > limits.member_bytes || self.bytes > limits.archive_bytes {
            return Err(AssetError::TooLarge(entry.shown()));
        }
        let content = fs::read(&entry.path).map_err(failed)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let place = Utf8Path::new("data").join(split.name()).join(&entry.name);
        self.archive.append_data(&mut header, &place, content.as_slice()).map_err(failed)
    }
}

/// What something is that is no file, with its article.
pub(super) fn what_it_is(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    if kind.is_fifo() {
        "a pipe"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Sees that a path is a file or a folder.
pub(super) fn look_at(path: &Utf8Path) -> Result<Option<Metadata>, AssetError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() || metadata.is_dir() => Ok(Some(metadata)),
        Ok(metadata) => Err(AssetError::NotAFile { path: path.to_owned(), what: what_it_is(&metadata) }),
        // A link that leads nowhere is there, and something else is wrong than the name.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            Ok(None)
        }
        Err(error) => Err(io_error(path, error)),
    }
}
