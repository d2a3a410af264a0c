//! Bytes waiting in memory, with an honest count of what they cost.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// What an entry costs beside its bytes.
const OVERHEAD: usize = 64;
/// Pieces below this are copied: a shared piece keeps the whole buffer it was read into alive, so that a peer sending
/// single bytes would pin a read buffer with each.
const SMALL: usize = 1024;
/// The largest piece that small ones are joined to.
const JOINED: usize = 16 * 1024;

/// What was read into a buffer, without much room behind it: whoever queues bytes counts them alone.
pub(crate) fn compact(bytes: BytesMut) -> BytesMut {
    if bytes.len() < bytes.capacity() / 8 * 7 { BytesMut::from(&bytes[..]) } else { bytes }
}

/// A queue of byte pieces, each with a tag. It has no bound of its own: its owner compares [`ByteQueue::cost`] with the
/// bound it declares, and decides what happens beyond it.
#[derive(Debug)]
pub(crate) struct ByteQueue<T> {
    pieces: VecDeque<(T, Piece)>,
    cost: usize,
}

#[derive(Debug)]
enum Piece {
    Shared(Bytes),
    Own(BytesMut),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.len(),
            Self::Own(bytes) => bytes.len(),
        }
    }
}

impl<T: Copy + PartialEq> ByteQueue<T> {
    pub(crate) fn new() -> Self {
        Self { pieces: VecDeque::new(), cost: 0 }
    }

    /// The memory it holds, in bytes.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    pub(crate) fn push(&mut self, tag: T, bytes: Bytes) {
        if bytes.len() >= SMALL {
            self.cost += bytes.len() + OVERHEAD;
            self.pieces.push_back((tag, Piece::Shared(bytes)));
            return;
        }
        if let Some((last, Piece::Own(own))) = self.pieces.back_mut()
            && *last == tag
            && own.len() + bytes.len() <= JOINED
        {
            own.extend_from_slice(&bytes);
            self.cost += bytes.len();
            return;
        }
        self.cost += bytes.len() + OVERHEAD;
        self.pieces.push_back((tag, Piece::Own(BytesMut::from(&bytes[..]))));
    }

    pub(crate) fn pop(&mut self) -> Option<(T, Bytes)> {
        let (tag, piece) = self.pieces.pop_front()?;
        self.cost -= piece.len() + OVERHEAD;
        if self.pieces.is_empty() {
            // An idle queue holds nothing.
            self.pieces = VecDeque::new();
        }
        Some((
            tag,
            match piece {
                Piece::Shared(bytes) => bytes,
                Piece::Own(bytes) => bytes.freeze(),
            },
        ))
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }

    /// The pieces, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (T, &[u8])> {
        self.pieces.iter().map(|(tag, piece)| match piece {
            Piece::Shared(bytes) => (*tag, &bytes[..]),
            Piece::Own(bytes) => (*tag, &bytes[..]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A queue of 256 KiB held 2 MiB of them: `seq` writes 4 KiB at a time, and each was kept in the 32 KiB it was read into.
    #[test]
    fn a_short_read_kept_the_whole_of_its_buffer() {
        for length in [0, 1, 1024, 4096, 16 * 1024, 28 * 1024, 32 * 1024] {
            let mut buffer = BytesMut::with_capacity(32 * 1024);
            buffer.extend_from_slice(&vec![b'x'; length]);
            let kept = compact(buffer);
            assert!(
                kept.len() == length && kept.capacity() <= length + length / 7 + 8,
                "{length}: {}",
                kept.capacity()
            );
        }
    }

    #[test]
    fn single_bytes_do_not_pin_their_read_buffers() {
        let mut queue = ByteQueue::new();
        for _ in 0..10_000 {
            queue.push((), Bytes::from(vec![b'x'; 16 * 1024]).slice(0..1));
        }
        assert!(queue.cost() < 10_000 + 2 * OVERHEAD);
        assert_eq!(queue.pop().unwrap().1.len(), 10_000);
        assert_eq!((queue.cost(), queue.pop()), (0, None));
    }

    #[test]
    fn order_and_tags_survive_joining() {
        let mut queue = ByteQueue::new();
        for (tag, text) in [(1, "a"), (1, "b"), (2, "c"), (1, "d")] {
            queue.push(tag, Bytes::from_static(text.as_bytes()));
        }
        queue.push(1, Bytes::from(vec![b'L'; SMALL]));
        queue.push(1, Bytes::from_static(b"e"));
        let all: Vec<(i32, usize)> = std::iter::from_fn(|| queue.pop()).map(|(t, b)| (t, b.len())).collect();
        assert_eq!(all, [(1, 2), (2, 1), (1, 1), (1, SMALL), (1, 1)]);
        assert_eq!(queue.cost(), 0);
    }
}
