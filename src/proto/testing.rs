//! What the tests of the cores share.

use std::fmt::Debug;

use bytes::BytesMut;

/// Feeds `bytes` to a fresh decoder whole, byte by byte, and at pseudo-random cuts, and returns the events, which must be
/// the same each time.
///
/// `feed` gets the decoder, the input buffer (with what it left there before) and the events so far. A decoder that hands
/// payload out in pieces joins them there: where a piece ends is the one thing that may depend on the cuts.
pub(crate) fn split_invariant<D, E: PartialEq + Debug>(
    bytes: &[u8],
    make_decoder: impl Fn() -> D,
    feed: impl Fn(&mut D, &mut BytesMut, &mut Vec<E>),
) -> Vec<E> {
    let run = |next_cut: &mut dyn FnMut() -> usize| {
        let (mut decoder, mut input, mut events) = (make_decoder(), BytesMut::new(), Vec::new());
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(next_cut().clamp(1, rest.len()));
            input.extend_from_slice(now);
            feed(&mut decoder, &mut input, &mut events);
            rest = later;
        }
        events
    };
    let whole = run(&mut || usize::MAX);
    assert_eq!(run(&mut || 1), whole, "byte by byte");
    for seed in 1..=32 {
        let mut random = Random(seed);
        assert_eq!(run(&mut || random.below(40)), whole, "random cuts, seed {seed}");
    }
    whole
}

/// Deterministic pseudo-random numbers (xorshift64): a failure can be run again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is below a usize")
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// A frame as a client sends it: `first` is the byte with FIN, RSV and the opcode, `payload` is not masked yet.
pub(crate) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | u8::try_from(len).expect("below 126")),
        len @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(len).expect("below 65536").to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
