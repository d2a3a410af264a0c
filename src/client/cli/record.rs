//! Records of a CRI log as the kubelet reads them: `TIMESTAMP STREAM TAG TEXT`; control-api.md 6.1.

use std::ops::Range;

use crate::model::StdStream;

/// One line of the log file, borrowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) timestamp: &'a [u8],
    pub(super) stream: StdStream,
    /// Whether the container's line goes on in the next record of this stream.
    pub(super) partial: bool,
    /// What the container wrote, without the newline that ends the record.
    pub(super) text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes a line of the file without its newline. `None` when it is not a record.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let (timestamp, rest) = split(line)?;
        let (stream, rest) = split(rest)?;
        let (tag, text) = split(rest)?;
        let stream = match stream {
            b"stdout" => StdStream::Stdout,
            b"stderr" => StdStream::Stderr,
            _ => return None,
        };
        // The kubelet takes tags with a colon-separated rest and looks at the first one only.
        let partial = match tag.split(|byte| *byte == b':').next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { timestamp, stream, partial, text })
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b' ', bytes)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// Cuts a file that is read in pieces into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    taken: usize,
}

impl Lines {
    /// Adds bytes behind those that wait for their newline. Invalidates ranges of [`Lines::next`].
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, for [`Lines::line`].
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        let start = self.taken;
        let end = start + memchr::memchr(b'\n', &self.buffer[start..])?;
        self.taken = end + 1;
        Some(start..end)
    }

    /// The line without its newline.
    pub(super) fn line(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Bytes that wait for their newline.
    pub(super) fn pending(&self) -> usize {
        self.buffer.len() - self.taken
    }

    /// Forgets what waits for its newline: the file it came from is gone.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart_and_other_lines_refused() {
        let parse = |line: &'static str| Record::parse(line.as_bytes());
        let record = parse("2026-11-21T20:00:00.000000000Z stderr P a b ").unwrap();
        assert_eq!((record.stream, record.partial, record.text), (StdStream::Stderr, true, &b"a b "[..]));
        assert_eq!(parse("t stdout F ").unwrap().text, b"");
        assert!(!parse("t stdout F:x y").unwrap().partial);
        for bad in ["", "t", "t stdout", "t stdout F", "t stdin F x", "t stdout X x", "{\"log\":1}"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn lines_come_whole_however_the_file_was_cut() {
        let text = b"one\n\nthree\nrest";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for piece in [&text[..cut], &text[cut..]] {
                lines.feed(piece);
                while let Some(range) = lines.next() {
                    got.push(lines.line(range).to_vec());
                }
            }
            assert_eq!(got, [&b"one"[..], b"", b"three"], "cut at {cut}");
            assert_eq!(lines.pending(), 4);
        }
    }
}
