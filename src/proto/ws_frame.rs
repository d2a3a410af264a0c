//! WebSocket frames (RFC 6455, section 5), as a server reads and writes them.
//!
//! Inbound payload is streamed, never assembled: clients send messages of 16 MiB, and a reader that collects a frame needs
//! that much memory per session. [`FrameReader`] takes a head, then hands payload out in pieces as it comes, unmasked in
//! place in the buffer it was read into. Only control frames (at most 125 bytes, also between the fragments of a message)
//! are collected, and they wait in the caller's buffer.
//!
//! Text and binary are equal, and text is not checked for UTF-8: clients send any bytes as text (streaming spec 2.4).
//! Extensions are never agreed on, so reserved bits are an error. Outbound frames are whole: a head by
//! [`data_head`] or [`text_head`], then the payload. The head codec is tungstenite's.

use std::io::Cursor;
use std::ops::Deref;

use bytes::{Buf, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// The longest message taken, in bytes, over all its fragments. Java clients send up to 15 MiB + 1; upstream's limit is
/// 32 MiB (spec 1.9).
pub const MAX_MESSAGE: usize = 32 << 20;

/// The longest piece of payload handed out, in bytes: what a queue behind it takes in one step.
pub const MAX_PIECE: usize = 16 << 10;

/// The longest payload of a control frame, in bytes (RFC 6455, section 5.5).
const MAX_CONTROL: usize = 125;

/// Something that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// Payload of a message, text or binary.
    Data {
        /// It starts a message.
        first: bool,
        /// It ends the message.
        last: bool,
        /// At most [`MAX_PIECE`] bytes; empty only if `last`.
        bytes: Bytes,
    },
    /// To be answered with a pong of the same payload.
    Ping(Bytes),
    /// Asks for nothing.
    Pong,
    /// The client's last frame, with its code if it named one.
    Close(Option<u16>),
}

/// Reads the frames of one client.
///
/// ```text
///          head of a data frame                 Close frame, or an error
///   Head ──────────────────────▶ Payload      Head ──────────────────▶ Finished
///     ▲ ◀──────────────────────────┘           (what follows is discarded)
///     └─ a whole control frame leaves it here
/// ```
#[derive(Debug, Default)]
pub struct FrameReader {
    state: State,
    /// The message a frame of which has come, unless its last frame is complete.
    message: Option<Message>,
    /// Text is refused.
    binary: bool,
}

#[derive(Debug, Default)]
enum State {
    /// The next byte is the first of a frame.
    #[default]
    Head,
    /// Inside the payload of a data frame, `left` bytes before its end.
    Payload {
        mask: [u8; 4],
        left: usize,
        /// It is the last frame of its message.
        fin: bool,
    },
    /// Nothing more is read.
    Finished,
}

#[derive(Debug)]
struct Message {
    /// Bytes announced by the heads of its frames so far; at most [`MAX_MESSAGE`].
    announced: usize,
    /// A piece of it was handed out.
    begun: bool,
}

impl FrameReader {
    /// A reader for a connection that starts with a frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same for a protocol that has no text messages.
    #[must_use]
    pub fn binary() -> Self {
        Self { binary: true, ..Self::default() }
    }

    /// Takes the next event from the front of `input`; `None` needs more input.
    ///
    /// After a Close frame and after an error every further byte is discarded, so that the caller can go on reading until
    /// the client has closed (spec 2.9).
    ///
    /// # Errors
    /// The client broke the protocol: close with [`FrameError::close_code`].
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Inbound>, FrameError> {
        let result = self.advance(input);
        if matches!(result, Err(_) | Ok(Some(Inbound::Close(_)))) {
            self.state = State::Finished;
        }
        result
    }

