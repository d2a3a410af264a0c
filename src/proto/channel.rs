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
//! What makes no sense to this side is ignored, since other servers ignore it too and clients rely on it; only a broken
//! close message ends the session. Stdin passes through in the pieces it comes in; a resize message is collected, up to
//! [`MAX_RESIZE`].

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use serde_json::Value;

use super::remotecommand::Protocol;
use super::ws_frame::{Head, data_head};
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

/// What comes before the data of a message on `channel`: the frame's head and the channel byte.
#[must_use]
pub fn message_head(channel: u8, data_len: usize) -> Head {
    data_head(data_len + 1).with_channel(channel)
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
        Self { can_close: protocol.version.can_close_stdin(), stdin, resize: true, message: Message::Start }
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

/// The last size in a stream of JSON objects, none of whose dimensions is 0. What follows broken JSON is not looked at.
fn last_size(json: &[u8]) -> Option<WindowSize> {
    let objects = serde_json::Deserializer::from_slice(json).into_iter::<Value>();
    objects.map_while(Result::ok).filter_map(|object| size(&object)).last()
}

/// Reads a size as Go does, which ignores the case of keys.
fn size(object: &Value) -> Option<WindowSize> {
    let dimension = |name: &str| {
        let (_, value) = object.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        u16::try_from(value.as_u64()?).ok().filter(|value| *value > 0)
    };
    Some(WindowSize { cols: dimension("width")?, rows: dimension("height")? })
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
mod tests {
    use super::*;
    use crate::proto::remotecommand::Version;
    use crate::proto::testing::{Random, client_frame, split_invariant};
    use crate::proto::ws_frame::{FrameReader, Inbound};
    use bytes::BytesMut;

    /// What a session sees of a client, in order; neighbouring pieces of stdin are joined.
    #[derive(Debug, PartialEq)]
    enum Seen {
        Stdin(Vec<u8>),
        StdinClosed,
        Resize(u16, u16),
        Ping(Vec<u8>),
        Close(Option<u16>),
        Error(ChannelError),
    }

    fn decoder(version: Version, stdin: bool) -> Decoder {
        Decoder::new(Protocol { version, base64: false, name: None }, stdin)
    }

    fn feed((reader, decoder): &mut (FrameReader, Decoder), input: &mut BytesMut, seen: &mut Vec<Seen>) {
        while let Some(inbound) = reader.next(input).expect("the frames are right") {
            let mut events = VecDeque::new();
            match inbound {
                Inbound::Ping(payload) => seen.push(Seen::Ping(payload.to_vec())),
                Inbound::Pong => {}
                Inbound::Close(code) => seen.push(Seen::Close(code)),
                Inbound::Data { first, last, bytes } => {
                    if let Err(error) = decoder.handle(first, last, bytes, &mut events) {
                        seen.push(Seen::Error(error));
                    }
                }
            }
            for event in events {
                match (event, seen.last_mut()) {
                    (ChannelEvent::Stdin(bytes), Some(Seen::Stdin(before))) => before.extend(bytes),
                    (ChannelEvent::Stdin(bytes), _) => seen.push(Seen::Stdin(bytes.to_vec())),
                    (ChannelEvent::StdinClosed, _) => seen.push(Seen::StdinClosed),
                    (ChannelEvent::Resize(size), _) => seen.push(Seen::Resize(size.cols, size.rows)),
                }
            }
        }
    }

    /// Sends frames, given as (first byte, payload), through reader and decoder at all kinds of cuts.
    fn session(version: Version, stdin: bool, frames: &[(u8, &[u8])]) -> Vec<Seen> {
        let bytes = frames.iter().flat_map(|(first, payload)| client_frame(*first, payload)).collect::<Vec<_>>();
        split_invariant(&bytes, || (FrameReader::new(), decoder(version, stdin)), feed)
    }

    /// Sends whole binary messages.
    fn messages(version: Version, stdin: bool, messages: &[&[u8]]) -> Vec<Seen> {
        session(version, stdin, &messages.iter().map(|message| (0x82, *message)).collect::<Vec<_>>())
    }

    // Spec 2.3, the right column; items 26, 28 and 43.
    #[test]
    fn the_golden_client_transcript_is_understood() {
        let seen = session(
            Version::V5,
            true,
            &[
                (0x82, b"\x00hi\n"),
                (0x82, b"\x04{\"Width\":80,\"Height\":24}\n"),
                (0x81, b"\x00text\xff"),
                (0x89, b""),
                (0x82, b"\xff\x00"),
                (0x88, b"\x03\xe8"),
            ],
        );
        let expected = [
            Seen::Stdin(b"hi\n".into()),
            Seen::Resize(80, 24),
            Seen::Stdin(b"text\xff".into()),
            Seen::Ping(vec![]),
            Seen::StdinClosed,
            Seen::Close(Some(1000)),
        ];
        assert_eq!(seen, expected);
    }

    // Spec item 29.
    #[test]
    fn stdin_is_closed_once_and_discarded_afterwards() {
        let seen = messages(Version::V5, true, &[b"\xff\0", b"\xff\0", b"\0late", b"\x04{\"width\":1,\"height\":2}"]);
        assert_eq!(seen, [Seen::StdinClosed, Seen::Resize(1, 2)]);
    }

    // Spec item 30.
    #[test]
    fn before_v5_a_close_message_is_ignored_however_broken() {
        for version in [Version::V1, Version::V2, Version::V3, Version::V4] {
            let seen = messages(version, true, &[b"\xff\0", b"\xff\xff\xff", b"\xff", b"\0on"]);
            assert_eq!(seen, [Seen::Stdin(b"on".into())]);
        }
    }

    // Spec item 31.
    #[test]
    fn what_makes_no_sense_is_ignored() {
        let seen = messages(Version::V5, true, &[b"", b"\0", b"\x04", b"\x01out", b"\x03{}", b"\x07x", b"\0on"]);
        assert_eq!(seen, [Seen::Stdin(b"on".into())]);
    }

    // Spec item 44 and 2.4: derived from the request alone.
    #[test]
    fn stdin_that_was_not_requested_is_ignored_and_never_closed() {
        assert_eq!(messages(Version::V5, false, &[b"\0in", b"\xff\0"]), []);
    }

    // Spec item 32: STOCK takes the first byte of each fragment for a channel.
    #[test]
    fn the_channel_byte_holds_for_all_fragments() {
        let frames: &[(u8, &[u8])] = &[(0x02, b""), (0x00, b"\0a"), (0x00, b"\x01b"), (0x00, b""), (0x80, b"\xff")];
        assert_eq!(session(Version::V5, true, frames), [Seen::Stdin(b"a\x01b\xff".into())]);
        let frames: &[(u8, &[u8])] = &[(0x01, b"\0a"), (0x89, b"ping"), (0x00, b"b"), (0x80, b"c")];
        let expected = [Seen::Stdin(b"a".into()), Seen::Ping(b"ping".into()), Seen::Stdin(b"bc".into())];
        assert_eq!(session(Version::V4, true, frames), expected);
    }

    #[test]
    fn a_broken_close_message_is_an_error_from_v5_on() {
        for (message, error) in [
            (&b"\xff"[..], ChannelError::CloseLength),
            (b"\xff\x00\x00", ChannelError::CloseLength),
            (b"\xff\x05", ChannelError::UnknownChannel(5)),
            (b"\xff\xff", ChannelError::UnknownChannel(255)),
        ] {
            assert_eq!(error.close_code(), 1002);
            assert_eq!(messages(Version::V5, true, &[message]).first(), Some(&Seen::Error(error)), "{message:?}");
        }
    }

    #[test]
    fn only_stdin_and_resize_can_be_closed() {
        let size = &b"\x04{\"Width\":1,\"Height\":1}"[..];
        let seen = messages(Version::V5, true, &[b"\xff\x01", b"\xff\x02", b"\xff\x03", size, b"\xff\x04", size]);
        assert_eq!(seen, [Seen::Resize(1, 1)]);
    }

    // Spec items 35 and 36, and 4.2.
    #[test]
    fn the_last_good_size_of_a_message_counts() {
        for (json, expected) in [
            (r#"{"Width":80,"Height":24}{"Width":100,"Height":30}"#, Some((100, 30))),
            ("\n {\"width\" : 1,\t\"HEIGHT\" : 65535, \"x\": {}}\r\n", Some((1, 65535))),
            (r#"{"Width":80,"Height":24}{"Width":0,"Height":30}"#, Some((80, 24))),
            (r#"{"Width":80,"Height":24}{"Width":"#, Some((80, 24))),
            (r#"{"Width":"80","Height":24} null [] {"Width":7,"Height":8}"#, Some((7, 8))),
            (r#"{"Width":65536,"Height":24}"#, None),
            (r#"{"Width":-1,"Height":24}"#, None),
            (r#"{"Width":80}"#, None),
            ("boom", None),
            (&"[".repeat(MAX_RESIZE), None),
            (&format!(r#"{}{{"Width":1,"Height":1}}"#, " ".repeat(MAX_RESIZE)), None),
        ] {
            let message = [b"\x04", json.as_bytes()].concat();
            let seen = messages(Version::V4, true, &[&message, b"\x04{\"Width\":5,\"Height\":6}"]);
            let sizes = expected.into_iter().chain([(5, 6)]).map(|(cols, rows)| Seen::Resize(cols, rows));
            assert_eq!(seen, sizes.collect::<Vec<_>>(), "{json:?}");
        }
    }

    // Spec item 25, and the left column of 2.3.
    #[test]
    fn outbound_messages_start_with_head_and_channel() {
        assert_eq!(*message_head(greeting_channel(true, true), 0), [0x82, 0x01, 0x01]);
        assert_eq!(*message_head(channel_of(StdStream::Stdout), 6), [0x82, 0x07, 0x01]);
        assert_eq!(*message_head(channel_of(StdStream::Stderr), 5), [0x82, 0x06, 0x02]);
        assert_eq!(*message_head(ERROR_CHANNEL, 20), [0x82, 0x15, 0x03]);
        assert_eq!(*message_head(STDOUT_CHANNEL, 32 << 10), [0x82, 126, 0x80, 0x01, 0x01]);
        assert_eq!((greeting_channel(false, true), greeting_channel(false, false)), (STDERR_CHANNEL, ERROR_CHANNEL));
    }

    // The body of the fuzz target `channel`.
    #[test]
    fn arbitrary_pieces_never_panic() {
        let mut random = Random(3);
        let (mut decoder, mut events) = (decoder(Version::V5, true), VecDeque::new());
        for _ in 0..20_000 {
            let flags = random.next();
            let len = random.below(8);
            let _ = decoder.handle(flags & 2 != 0, flags & 4 != 0, random.bytes(len).into(), &mut events);
        }
    }
}
