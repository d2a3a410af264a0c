//! Frames: heads, bodies, limits (spec 5.1, 5.11).
//!
//! The payload of DATA passes through in pieces, as it comes; a frame of 16 MiB needs no memory. Control frames wait in
//! the caller's buffer until they are whole, and a head that announces too much is refused before its body is waited for.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

use super::error::{ConnectionError, GoAwayStatus, RstStatus};

/// The longest piece of payload handed out, in bytes: what a queue behind it takes in one step.
pub const MAX_PIECE: usize = 16 << 10;

/// The longest header block taken, compressed, in bytes.
pub(super) const MAX_BLOCK: usize = 64 << 10;
/// The longest SETTINGS frame taken, in bytes behind the head.
const MAX_SETTINGS: usize = 4 << 10;
/// Every frame begins with so many bytes.
const HEAD_LEN: usize = 8;
/// The top bit of a stream id is reserved.
const ID_MASK: u32 = 0x7fff_ffff;

const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// The number of a stream, from 1 to 2^31 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl StreamId {
    /// The id with this number; `None` for what is no id.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (1..=ID_MASK).contains(&number).then_some(Self(number))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// Whether clients open streams with such an id; servers have the even ones.
    pub(super) fn is_odd(self) -> bool {
        self.0 % 2 == 1
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A frame that asks for something. SETTINGS, WINDOW_UPDATE and frames of unknown type are skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// At most [`MAX_PIECE`] bytes of a DATA frame; empty only if `fin`, which comes with the last piece.
    Data {
        id: StreamId,
        fin: bool,
        bytes: Bytes,
    },
    SynStream {
        id: StreamId,
        fin: bool,
        block: Bytes,
    },
    SynReply {
        id: StreamId,
        fin: bool,
        block: Bytes,
    },
    Headers {
        id: StreamId,
        fin: bool,
        block: Bytes,
    },
    RstStream {
        id: StreamId,
        status: RstStatus,
    },
    Ping(u32),
    GoAway {
        last_good: u32,
        status: GoAwayStatus,
    },
}

/// Reads the frames of one peer.
///
/// ```text
///          head of a DATA frame                 head of an unknown frame
///   Head ───────────────────────▶ Payload     Head ─────────────────────▶ Unknown
///     ▲ ◀───── its last byte ───────┘           ▲ ◀──── its last byte ──────┘
///     └─ a whole control frame leaves it here
/// ```
#[derive(Debug, Default)]
pub(super) enum FrameReader {
    /// The next byte is the first of a frame.
    #[default]
    Head,
    /// Inside the payload of a DATA frame, `left` bytes before its end.
    Payload { id: StreamId, fin: bool, left: usize },
    /// Inside a frame nobody knows, `left` bytes before its end.
    Unknown { left: usize },
}

impl FrameReader {
    /// Takes the next frame, or piece of one, from the front of `input`; `None` needs more input.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, ConnectionError> {
        loop {
            match self {
                Self::Payload { id, fin, left } => {
                    let len = input.len().min(*left).min(MAX_PIECE);
                    if len == 0 && *left > 0 {
                        return Ok(None);
                    }
                    *left -= len;
                    let (id, fin, ended) = (*id, *fin && *left == 0, *left == 0);
                    if ended {
                        *self = Self::Head;
                    }
                    if len > 0 || fin {
                        return Ok(Some(Frame::Data { id, fin, bytes: input.split_to(len).freeze() }));
                    }
                }
                Self::Unknown { left } => {
                    let len = input.len().min(*left);
                    input.advance(len);
                    *left -= len;
                    if *left > 0 {
                        return Ok(None);
                    }
                    *self = Self::Head;
                }
                Self::Head => {
                    let Some(head) = input.first_chunk::<HEAD_LEN>() else { return Ok(None) };
                    match Head::parse(*head)? {
                        Head::Data { id, fin, length } => {
                            input.advance(HEAD_LEN);
                            *self = Self::Payload { id, fin, left: length };
                        }
                        Head::Control { kind: SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE, length, .. }
                            if input.len() < HEAD_LEN + length =>
                        {
                            return Ok(None);
                        }
                        Head::Control { kind, fin, length } => {
                            input.advance(HEAD_LEN);
                            match kind {
                                SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE => {
                                    let body = input.split_to(length).freeze();
                                    if let Some(frame) = control_frame(kind, fin, body)? {
                                        return Ok(Some(frame));
                                    }
                                }
                                _ => *self = Self::Unknown { left: length },
                            }
                        }
                    }
                }
            }
        }
    }
}

enum Head {
    Data { id: StreamId, fin: bool, length: usize },
    Control { kind: u16, fin: bool, length: usize },
}