    fn advance(&mut self, input: &mut BytesMut) -> Result<Option<Inbound>, FrameError> {
        loop {
            match &mut self.state {
                State::Finished => {
                    input.clear();
                    return Ok(None);
                }
                State::Payload { mask, left, fin } => {
                    let len = input.len().min(*left).min(MAX_PIECE);
                    if len == 0 && *left > 0 {
                        return Ok(None);
                    }
                    let bytes = take_unmasked(input, len, mask);
                    *left -= len;
                    let frame_ended = *left == 0;
                    let last = frame_ended && *fin;
                    if frame_ended {
                        self.state = State::Head;
                    }
                    // An empty fragment says nothing, unless it ends the message.
                    if last || len > 0 {
                        return Ok(Some(self.data(last, bytes)));
                    }
                }
                State::Head => {
                    let Some(head) = FrameHead::parse(input)? else { return Ok(None) };
                    match head.opcode {
                        OpCode::Data(kind) => {
                            let left = self.admit(kind, head.payload_len)?;
                            input.advance(head.len);
                            self.state = State::Payload { mask: head.mask, left, fin: head.fin };
                        }
                        OpCode::Control(kind) => return head.take_control(kind, input),
                    }
                }
            }
        }
    }

    fn data(&mut self, last: bool, bytes: Bytes) -> Inbound {
        let begun = self.message.as_mut().is_some_and(|message| std::mem::replace(&mut message.begun, true));
        if last {
            self.message = None;
        }
        Inbound::Data { first: !begun, last, bytes }
    }

    /// Checks that a data frame may come now and returns its length.
    fn admit(&mut self, kind: Data, length: u64) -> Result<usize, FrameError> {
        if self.binary && kind == Data::Text {
            return Err(FrameError::Text);
        }
        let message = match (kind, &mut self.message) {
            (Data::Continue, Some(message)) => message,
            (Data::Continue, None) => return Err(FrameError::StrayContinuation),
            (_, Some(_)) => return Err(FrameError::UnfinishedMessage),
            (_, none) => none.insert(Message { announced: 0, begun: false }),
        };
        let room = MAX_MESSAGE - message.announced;
        let length = usize::try_from(length).ok().filter(|length| *length <= room).ok_or(FrameError::TooLarge)?;
        message.announced += length;
        Ok(length)
    }
}

/// The head of an inbound frame.
struct FrameHead {
    opcode: OpCode,
    fin: bool,
    mask: [u8; 4],
    /// Bytes of payload; below 2^63.
    payload_len: u64,
    /// Bytes of the head itself; at most 14.
    len: usize,
}

impl FrameHead {
    /// Reads a head without consuming it, if all of it is there.
    fn parse(input: &[u8]) -> Result<Option<Self>, FrameError> {
        let mut cursor = Cursor::new(input);
        // Reading from memory cannot fail, so the opcode is what an error is about.
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| FrameError::ReservedOpcode)?;
        let Some((header, payload_len)) = parsed else { return Ok(None) };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(FrameError::ReservedBits);
        }
        let mask = header.mask.ok_or(FrameError::Unmasked)?;
        if payload_len >> 63 != 0 {
            return Err(FrameError::Length);
        }
        let len = input.len() - cursor.remaining();
        Ok(Some(Self { opcode: header.opcode, fin: header.is_final, mask, payload_len, len }))
    }

    /// Takes a whole control frame, once all of it is there.
    fn take_control(mut self, kind: Control, input: &mut BytesMut) -> Result<Option<Inbound>, FrameError> {
        if !self.fin {
            return Err(FrameError::FragmentedControl);
        }
        let payload_len = usize::try_from(self.payload_len).ok().filter(|len| *len <= MAX_CONTROL);
        let payload_len = payload_len.ok_or(FrameError::LongControl)?;
        if input.len() < self.len + payload_len {
            return Ok(None);
        }
        input.advance(self.len);
        let payload = take_unmasked(input, payload_len, &mut self.mask);
        match kind {
            Control::Ping => Ok(Some(Inbound::Ping(payload))),
            Control::Pong => Ok(Some(Inbound::Pong)),
            Control::Close => Ok(Some(Inbound::Close(close_code(&payload)?))),
            Control::Reserved(_) => Err(FrameError::ReservedOpcode),
        }
    }
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    match *payload {
        [] => Ok(None),
        [_] => Err(FrameError::CloseLength),
        [high, low, ..] => {
            let code = u16::from_be_bytes([high, low]);
            if CloseCode::from(code).is_allowed() { Ok(Some(code)) } else { Err(FrameError::CloseCode(code)) }
        }
    }
}

