//! Cutting a stream of bytes into lines.
//!
//! A *piece* is a whole line, or a part of one that is longer than [`MAX_LINE`], or what is left when the stream ends.

use memchr::memchr;

/// The most bytes one piece has, its LF not counted. The size that kubelet and containerd use for a log record.
pub const MAX_LINE: usize = 16 * 1024;

/// A line or a part of one, without its LF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// At most [`MAX_LINE`] bytes; none for an empty line.
    pub bytes: &'a [u8],
    /// The line ends here: there was an LF.
    pub ends_line: bool,
}

impl Piece<'_> {
    /// How many bytes of the stream it stands for: with the LF.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // A piece has at most 16 KiB.
    pub fn payload(&self) -> u16 {
        self.bytes.len() as u16 + u16::from(self.ends_line)
    }
}

/// Cuts one stream. The pieces do not depend on how the bytes were split over the calls.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The begin of a line whose LF has not come: at most [`MAX_LINE`] bytes, no memory while empty.
    carry: Vec<u8>,
}

impl LineSplitter {
    /// Hands the next piece to `take` until the bytes are used up or `take` returns false. Returns how many bytes were
    /// used; the others must come again in the next call.
    pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(Piece<'_>) -> bool) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let rest = &bytes[used..];
            let room = MAX_LINE - self.carry.len();
            // One byte more than fits: a line that has exactly the greatest length is whole if its LF comes next.
            let window = &rest[..rest.len().min(room + 1)];
            let more = match memchr(b'\n', window) {
                Some(lf) => {
                    used += lf + 1;
                    self.give(&window[..lf], true, &mut take)
                }
                None if window.len() > room => {
                    used += room;
                    self.give(&window[..room], false, &mut take)
                }
                None => {
                    self.keep(window);
                    return bytes.len();
                }
            };
            if !more {
                break;
            }
        }
        used
    }

    /// The stream has ended: what is left of its last line, if anything.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.carry)).filter(|rest| !rest.is_empty())
    }

    /// Hands out the carry with `tail` behind it. Without a carry nothing is copied.
    fn give(&mut self, tail: &[u8], ends_line: bool, take: &mut impl FnMut(Piece<'_>) -> bool) -> bool {
        if self.carry.is_empty() {
            return take(Piece { bytes: tail, ends_line });
        }
        self.keep(tail);
        let line = std::mem::take(&mut self.carry);
        take(Piece { bytes: &line, ends_line })
    }

    fn keep(&mut self, tail: &[u8]) {
        let len = self.carry.len() + tail.len();
        debug_assert!(len <= MAX_LINE);
        if len > self.carry.capacity() {
            // Doubling as Vec does, but never beyond what a line can need.
            let capacity = len.max(2 * self.carry.capacity()).min(MAX_LINE);
            self.carry.reserve_exact(capacity - self.carry.len());
        }
        self.carry.extend_from_slice(tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pieces = Vec<(Vec<u8>, bool)>;

    fn cut<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Pieces {
        let (mut splitter, mut pieces) = (LineSplitter::default(), Vec::new());
        for part in parts {
            let used = splitter.feed(part, |piece| {
                pieces.push((piece.bytes.to_vec(), piece.ends_line));
                true
            });
            assert_eq!(used, part.len());
            assert!(splitter.carry.capacity() <= MAX_LINE);
        }
        pieces.extend(splitter.finish().map(|rest| (rest, false)));
        pieces
    }

    fn of_len(len: usize) -> Vec<u8> {
        vec![b'x'; len]
    }

    fn sample() -> Vec<u8> {
        let mut text = b"one\n\n\xff\xfe\0\ntwo".to_vec();
        for len in [0, 1, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE, 3 * MAX_LINE + 7] {
            text.extend(of_len(len));
            text.push(b'\n');
        }
        text.extend(b"the end");
        text
    }

    #[test]
    fn a_line_of_the_greatest_length_is_whole_and_one_byte_more_makes_two_pieces() {
        let line = |len| [of_len(len), b"\n".to_vec()].concat();
        assert_eq!(cut([&line(MAX_LINE)[..]]), [(of_len(MAX_LINE), true)]);
        assert_eq!(cut([&line(MAX_LINE + 1)[..]]), [(of_len(MAX_LINE), false), (of_len(1), true)]);
        assert_eq!(cut([&line(2 * MAX_LINE)[..]]), [(of_len(MAX_LINE), false), (of_len(MAX_LINE), true)]);
        assert_eq!(cut([&of_len(MAX_LINE)[..]]), [(of_len(MAX_LINE), false)]);
    }

    #[test]
    fn pieces_do_not_depend_on_how_the_bytes_were_split() {
        let text = sample();
        let whole = cut([&text[..]]);
        assert_eq!(cut(text.chunks(1)), whole);
        for size in [2, 3, 100, 4096, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1] {
            assert_eq!(cut(text.chunks(size)), whole, "chunks of {size}");
        }
    }

    #[test]
    fn pieces_and_line_feeds_together_are_the_input() {
        let joined: Vec<u8> = cut([&sample()[..]])
            .into_iter()
            .flat_map(|(bytes, ends_line)| bytes.into_iter().chain(ends_line.then_some(b'\n')))
            .collect();
        assert_eq!(joined, sample());
    }

    #[test]
    fn a_taker_that_stops_gets_the_rest_in_the_next_call() {
        let text = sample();
        let (mut splitter, mut pieces, mut at) = (LineSplitter::default(), Vec::new(), 0);
        while at < text.len() {
            let part = &text[at..text.len().min(at + 5000)];
            at += splitter.feed(part, |piece| {
                pieces.push((piece.bytes.to_vec(), piece.ends_line));
                false
            });
        }
        pieces.extend(splitter.finish().map(|rest| (rest, false)));
        assert_eq!(pieces, cut([&text[..]]));
    }

    #[test]
    fn no_memory_is_held_between_lines() {
        let mut splitter = LineSplitter::default();
        for part in [&b"half"[..], b" a line\n", b"a whole one\n"] {
            splitter.feed(part, |_| true);
        }
        assert_eq!(splitter.carry.capacity(), 0);
    }
}
