//! Buffered, bounded, non-blocking byte streams.

use std::io::{self, Read, Write};

/// Bytes read per call.
const CHUNK: usize = 8192;

/// What reading from a peer gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// More bytes may come.
    Open,
    /// The peer sends no more.
    Closed,
    /// The peer sent more than the limit without being served.
    TooMuch,
}

/// A connected stream with its input and output buffers.
#[derive(Debug)]
pub struct Buffered<S> {
    /// The stream, non-blocking.
    pub io: S,
    /// Bytes read and not consumed.
    pub input: Vec<u8>,
    output: Vec<u8>,
    limit: usize,
}

impl<S: Read + Write> Buffered<S> {
    /// Buffers at most `limit` bytes each way.
    pub const fn new(io: S, limit: usize) -> Self {
        Self {
            io,
            input: Vec::new(),
            output: Vec::new(),
            limit,
        }
    }

    /// Reads what is there.
    pub fn fill(&mut self) -> io::Result<Input> {
        let mut chunk = [0; CHUNK];
        loop {
            match self.io.read(&mut chunk) {
                Ok(0) => return Ok(Input::Closed),
                Ok(n) => {
                    self.input.extend(chunk.iter().take(n));
                    if self.input.len() > self.limit {
                        return Ok(Input::TooMuch);
                    }
                }
                Err(e) if is_for_later(&e) => return Ok(Input::Open),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes the bytes up to and without the next line feed.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|b| *b == b'\n')?;
        let mut line: Vec<u8> = self.input.drain(..=end).collect();
        line.pop();
        Some(line)
    }

    /// Queues `bytes`; false if the peer reads too slowly for the limit.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if self.output.len() + bytes.len() > self.limit {
            return false;
        }
        self.output.extend_from_slice(bytes);
        true
    }

    /// Writes what the peer takes now; true if nothing is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.io.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if is_for_later(&e) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

/// Nothing can be read or written now, or the kernel has no memory for it.
fn is_for_later(e: &io::Error) -> bool {
    let shortage = matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS));
    shortage || e.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every other call fails.
    struct Short {
        fails: bool,
        written: Vec<u8>,
    }

    impl Short {
        fn turn(&mut self) -> io::Result<()> {
            self.fails = !self.fails;
            match self.fails {
                true => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                false => Ok(()),
            }
        }
    }

    impl Read for Short {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.turn()?;
            buf.fill(b'x');
            Ok(buf.len())
        }
    }

    impl Write for Short {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.turn()?;
            self.written.extend_from_slice(buf);
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_kernel_without_memory_is_asked_again_later() {
        let io = Short {
            fails: false,
            written: Vec::new(),
        };
        let mut stream = Buffered::new(io, 1 << 16);
        assert!(stream.push(b"answer"));
        assert!(!stream.flush().unwrap());
        assert!(stream.flush().unwrap());
        assert_eq!(stream.io.written, b"answer");
        assert_eq!(stream.fill().unwrap(), Input::Open);
        assert_eq!(stream.fill().unwrap(), Input::Open);
        assert_eq!(stream.input.len(), CHUNK);
    }
}
