//! The files of an archive as one stream: decompressed, bounded and vetted, never unpacked.
//!
//! Owns compression, tar and every limit on them; leaves what a file means to its caller. A refused member is refused
//! wherever it stands, also where its content would be ignored. What packers write besides members (volume labels, global
//! headers, lists of folders) is passed over.

use std::cell::Cell;
use std::io::{self, BufReader, Cursor, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use tar::EntryType;
use xz2::bufread::XzDecoder;
use xz2::stream::{CONCATENATED, Stream};

use super::extract_error::{Bound, ExtractError, Member, Near};
use super::formats::{is_tar, name_of_format, without_label};
use super::limits::Limits;
use super::read_ahead::read_ahead;

/// Why a visitor stopped.
#[derive(Debug)]
pub(super) enum VisitError {
    /// Reading the member failed.
    Read(io::Error),
    /// The member's content is refused.
    Refused(ExtractError),
}

/// Shows every file with its path and content to `visit`, in the order of the archive.
pub(super) fn read_members(
    source: impl Read + Send,
    limits: &Limits,
    visit: impl FnMut(&[u8], &mut dyn Read) -> Result<(), VisitError>,
) -> Result<(), ExtractError> {
    let meter = Rc::new(Meter::new(*limits));
    let stream = open(source, &meter)?;
    read_ahead(stream, |stream| read_tar(Metered { stream, meter: Rc::clone(&meter) }, &meter, visit))
        .map_err(ExtractError::NoThread)?
}

fn read_tar(
    stream: impl Read,
    meter: &Meter,
    mut visit: impl FnMut(&[u8], &mut dyn Read) -> Result<(), VisitError>,
) -> Result<(), ExtractError> {
    let limits = meter.limits;
    let mut near = Near(None);
    let mut archive = tar::Archive::new(stream);
    let mut entries = archive.entries().map_err(|error| meter.explain(error, &near))?;
    let mut members = 0;
    loop {
        meter.expect_header();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|error| meter.explain(error, &near))?;
        meter.expect_content();

        let path = entry.path_bytes().into_owned();
        near = Near(Some(Member::new(&path)));
        members += 1;
        if members > limits.members {
            return Err(limits.exceeded(Bound::Members, near));
        }
        if entry.size() > limits.member_bytes {
            return Err(limits.exceeded(Bound::MemberBytes, near));
        }
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader && entry.size() > limits.header_bytes {
            return Err(limits.exceeded(Bound::HeaderBytes, near));
        }
        let extensions = extensions(&mut entry).map_err(|error| meter.explain(error, &near))?;
        let standing = vet(&path, kind, &extensions)?;

        let visited = match standing {
            Standing::File => visit(&path, &mut entry),
            Standing::NoFile => Ok(()),
        };
        let read = visited.and_then(|()| io::copy(&mut entry, &mut io::sink()).map_err(VisitError::Read));
        // What looks ill-formed may only be cut off.
        if meter.ended.get() {
            return Err(ExtractError::Truncated { near });
        }
        match read {
            Ok(_) => {}
            Err(VisitError::Read(error)) => return Err(meter.explain(error, &near)),
            Err(VisitError::Refused(error)) => return Err(error),
        }
    }
    if meter.ended.get() {
        return Err(ExtractError::Truncated { near });
    }
    meter.expect_content();
    read_to_end(archive.into_inner(), meter, near)
}

/// Reads what follows the end mark, so that checksums at the very end of the stream are verified as well.
fn read_to_end(mut stream: impl Read, meter: &Meter, near: Near) -> Result<(), ExtractError> {
    let mut buffer = [0; 8192];
    loop {
        let count = stream.read(&mut buffer).map_err(|error| match meter.explain(error, &near) {
            ExtractError::Damaged { .. } | ExtractError::Truncated { .. } => ExtractError::BadEnd,
            other => other,
        })?;
        if count == 0 {
            return Ok(());
        }
        if buffer[..count].iter().any(|&byte| byte != 0) {
            return Err(ExtractError::TrailingData { near });
        }
    }
}

