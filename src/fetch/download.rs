//! One file: downloaded, resumed, verified while it passes, and put in its place. Main type: [`Download`].

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::FetchError;
use super::client::{Client, Content, Resume, Target, Trouble, judge_io};
use super::patience::Patience;
use crate::digest::{Digest, DigestReader, DigestWriter};

const BLOCK: usize = 256 << 10;

/// A file that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Where it can be had, best first.
    pub(super) addresses: Vec<String>,
    /// Where its licence is accepted.
    pub(super) licence_page: String,
    /// Its digest.
    pub(super) sha256: Digest,
    /// Its size in bytes, where it is known.
    pub(super) size: Option<u64>,
    /// Where it will lie.
    pub(super) path: Utf8PathBuf,
    /// Where it may lie already: in the hub's own cache.
    pub(super) cached: Option<Utf8PathBuf>,
}

impl Wanted {
    fn part(&self) -> Utf8PathBuf {
        Utf8PathBuf::from(format!("{}.part", self.path))
    }

    fn note(&self) -> Utf8PathBuf {
        Utf8PathBuf::from(format!("{}.part.json", self.path))
    }

    /// Bytes that are still to come, if that is known.
    pub(super) fn missing_bytes(&self) -> u64 {
        let there = fs::metadata(self.part()).map_or(0, |part| part.len());
        self.size.unwrap_or(0).saturating_sub(there)
    }
}

/// `<file>.part.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartNote {
    etag: Option<String>,
}

/// How one file is fetched.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) patience: Patience,
    /// Is told of every block that came, and of blocks that are thrown away (negative); says whether to go on.
    pub(super) progress: &'a (dyn Fn(i64) -> bool + Sync),
    /// Is told why the file is asked for again.
    pub(super) retry: &'a (dyn Fn(&str) + Sync),
}

/// The part that is there, open at its end, with the digest of what it holds.
struct Part {
    file: DigestWriter<fs::File>,
    etag: Option<String>,
    /// Whether all of it came in one answer.
    whole: bool,
}

impl Part {
    fn length(&self) -> u64 {
        self.file.bytes()
    }
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in its place.
    Placed,
    /// It was told to stop; a part of it may be there.
    Stopped,
}

/// How a try ended.
enum End {
    Complete,
    Stopped,
    Cut(Trouble),
}

