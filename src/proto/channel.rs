//! Channels of an exec or attach session on a WebSocket (streaming spec 2.2 to 2.4, 4.2).
//!
//! The first byte of a message is the number of a channel and holds for the whole message, however it is fragmented:
//!
//! | n | channel | direction | payload |
//! |---|---|---|---|
//! | 0 | stdin | to the server | bytes |
//! | 1, 2 | stdout, stderr | to the client | bytes |
//! | 3 | error | to the client | the [status](super::status) |
//! | 4 | resize | to the server | JSON objects `{"Width":80,"Height":24}` |
//! | 255 | close, v5 only | to the server | one byte: the channel it ends |
//!
//! In the base64 protocols a message is text, and means the same.
//!
//! What makes no sense to this side is ignored, since other servers ignore it too and clients rely on it; only a broken
//! close message ends the session. Stdin passes through in the pieces it comes in; a resize message is collected, up to
//! [`MAX_RESIZE`].

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::base64::{Base64Reader, channel_character, encode};
use super::remotecommand::Protocol;
use super::resize::last_size;
use super::ws_frame::{Head, data_head, text_head};
use crate::model::{StdStream, WindowSize};

/// Input of the process.
pub const STDIN_CHANNEL: u8 = 0;
/// Output of the process, and of a terminal.
pub const STDOUT_CHANNEL: u8 = 1;
/// Error output of the process.
pub const STDERR_CHANNEL: u8 = 2;
/// The status of the session, its last message.
pub const ERROR_CHANNEL: u8 = 3;
/// Sizes of the client's terminal.
pub const RESIZE_CHANNEL: u8 = 4;
/// Ends another channel; only clients send it.
pub const CLOSE_CHANNEL: u8 = 255;

/// The longest resize message kept, in bytes; a longer one is ignored. A size takes about 30.
pub const MAX_RESIZE: usize = 4 << 10;

/// The channel that carries the bytes of `stream`.
#[must_use]
pub fn channel_of(stream: StdStream) -> u8 {
    match stream {
        StdStream::Stdout => STDOUT_CHANNEL,
        StdStream::Stderr => STDERR_CHANNEL,
    }
}

/// The channel of the first message, which has no payload: it tells clients that the session is open, and is the only sign
/// of life of a silent command (spec 2.5). It is the lowest one that the client will hear of.
#[must_use]
pub fn greeting_channel(stdout: bool, stderr: bool) -> u8 {
    match (stdout, stderr) {
        (true, _) => STDOUT_CHANNEL,
        (false, true) => STDERR_CHANNEL,
        (false, false) => ERROR_CHANNEL,
    }
}

/// A message on `channel`: its head with the channel, and what follows.
#[must_use]
pub fn message(base64: bool, channel: u8, data: Bytes) -> (Head, Bytes) {
    if base64 {
        let text = encode(&data);
        return (text_head(text.len() + 1).with_channel(channel_character(channel)), text);
    }
    (data_head(data.len() + 1).with_channel(channel), data)
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelEvent {
    /// Bytes for the process; never empty.
    Stdin(Bytes),
    /// No more stdin will come; output goes on. Comes once.
    StdinClosed,
    /// The client's terminal has this size, neither dimension 0.
    Resize(WindowSize),
}

/// Makes sense of the messages of one client.
#[derive(Debug)]
pub struct Decoder {
    can_close: bool,
    /// For protocols whose messages are base64.
    base64: Option<Base64Reader>,
    /// Whether stdin is passed on: it was requested and is not closed.
    stdin: bool,
    /// Whether sizes are passed on: the channel is not closed.
    resize: bool,
    message: Message,
}

/// The message that is coming in.
#[derive(Debug)]
enum Message {
    /// Its channel byte has not come yet.
    Start,
    Stdin,
    /// What has come of it, at most [`MAX_RESIZE`] bytes.
    Resize(Vec<u8>),
    /// The channel it ends, if that has come.
    Close(Option<u8>),
    /// Nobody wants it.
    Ignored,
}

impl Decoder {
    /// A decoder for a session that speaks `protocol`; `stdin` tells whether the session was requested with stdin.
    #[must_use]
    pub fn new(protocol: Protocol, stdin: bool) -> Self {
        let can_close = protocol.version.can_close_stdin();
        let base64 = protocol.base64.then(Base64Reader::default);
        Self { can_close, base64, stdin, resize: true, message: Message::Start }
    }

    /// Takes a piece of a message: `first` and `last` tell whether it starts and ends it. Appends at most one event.
    ///
    /// # Errors
    /// The client sent a broken close message: close with [`ChannelError::close_code`].
    pub fn handle(
        &mut self,
        first: bool,
        last: bool,
        mut piece: Bytes,
        events: &mut VecDeque<ChannelEvent>,
    ) -> Result<(), ChannelError> {
        if let Some(reader) = &mut self.base64 {
            piece = reader.take(first, last, &piece);
        }
        if first {
            self.message = Message::Start;
        }
        if matches!(self.message, Message::Start) && !piece.is_empty() {
            self.message = self.start(piece.get_u8());
        }
        match &mut self.message {
            Message::Stdin if !piece.is_empty() => events.push_back(ChannelEvent::Stdin(piece)),
            Message::Resize(kept) if kept.len() + piece.len() <= MAX_RESIZE => kept.extend_from_slice(&piece),
            Message::Resize(_) => self.message = Message::Ignored,
            Message::Close(target) => {
                for byte in piece {
                    if target.replace(byte).is_some() {
                        return Err(ChannelError::CloseLength);
                    }
                }
            }
            Message::Start | Message::Stdin | Message::Ignored => {}
        }
        if last { self.end(events) } else { Ok(()) }
    }

    fn start(&self, channel: u8) -> Message {
        match channel {
            STDIN_CHANNEL if self.stdin => Message::Stdin,
            RESIZE_CHANNEL if self.resize => Message::Resize(Vec::new()),
            CLOSE_CHANNEL if self.can_close => Message::Close(None),
            _ => Message::Ignored,
        }
    }

    fn end(&mut self, events: &mut VecDeque<ChannelEvent>) -> Result<(), ChannelError> {
        match std::mem::replace(&mut self.message, Message::Start) {
            Message::Resize(kept) => events.extend(last_size(&kept).map(ChannelEvent::Resize)),
            Message::Close(target) => match target.ok_or(ChannelError::CloseLength)? {
                STDIN_CHANNEL if self.stdin => {
                    self.stdin = false;
                    events.push_back(ChannelEvent::StdinClosed);
                }
                RESIZE_CHANNEL => self.resize = false,
                // Closed before or never open; and output goes on whatever the client says, or it could lose its end.
                STDIN_CHANNEL | STDOUT_CHANNEL | STDERR_CHANNEL | ERROR_CHANNEL => {}
                other => return Err(ChannelError::UnknownChannel(other)),
            },
            Message::Start | Message::Stdin | Message::Ignored => {}
        }
        Ok(())
    }
}

/// How a client broke the rules of the close channel (spec 2.4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// A close message is two bytes long, the channel byte included.
    #[error("close message with a length other than two bytes")]
    CloseLength,
    /// There is no such channel to close.
    #[error("close message for the unknown channel {0}")]
    UnknownChannel(u8),
}

impl ChannelError {
    /// The code for the Close frame that answers it: protocol error.
    #[must_use]
    pub fn close_code(&self) -> u16 {
        1002
    }
}

#[cfg(test)]
mod tests;
