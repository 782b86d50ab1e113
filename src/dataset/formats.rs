//! What bytes are, told by their first ones: tar of any age, and what people give in place of a table or an archive.

use std::io::{self, Read};

/// A kind of file, and what makes of it what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// As in "it is …".
    pub name: &'static str,
    /// A command, or what to do.
    pub mend: &'static str,
}

const fn format(name: &'static str, mend: &'static str) -> Format {
    Format { name, mend }
}

/// First bytes of files that are neither text nor what is read here.
const FORMATS: [(&[u8], Format); 9] = [
    (b"\x1f\x8b", format("compressed by gzip", "decompress it: `gunzip FILE.gz`")),
    (b"\xfd7zXZ\0", format("compressed by xz", "decompress it: `unxz FILE.xz`")),
    (b"\x28\xb5\x2f\xfd", format("compressed by zstd", "decompress it: `unzstd FILE.zst`")),
    (b"BZh91AY&SY", format("compressed by bzip2", "decompress it: `bunzip2 FILE.bz2`")),
    (b"\x04\x22\x4d\x18", format("compressed by lz4", "decompress it: `unlz4 FILE.lz4`")),
    (
        b"PK\x03\x04",
        format("a zip, as spreadsheets are, too", "unpack it, and save spreadsheets as CSV in UTF-8"),
    ),
    (b"7z\xbc\xaf\x27\x1c", format("a 7z archive", "unpack it: `7z x FILE.7z`")),
    (b"PAR1\x15", format("a Parquet table", "save it as CSV, without header and index")),
    (
        b"version https://git-lfs",
        format("a pointer of Git LFS, not the file itself", "get the file in its repository: `git lfs pull`"),
    ),
];

/// What a file is, where its first bytes tell that it is neither text nor tar.
pub(super) fn name_of_format(head: &[u8]) -> Option<Format> {
    FORMATS.iter().find(|(start, _)| head.starts_with(start)).map(|(_, format)| *format)
}

/// What the first bytes of a table are, where they are no UTF-8 text.
pub(super) fn name_of_encoding(head: &[u8]) -> Option<Format> {
    let utf_32 = format("UTF-32, not UTF-8", "convert the file: `iconv -f utf-32 -t utf-8 FILE > NEW`");
    let utf_16 = format("UTF-16, not UTF-8", "convert the file: `iconv -f utf-16 -t utf-8 FILE > NEW`");
    let unmarked = |name, mend| Some(format(name, mend));
    if head.starts_with(b"\xff\xfe\0\0") || head.starts_with(b"\0\0\xfe\xff") {
        return Some(utf_32);
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Some(utf_16);
    }
    // Text of mostly Latin letters in two bytes each has a zero in every second place.
    let start = &head[..head.len().min(64) / 2 * 2];
    let zeros = |first: usize| start.iter().skip(first).step_by(2).filter(|byte| **byte == 0).count();
    match (zeros(0), zeros(1)) {
        (0, odd) if odd * 4 > start.len() => {
            unmarked("UTF-16, not UTF-8", "convert the file: `iconv -f utf-16le -t utf-8 FILE > NEW`")
        }
        (even, 0) if even * 4 > start.len() => {
            unmarked("UTF-16, not UTF-8", "convert the file: `iconv -f utf-16be -t utf-8 FILE > NEW`")
        }
        _ => name_of_format(head),
    }
}

/// Whether a first block begins a tar: by its magic number, or in the format of before 1988 by its checksum.
pub(super) fn is_tar(block: &[u8]) -> bool {
    block.get(257..262) == Some(b"ustar") || has_checksum(block)
}

/// Whether a block is a header by its checksum: all bytes summed, those of the checksum itself as spaces.
fn has_checksum(block: &[u8]) -> bool {
    let Some(block) = block.first_chunk::<512>() else { return false };
    let digits = block[148..156].iter().map(|&byte| byte as char).collect::<String>();
    let digits = digits.trim_matches([' ', '\0']);
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    let of_field: u64 = block[148..156].iter().map(|&byte| u64::from(byte)).sum();
    // A block of zeros is the end of an archive.
    block[0] != 0 && u64::from_str_radix(digits, 8) == Ok(sum - of_field + 8 * u64::from(b' '))
}

/// The stream behind a volume label, where the first block is one: GNU tar leaves its size empty, which no header may.
pub(super) fn without_label<R: Read>(head: &[u8], stream: R) -> impl Read + use<R> {
    let is_label = head.get(156) == Some(&b'V') && has_checksum(head);
    Behind { left: if is_label { head.len() } else { 0 }, stream }
}

/// A stream without its first bytes.
struct Behind<R> {
    left: usize,
    stream: R,
}

impl<R: Read> Read for Behind<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left > 0 {
            let mut skipped = [0; 512];
            let most = self.left.min(skipped.len());
            let count = self.stream.read(&mut skipped[..most])?;
            if count == 0 {
                return Ok(0);
            }
            self.left -= count;
        }
        self.stream.read(buffer)
    }
}