/// Takes `len` bytes, removes the mask where they are, and turns the mask so that it fits the next byte of the frame.
fn take_unmasked(input: &mut BytesMut, len: usize, mask: &mut [u8; 4]) -> Bytes {
    if len == 0 {
        return Bytes::new();
    }
    let mut bytes = input.split_to(len);
    // Eight bytes at a time, which the compiler turns into vector instructions.
    let [a, b, c, d] = *mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
    mask.rotate_left(len % 4);
    bytes.freeze()
}

/// How a client broke RFC 6455.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Clients must mask (section 5.1).
    #[error("frame without a mask")]
    Unmasked,
    /// No extension was agreed on that gives them a meaning.
    #[error("frame with a reserved bit")]
    ReservedBits,
    /// Opcodes 3 to 7 and 11 to 15.
    #[error("frame with a reserved opcode")]
    ReservedOpcode,
    /// The top bit of a 64-bit length is set.
    #[error("frame with an invalid length")]
    Length,
    /// Control frames are never fragmented.
    #[error("fragmented control frame")]
    FragmentedControl,
    /// Control frames carry at most 125 bytes.
    #[error("control frame longer than 125 bytes")]
    LongControl,
    /// A continuation of no message.
    #[error("continuation frame without a message to continue")]
    StrayContinuation,
    /// A new message inside a fragmented one.
    #[error("new message before the last one was finished")]
    UnfinishedMessage,
    /// A Close payload starts with a code of two bytes.
    #[error("close frame with a payload of one byte")]
    CloseLength,
    /// A code that must not be sent (section 7.4).
    #[error("close frame with the invalid code {0}")]
    CloseCode(u16),
    /// This protocol is binary.
    #[error("text message in a binary protocol")]
    Text,
    /// More than [`MAX_MESSAGE`].
    #[error("message larger than 32 MiB")]
    TooLarge,
}

impl FrameError {
    /// The code for the Close frame that answers it.
    #[must_use]
    pub fn close_code(&self) -> u16 {
        match self {
            Self::TooLarge => CloseCode::Size.into(),
            Self::Text => CloseCode::Unsupported.into(),
            _ => CloseCode::Protocol.into(),
        }
    }
}

/// The bytes of an outbound frame that come before its payload.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    bytes: [u8; Self::MAX_LEN],
    len: usize,
}

impl Head {
    /// Ten bytes of WebSocket head and a channel byte.
    const MAX_LEN: usize = 11;

    /// Appends the first byte of the payload, so that the rest of it can be the caller's own buffer. For one byte only.
    pub(super) fn with_channel(mut self, channel: u8) -> Self {
        self.bytes[self.len] = channel;
        self.len += 1;
        self
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The head of a whole binary message with `payload_len` bytes of payload. Servers do not mask.
#[must_use]
pub fn data_head(payload_len: usize) -> Head {
    head_of(Data::Binary, payload_len)
}

/// The head of a whole text message with `payload_len` bytes of payload.
#[must_use]
pub fn text_head(payload_len: usize) -> Head {
    head_of(Data::Text, payload_len)
}

fn head_of(kind: Data, payload_len: usize) -> Head {
    let header = FrameHeader { opcode: OpCode::Data(kind), ..FrameHeader::default() };
    let mut head = Head { bytes: [0; Head::MAX_LEN], len: header.len(payload_len as u64) };
    header.format(payload_len as u64, &mut &mut head.bytes[..]).expect("a head without mask has at most 10 bytes");
    head
}

/// The control frames a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlOpcode {
    /// The last frame of this direction: see [`close`].
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping, with its payload.
    Pong = 10,
}

/// A whole control frame. What is longer than the 125 bytes a control frame can carry is cut off.
#[must_use]
pub fn control(opcode: ControlOpcode, payload: &[u8]) -> Bytes {
    let payload = &payload[..payload.len().min(MAX_CONTROL)];
    let len = u8::try_from(payload.len()).expect("it was cut to 125");
    [&[0x80 | opcode as u8, len], payload].concat().into()
}

/// A Close frame with a code and a reason, which is cut to the 123 bytes it may have.
#[must_use]
pub fn close(code: u16, reason: &str) -> Bytes {
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL - 2)];
    control(ControlOpcode::Close, &[&code.to_be_bytes(), reason.as_bytes()].concat())
}

#[cfg(test)]
mod tests;