/// What a header stands for.
enum Standing {
    /// A file with content.
    File,
    /// A folder, or something about the archive itself.
    NoFile,
}

/// What pax headers say of a member, as names and values.
type Extensions = Vec<(String, String)>;

fn extensions(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Extensions> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(Vec::new()) };
    let pairs = extensions.map(|pair| {
        let pair = pair?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(pair.key_bytes()), text(pair.value_bytes())))
    });
    pairs.collect()
}

/// Names in pax headers that say where a member's bytes are.
const ABOUT_CONTENT: [&str; 3] = ["path", "size", "linkpath"];

fn vet(path: &[u8], kind: EntryType, extensions: &Extensions) -> Result<Standing, ExtractError> {
    let special = |kind, mend| Err(ExtractError::SpecialMember { member: Member::new(path), kind, mend });
    let sparse_name = |name: &str| name.starts_with("GNU.sparse.") || name == "SCHILY.realsize";
    if kind == EntryType::XGlobalHeader {
        // Its path is the packer's business, as in `/tmp/GlobalHead.1.1`.
        let redirects = |name: &String| ABOUT_CONTENT.contains(&name.as_str()) || sparse_name(name);
        return match extensions.iter().find(|(name, _)| redirects(name)) {
            Some(_) => special("a header that names or sizes every member after it", ANEW),
            None => Ok(Standing::NoFile),
        };
    }
    if extensions.iter().any(|(name, _)| sparse_name(name)) {
        let name = extensions.iter().find(|(name, _)| name == "GNU.sparse.name");
        let member = Member::new(name.map_or(path, |(_, name)| name.as_bytes()));
        return Err(ExtractError::SpecialMember { member, kind: "a sparse file", mend: NOT_SPARSE });
    }
    if kind.as_byte() == b'V' {
        return Ok(Standing::NoFile); // a label of the archive
    }
    if path.starts_with(b"/") || path.split(|&byte| byte == b'/').any(|component| component == b"..") {
        return Err(ExtractError::UnsafePath { member: Member::new(path) });
    }
    match kind {
        // Old formats tell a folder by its name only.
        EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Ok(Standing::NoFile),
        EntryType::Regular | EntryType::Continuous => Ok(Standing::File),
        EntryType::Directory => Ok(Standing::NoFile),
        EntryType::Link => special("a hard link", PLAIN),
        EntryType::Symlink => special("a symbolic link", PLAIN),
        EntryType::Char | EntryType::Block => special("a device", LEAVE_OUT),
        EntryType::Fifo => special("a named pipe", LEAVE_OUT),
        EntryType::GNUSparse => special("a sparse file", NOT_SPARSE),
        other => match other.as_byte() {
            b'D' => Ok(Standing::NoFile), // a folder and the names in it, of an incremental archive
            b'M' => special("the rest of a file that began in another volume", ANEW),
            _ => special("of an unknown kind", ANEW),
        },
    }
}

const PLAIN: &str = "pack plain files only: `tar --dereference --hard-dereference -cf data.tar data`";
const NOT_SPARSE: &str = "pack it again without `--sparse` (`-S`): `tar -cf data.tar data`";
const LEAVE_OUT: &str =
    "leave it out: remove it from the folder, and pack that again: `tar -cf data.tar data`";
const ANEW: &str = "unpack it where it came from, and pack it again as one volume: `tar -cf data.tar data`";

/// Bytes that tell the formats apart: the first header.
const HEAD: u64 = 512;