impl Head {
    fn parse([a, b, c, d, flags, high, middle, low]: [u8; HEAD_LEN]) -> Result<Self, ConnectionError> {
        let fin = flags & FLAG_FIN != 0;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if a & 0x80 == 0 {
            let id = StreamId::new(u32::from_be_bytes([a, b, c, d])).ok_or(ConnectionError::StreamZero)?;
            return Ok(Self::Data { id, fin, length });
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != 3 {
            return Err(ConnectionError::Version(version));
        }
        let kind = u16::from_be_bytes([c, d]);
        let (name, allowed) = match kind {
            SYN_STREAM => ("SYN_STREAM", 10..=10 + MAX_BLOCK),
            SYN_REPLY => ("SYN_REPLY", 4..=4 + MAX_BLOCK),
            HEADERS => ("HEADERS", 4..=4 + MAX_BLOCK),
            RST_STREAM => ("RST_STREAM", 8..=8),
            SETTINGS => ("SETTINGS", 4..=MAX_SETTINGS),
            PING => ("PING", 4..=4),
            GOAWAY => ("GOAWAY", 8..=8),
            WINDOW_UPDATE => ("WINDOW_UPDATE", 8..=8),
            _ => return Ok(Self::Control { kind, fin, length }),
        };
        if allowed.contains(&length) {
            Ok(Self::Control { kind, fin, length })
        } else {
            Err(ConnectionError::Length { kind: name, length })
        }
    }
}

/// Reads the body of a control frame, whose length was checked; `None` for one that asks for nothing.
fn control_frame(kind: u16, fin: bool, mut body: Bytes) -> Result<Option<Frame>, ConnectionError> {
    let first = body.get_u32();
    let id = || StreamId::new(first & ID_MASK).ok_or(ConnectionError::StreamZero);
    let frame = match kind {
        SYN_STREAM => {
            // The associated stream, the priority and the slot say nothing to anybody.
            body.advance(6);
            Frame::SynStream { id: id()?, fin, block: body }
        }
        SYN_REPLY => Frame::SynReply { id: id()?, fin, block: body },
        HEADERS => Frame::Headers { id: id()?, fin, block: body },
        RST_STREAM => Frame::RstStream { id: id()?, status: RstStatus(body.get_u32()) },
        PING => Frame::Ping(first),
        GOAWAY => Frame::GoAway { last_good: first & ID_MASK, status: GoAwayStatus(body.get_u32()) },
        SETTINGS if u64::from(first) * 8 > body.len() as u64 => return Err(ConnectionError::SettingsCount(first)),
        _ => return Ok(None),
    };
    Ok(Some(frame))
}

/// An outbound frame, to be written whole and in order: its two parts by one `writev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The head.
    pub head: [u8; HEAD_LEN],
    /// What follows it; may be empty.
    pub body: Bytes,
}

impl Transmit {
    /// Bytes on the wire.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        HEAD_LEN + self.body.len()
    }

    /// `body` has less than 2^24 bytes: payload is cut, blocks are ours, the rest has few bytes.
    fn new([a, b, c, d]: [u8; 4], fin: bool, body: Bytes) -> Self {
        debug_assert!(body.len() < 1 << 24, "a frame's length has 24 bits");
        let [.., high, middle, low] = body.len().to_be_bytes();
        Self { head: [a, b, c, d, if fin { FLAG_FIN } else { 0 }, high, middle, low], body }
    }

    fn control(kind: u16, fin: bool, words: &[u32], block: &[u8]) -> Self {
        let [high, low] = kind.to_be_bytes();
        let mut body = Vec::with_capacity(words.len() * 4 + 2 + block.len());
        words.iter().for_each(|word| body.extend(word.to_be_bytes()));
        if kind == SYN_STREAM {
            body.extend([0, 0]); // Priority and slot.
        }
        body.extend_from_slice(block);
        Self::new([0x80, 3, high, low], fin, body.into())
    }

    pub(super) fn data(id: StreamId, fin: bool, payload: Bytes) -> Self {
        Self::new(id.0.to_be_bytes(), fin, payload)
    }

    pub(super) fn syn_stream(id: StreamId, fin: bool, block: &[u8]) -> Self {
        Self::control(SYN_STREAM, fin, &[id.0, 0], block)
    }

    pub(super) fn syn_reply(id: StreamId, block: &[u8]) -> Self {
        Self::control(SYN_REPLY, false, &[id.0], block)
    }

    pub(super) fn rst_stream(id: StreamId, status: RstStatus) -> Self {
        Self::control(RST_STREAM, false, &[id.0, status.0], &[])
    }

    pub(super) fn ping(number: u32) -> Self {
        Self::control(PING, false, &[number], &[])
    }

    pub(super) fn go_away(last_good: u32, status: GoAwayStatus) -> Self {
        Self::control(GOAWAY, false, &[last_good, status.0], &[])
    }

    /// `None` stands for the whole connection.
    pub(super) fn window_update(id: Option<StreamId>, delta: u32) -> Self {
        Self::control(WINDOW_UPDATE, false, &[id.map_or(0, StreamId::number), delta], &[])
    }
}

#[cfg(test)]
mod tests;
