//! Decoding on a thread of its own, so that it overlaps with what is done with the decoded bytes. Main type:
//! [`ReadAhead`].

use std::io::{self, Cursor, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::thread::NoThread;

/// Bytes of one chunk, and how many chunks are decoded ahead.
const CHUNK: usize = 64 * 1024;
const DEPTH: usize = 8;

/// The far end of a stream that a thread reads.
pub(super) struct ReadAhead {
    chunks: Receiver<io::Result<Vec<u8>>>,
    current: Cursor<Vec<u8>>,
}

/// Gives `stream` to `consume`, some chunks ahead of it. Reading stops when `consume` is done with the stream.
///
/// # Errors
/// When the system refuses a thread.
pub(super) fn read_ahead<T>(
    stream: impl Read + Send,
    consume: impl FnOnce(ReadAhead) -> T,
) -> Result<T, NoThread> {
    thread::scope(|scope| {
        let (sender, chunks) = sync_channel(DEPTH);
        thread::Builder::new()
            .spawn_scoped(scope, move || send_chunks(stream, &sender))
            .map_err(NoThread::Refused)?;
        Ok(consume(ReadAhead { chunks, current: Cursor::default() }))
    })
}

/// Sends until the stream ends or fails, or nobody listens any more.
fn send_chunks(mut stream: impl Read, sender: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = stream.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        let ended = chunk.len() < CHUNK;
        if sender.send(Ok(chunk)).is_err() {
            return;
        }
        if let Err(error) = read {
            // Whoever stopped listening no longer needs the error.
            let _ = sender.send(Err(error));
            return;
        }
        if ended {
            return;
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.chunks.recv() {
                Ok(chunk) => self.current = Cursor::new(chunk?),
                Err(_) => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_before_an_error_arrive_before_it() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let bytes = vec![7; 3 * CHUNK + 5];
        let mut read = Vec::new();
        let error = read_ahead(bytes.as_slice().chain(Failing), |mut stream| {
            stream.read_to_end(&mut read).unwrap_err()
        })
        .unwrap();
        assert_eq!(error.to_string(), "gone");
        assert_eq!(read, bytes);
    }

    #[test]
    fn an_endless_stream_stops_with_its_reader() {
        let mut start = [0; 10];
        read_ahead(io::repeat(7), |mut stream| stream.read_exact(&mut start)).unwrap().unwrap();
        assert_eq!(start, [7; 10]);
    }
}