impl Download<'_> {
    /// Fetches the file from the first address that has it.
    ///
    /// # Errors
    /// Of the first address, when no address has it.
    pub(super) fn fetch(&self, wanted: &Wanted) -> Result<Outcome, FetchError> {
        let folder = wanted.path.parent().expect("a wanted file has a folder");
        fs::create_dir_all(folder).map_err(|source| FetchError::Io { path: folder.to_owned(), source })?;
        let there = fs::metadata(wanted.part()).map_or(0, |part| part.len());
        (self.progress)(signed(there));
        let mut addresses = wanted.addresses.iter().map(|address| self.client.rebase(address));
        let mut address = addresses.next().expect("a wanted file has an address");
        let mut first_error = None;
        loop {
            match (self.fetch_from(wanted, &address), addresses.next()) {
                (Err(error), None) => return Err(first_error.unwrap_or(error)),
                (Err(error), Some(next)) if !matches!(error, FetchError::Io { .. }) => {
                    (self.retry)(&format!("failed to {error}; trying another address"));
                    first_error.get_or_insert(error);
                    address = next;
                }
                (outcome, _) => return outcome,
            }
        }
    }

    fn fetch_from(&self, wanted: &Wanted, address: &str) -> Result<Outcome, FetchError> {
        let failed = |source| FetchError::Io { path: wanted.part(), source };
        let mut part = open_part(wanted).map_err(failed)?;
        let (mut failures, mut fresh) = (0, false);
        loop {
            let before = part.length();
            let end = match wanted.size {
                Some(size) if size == before => End::Complete,
                _ => self.try_once(wanted, address, &mut part)?,
            };
            let trouble = match end {
                End::Stopped => return Ok(Outcome::Stopped),
                End::Cut(trouble) => trouble,
                End::Complete => {
                    let in_pieces = !part.whole && !fresh;
                    match self.place(wanted, address, part) {
                        Err(FetchError::WrongDigest { .. }) if in_pieces => {}
                        placed => return placed.map(|()| Outcome::Placed),
                    }
                    // The pieces may be of different contents, or the disk lost some in a crash.
                    (self.retry)(&format!("{address} has another digest in pieces; fetching it whole"));
                    part = open_part(wanted).map_err(failed)?;
                    fresh = true;
                    continue;
                }
            };
            let came = part.length().saturating_sub(before);
            failures = if came >= self.patience.least_bytes { 0 } else { failures + 1 };
            let pause = self.judge(address, trouble, failures)?;
            if !self.wait(pause) {
                return Ok(Outcome::Stopped);
            }
        }
    }

    /// Puts a complete part in its place, or throws it away if its digest is wrong.
    fn place(&self, wanted: &Wanted, address: &str, part: Part) -> Result<(), FetchError> {
        let failed = |source| FetchError::Io { path: wanted.path.clone(), source };
        let (mut file, found, length) = part.file.finish();
        if found != wanted.sha256 {
            (self.progress)(-signed(length));
            remove(&wanted.part()).and_then(|()| remove(&wanted.note())).map_err(failed)?;
            return Err(FetchError::WrongDigest {
                address: address.to_owned(),
                expected: wanted.sha256,
                found,
            });
        }
        file.flush().and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(wanted.part(), &wanted.path).map_err(failed)?;
        remove(&wanted.note()).map_err(failed)
    }

    /// How long to pause after so many failures in a row, if another try is worth it.
    fn judge(&self, address: &str, trouble: Trouble, failures: u32) -> Result<Duration, FetchError> {
        let (problem, wait, rate_limited) = match trouble {
            Trouble::Lasting(error) => return Err(error),
            Trouble::Passing { problem, wait, rate_limited } => (problem, wait, rate_limited),
            Trouble::OutOfRange => ("it does not go on where it ended".to_owned(), None, false),
        };
        let pause = self.patience.pause(failures, wait);
        if failures < self.patience.tries && pause <= self.patience.longest_pause {
            (self.retry)(&format!("{address}: {problem}; trying again in {:.0} s", pause.as_secs_f64()));
            return Ok(pause);
        }
        let (address, tries) = (address.to_owned(), failures);
        Err(if rate_limited {
            FetchError::RateLimited { address, tries }
        } else {
            FetchError::Unreachable { address, tries, problem }
        })
    }

    /// Sleeps; says whether to go on.
    fn wait(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        while (self.progress)(0) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(Duration::from_millis(200)));
        }
        false
    }

    /// Asks once, and takes what comes.
    fn try_once(&self, wanted: &Wanted, address: &str, part: &mut Part) -> Result<End, FetchError> {
        let failed = |source| FetchError::Io { path: wanted.part(), source };
        let target = Target { address, licence_page: &wanted.licence_page };
        let resume = Resume { offset: part.length(), etag: part.etag.clone() };
        let content = match self.client.get(target, &resume) {
            Ok(content) => content,
            Err(Trouble::OutOfRange) => {
                // All of it may be there; if not, what is there is of no use.
                if wanted.size.is_none() && read_part(wanted).map_err(failed)?.0 == wanted.sha256 {
                    return Ok(End::Complete);
                }
                self.restart(wanted, part).map_err(failed)?;
                return Ok(End::Cut(Trouble::OutOfRange));
            }
            Err(trouble) => return Ok(End::Cut(trouble)),
        };
        if let (Some(expected), Some(found)) = (wanted.size, content.size)
            && expected != found
        {
            return Err(FetchError::WrongSize { address: address.to_owned(), expected, found });
        }
        if content.offset != part.length() {
            self.restart(wanted, part).map_err(failed)?;
        }
        part.whole = part.length() == 0;
        part.etag.clone_from(&content.etag);
        let note =
            serde_json::to_vec(&PartNote { etag: content.etag.clone() }).expect("a note has a JSON form");
        fs::write(wanted.note(), note).map_err(failed)?;
        self.receive(wanted, address, content, part)
    }

    /// Takes what comes, until it ends or comes too slowly.
    fn receive(
        &self,
        wanted: &Wanted,
        address: &str,
        content: Content,
        part: &mut Part,
    ) -> Result<End, FetchError> {
        let failed = |source| FetchError::Io { path: wanted.part(), source };
        let (size, mut body) = (wanted.size.or(content.size), content.body.into_reader());
        let mut block = vec![0; BLOCK];
        let mut window = Instant::now();
        let mut window_bytes = 0;
        loop {
            let count = match body.read(&mut block) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(End::Cut(judge_io(address, &error))),
            };
            if count == 0 {
                return Ok(match size {
                    Some(size) if part.length() < size => End::Cut(Trouble::passing("it ended early")),
                    _ => End::Complete,
                });
            }
            let found = part.length() + count as u64;
            if let Some(expected) = wanted.size.filter(|size| *size < found) {
                self.restart(wanted, part).map_err(failed)?;
                return Err(FetchError::WrongSize { address: address.to_owned(), expected, found });
            }
            part.file.write_all(&block[..count]).map_err(failed)?;
            if !(self.progress)(signed(count as u64)) {
                return Ok(End::Stopped);
            }
            window_bytes += count as u64;
            if window.elapsed() >= self.patience.stall {
                if window_bytes < self.patience.least_bytes {
                    let seconds = window.elapsed().as_secs_f64();
                    let problem = format!("only {window_bytes} bytes came in {seconds:.0} s");
                    return Ok(End::Cut(Trouble::passing(problem)));
                }
                (window, window_bytes) = (Instant::now(), 0);
            }
        }
    }

    /// Throws away what is there.
    fn restart(&self, wanted: &Wanted, part: &mut Part) -> io::Result<()> {
        (self.progress)(-signed(part.length()));
        remove(&wanted.part())?;
        *part = open_part(wanted)?;
        Ok(())
    }
}

/// Opens the part at its end, after reading it, and makes it if need be. One that is too long is thrown away.
fn open_part(wanted: &Wanted) -> io::Result<Part> {
    let mut file =
        fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(wanted.part())?;
    if wanted.size.is_some_and(|size| file.metadata().is_ok_and(|part| part.len() > size)) {
        file.set_len(0)?;
    }
    let note: Option<PartNote> =
        fs::read(wanted.note()).ok().and_then(|text| serde_json::from_slice(&text).ok());
    file.seek(SeekFrom::Start(0))?;
    let written = file.try_clone()?; // both share one position: after the reading it is the end
    let file = DigestWriter::resume(file, written)?;
    Ok(Part { file, etag: note.and_then(|note| note.etag), whole: false })
}

fn read_part(wanted: &Wanted) -> io::Result<(Digest, u64)> {
    let mut reader = DigestReader::new(fs::File::open(wanted.part())?);
    io::copy(&mut reader, &mut io::sink())?;
    Ok(reader.finish())
}

fn remove(path: &Utf8Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
