//! The members of an archive as one stream: decompressed, bounded and vetted, never unpacked.
//!
//! Owns compression, tar and every limit on them; leaves what a member means to its caller. A refused member is refused
//! wherever it stands, also where its content would be ignored.

use std::cell::Cell;
use std::io::{self, BufReader, Cursor, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use tar::EntryType;

use super::extract_error::{Bound, ExtractError, Member, Near};
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

/// Shows every member with its path and content to `visit`, in the order of the archive.
pub(super) fn read_members(
    source: impl Read + Send,
    limits: &Limits,
    visit: impl FnMut(&[u8], &mut dyn Read) -> Result<(), VisitError>,
) -> Result<(), ExtractError> {
    let meter = Rc::new(Meter::new(*limits));
    let stream = open(source, &meter)?;
    read_ahead(stream, |stream| read_tar(Metered { stream, meter: Rc::clone(&meter) }, &meter, visit))
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
        vet(&path, entry.header().entry_type())?;
        members += 1;
        if members > limits.members {
            return Err(limits.exceeded(Bound::Members, near));
        }
        if entry.size() > limits.member_bytes {
            return Err(limits.exceeded(Bound::MemberBytes, near));
        }

        let read = visit(&path, &mut entry)
            .and_then(|()| io::copy(&mut entry, &mut io::sink()).map_err(VisitError::Read));
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

fn vet(path: &[u8], kind: EntryType) -> Result<(), ExtractError> {
    let member = || Member::new(path);
    if path.starts_with(b"/") || path.split(|&byte| byte == b'/').any(|component| component == b"..") {
        return Err(ExtractError::UnsafePath { member: member() });
    }
    let kind = match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::Directory | EntryType::XGlobalHeader => {
            return Ok(());
        }
        EntryType::Link => "a hard link",
        EntryType::Symlink => "a symbolic link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a named pipe",
        EntryType::GNUSparse => "a sparse file",
        _ => "of an unknown kind",
    };
    Err(ExtractError::SpecialMember { member: member(), kind })
}

/// Bytes that tell the formats apart: tar names itself at byte 257.
const HEAD: u64 = 262;

fn open<'s>(source: impl Read + Send + 's, meter: &Meter) -> Result<Box<dyn Read + Send + 's>, ExtractError> {
    let explain = |error| meter.explain(error, &Near(None));
    let (head, source) = peek(Source(source)).map_err(explain)?;
    let stream: Box<dyn Read + Send + 's> = if is_tar(&head) {
        return Ok(Box::new(source));
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
    if is_tar(&head) { Ok(Box::new(stream)) } else { Err(not_an_archive("what it decompresses to", &head)) }
}

/// The first bytes of a stream, and the whole stream.
fn peek<R: Read>(mut source: R) -> io::Result<(Vec<u8>, impl Read + use<R>)> {
    let mut head = Vec::new();
    source.by_ref().take(HEAD).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(source)))
}

fn is_tar(head: &[u8]) -> bool {
    head.ends_with(b"ustar")
}

fn not_an_archive(what: &'static str, head: &[u8]) -> ExtractError {
    let start = head[..head.len().min(16)].escape_ascii().to_string();
    ExtractError::NotAnArchive { what, start }
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
        } else if let Some(liblzma::stream::Error::MemLimit) = inner.and_then(|inner| inner.downcast_ref()) {
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