fn open<'s>(source: impl Read + Send + 's, meter: &Meter) -> Result<Box<dyn Read + Send + 's>, ExtractError> {
    let explain = |error| meter.explain(error, &Near(None));
    let (head, source) = peek(Source(source)).map_err(explain)?;
    let stream: Box<dyn Read + Send + 's> = if is_tar(&head) {
        return Ok(Box::new(without_label(&head, source)));
    } else if head.starts_with(b"\xfd7zXZ\0") {
        let decoder = Stream::new_stream_decoder(meter.limits.xz_memory_bytes, CONCATENATED)
            .map_err(|error| explain(error.into()))?;
        Box::new(XzDecoder::new_stream(BufReader::new(source), decoder))
    } else if head.starts_with(b"\x1f\x8b") {
        Box::new(MultiGzDecoder::new(BufReader::new(source)))
    } else {
        return Err(not_an_archive("the file", &head));
    };
    let (head, stream) = peek(stream).map_err(explain)?;
    if is_tar(&head) {
        Ok(Box::new(without_label(&head, stream)))
    } else {
        Err(not_an_archive("what it decompresses to", &head))
    }
}

/// The first bytes of a stream, and the whole stream.
fn peek<R: Read>(mut source: R) -> io::Result<(Vec<u8>, impl Read + use<R>)> {
    let mut head = Vec::new();
    source.by_ref().take(HEAD).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(source)))
}

fn not_an_archive(what: &'static str, head: &[u8]) -> ExtractError {
    let start = head[..head.len().min(16)].escape_ascii().to_string();
    ExtractError::NotAnArchive { what, start, format: name_of_format(head) }
}

/// Counts decompressed bytes against the limits, and notices a stream that ends.
struct Meter {
    limits: Limits,
    archive_bytes_left: Cell<u64>,
    /// `Some` between two members, where tar would otherwise collect a name of any length.
    header_bytes_left: Cell<Option<u64>>,
    ended: Cell<bool>,
}

impl Meter {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            archive_bytes_left: Cell::new(limits.archive_bytes),
            header_bytes_left: Cell::new(None),
            ended: Cell::new(false),
        }
    }

    fn expect_header(&self) {
        self.header_bytes_left.set(Some(self.limits.header_bytes));
    }

    fn expect_content(&self) {
        self.header_bytes_left.set(None);
    }

    fn count(&self, bytes: u64) -> Result<(), Exceeded> {
        let left = self.archive_bytes_left.get().checked_sub(bytes).ok_or(Exceeded(Bound::ArchiveBytes))?;
        self.archive_bytes_left.set(left);
        if let Some(left) = self.header_bytes_left.get() {
            let left = left.checked_sub(bytes).ok_or(Exceeded(Bound::HeaderBytes))?;
            self.header_bytes_left.set(Some(left));
        }
        Ok(())
    }

    fn explain(&self, error: io::Error, near: &Near) -> ExtractError {
        let near = near.clone();
        let inner = error.get_ref();
        if let Some(&Exceeded(bound)) = inner.and_then(|inner| inner.downcast_ref()) {
            self.limits.exceeded(bound, near)
        } else if let Some(xz2::stream::Error::MemLimit) = inner.and_then(|inner| inner.downcast_ref()) {
            self.limits.exceeded(Bound::XzMemoryBytes, near)
        } else if let Some(SourceFailure(_)) = inner.and_then(|inner| inner.downcast_ref()) {
            ExtractError::Read { near, source: error }
        } else if self.ended.get() || error.kind() == io::ErrorKind::UnexpectedEof {
            ExtractError::Truncated { near }
        } else {
            ExtractError::Damaged { near, source: error }
        }
    }
}

/// Carries a limit through the layers that only know input errors.
#[derive(Debug, thiserror::Error)]
#[error("too many {0}")]
struct Exceeded(Bound);

/// Tells a file that cannot be read from one that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct SourceFailure(io::Error);

struct Source<R>(R);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| io::Error::new(error.kind(), SourceFailure(error)))
    }
}

struct Metered<R> {
    stream: R,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.meter.ended.set(true);
        }
        self.meter.count(count as u64).map_err(io::Error::other)?;
        Ok(count)
    }
}
