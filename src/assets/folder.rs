//! A folder of tables as the archive that it would be packed into. Main function: [`pack`].

use std::fs::Metadata;
use std::io;

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
    let mut search = Search { entries: 0, found: Vec::new() };
    search.look(folder, DEPTH)?;
    let [place] = search.found.as_slice() else {
        return Err(match search.found.as_slice() {
            [first, second, ..] => AssetError::TwoLayouts { first: first.clone(), second: second.clone() },
            _ => AssetError::NoTables(folder.to_owned()),
        });
    };
    let mut packer = Packer { archive: tar::Builder::new(Vec::new()), bytes: 0 };
    let mut left_out = LeftOut::default();
    for entry in list(place)? {
        if Split::ALL.iter().all(|split| split.name() != entry.name) && !entry.is_litter() {
            left_out.add(&Member::new(entry.name.as_bytes()));
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
                left_out.add(&Member::new(format!("{split}/{}", entry.name).as_bytes()));
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
    /// What operating systems leave; also whatever is hidden, such as `.git`.
    fn is_litter(&self) -> bool {
        self.name.starts_with('.') || ["Thumbs.db", "desktop.ini", "__MACOSX"].contains(&self.name.as_str())
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
struct Search {
    entries: usize,
    found: Vec<Utf8PathBuf>,
}

impl Search {
    fn look(&mut self, folder: &Utf8Path, depth: usize) -> Result<(), AssetError> {
        let entries = list(folder)?;
        self.entries += entries.len();
        if self.entries > MOST_ENTRIES {
            return Err(AssetError::TooManyFiles(folder.to_owned()));
        }
        let is_split = |name: &str| Split::ALL.iter().any(|split| split.name() == name);
        let mut holds_tables = false;
        for entry in entries.iter().filter(|entry| is_split(&entry.name)) {
            let Some(path) = Utf8Path::from_path(&entry.path).filter(|path| path.is_dir()) else { continue };
            holds_tables |= list(path)?.iter().any(|table| is_like_table(&table.name));
        }
        if holds_tables {
            self.found.push(folder.to_owned());
        }
        for entry in entries.iter().filter(|entry| depth > 0 && !is_split(&entry.name) && !entry.is_litter())
        {
            // A name that is not UTF-8 is no folder of tables, and links may lead in a circle.
            let Some(path) = Utf8Path::from_path(&entry.path) else { continue };
            if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
                match self.look(path, depth - 1) {
                    // What cannot be read below a folder of tables is none of them.
                    Err(AssetError::Io { .. }) => {}
                    looked => looked?,
                }
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
