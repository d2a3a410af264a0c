use super::*;
use crate::proto::remotecommand::Version;
use crate::proto::testing::{client_frame, split_invariant};
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
    let sent = |base64, channel, data: &'static [u8]| {
        let (head, body) = message(base64, channel, Bytes::from_static(data));
        [&head, &body[..]].concat()
    };
    assert_eq!(sent(false, greeting_channel(true, true), b""), [0x82, 0x01, 0x01]);
    assert_eq!(sent(false, channel_of(StdStream::Stdout), b"hello\n"), b"\x82\x07\x01hello\n");
    assert_eq!(sent(false, channel_of(StdStream::Stderr), b"oops\n"), b"\x82\x06\x02oops\n");
    assert_eq!(sent(false, ERROR_CHANNEL, &[0; 32 << 10])[..5], [0x82, 126, 0x80, 0x01, 0x03]);
    assert_eq!((greeting_channel(false, true), greeting_channel(false, false)), (STDERR_CHANNEL, ERROR_CHANNEL));
    // Spec item 27.
    assert_eq!(sent(true, STDOUT_CHANNEL, b"hello\n"), b"\x81\x091aGVsbG8K");
    assert_eq!(sent(true, STDERR_CHANNEL, b""), b"\x81\x012");
}

// Spec item 27, and 2.4: bad base64 drops its message.
#[test]
fn base64_messages_mean_the_same() {
    let frames: [(u8, &[u8]); 6] = [
        (0x01, b"0aG"),
        (0x80, b"kK"),
        (0x81, b"0aG!K"),
        (0x82, b"0aG8="),
        (0x81, b"4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9Cg=="),
        (0x81, b"1aGkK"),
    ];
    let bytes = frames.iter().flat_map(|(first, payload)| client_frame(*first, payload)).collect::<Vec<_>>();
    let protocol = Protocol { version: Version::V4, base64: true, name: None };
    let seen = split_invariant(&bytes, || (FrameReader::new(), Decoder::new(protocol, true)), feed);
    assert_eq!(seen, [Seen::Stdin(b"hi\nho".into()), Seen::Resize(80, 24)]);
}
