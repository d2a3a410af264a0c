use bytes::{Bytes, BytesMut};

use super::*;
use crate::proto::testing::{Random, client_frame, split_invariant};

/// A message or frame as it came, with the pieces of a message joined.
#[derive(Debug, PartialEq)]
enum Seen {
    Message { bytes: Vec<u8>, ended: bool },
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Error(FrameError),
}

fn feed(reader: &mut FrameReader, input: &mut BytesMut, seen: &mut Vec<Seen>) {
    loop {
        match reader.next(input) {
            Ok(None) => return,
            Ok(Some(Inbound::Data { first, last, bytes })) => {
                assert!(bytes.len() <= MAX_PIECE && (last || !bytes.is_empty()));
                if first {
                    seen.push(Seen::Message { bytes: vec![], ended: false });
                }
                let open = seen.iter_mut().rev().find(|seen| matches!(seen, Seen::Message { .. }));
                let Some(Seen::Message { bytes: joined, ended }) = open else { panic!("a piece of no message") };
                assert!(!*ended, "a piece after the last");
                joined.extend(bytes);
                *ended = last;
            }
            Ok(Some(Inbound::Ping(payload))) => seen.push(Seen::Ping(payload.to_vec())),
            Ok(Some(Inbound::Pong)) => seen.push(Seen::Pong),
            Ok(Some(Inbound::Close(code))) => seen.push(Seen::Close(code)),
            Err(error) => seen.push(Seen::Error(error)),
        }
    }
}

fn read(bytes: &[u8]) -> Vec<Seen> {
    split_invariant(bytes, FrameReader::new, feed)
}

fn message(bytes: &[u8]) -> Seen {
    Seen::Message { bytes: bytes.to_vec(), ended: true }
}

fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
    frames.iter().flat_map(|(first, payload)| client_frame(*first, payload)).collect()
}

#[test]
fn the_masked_frames_of_the_rfc_are_read() {
    // RFC 6455, section 5.7: a masked text frame and a masked pong.
    let text = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(read(&[&text[..], &pong, &text].concat()), [message(b"Hello"), Seen::Pong, message(b"Hello")]);
}

// Spec item 32.
#[test]
fn control_frames_may_come_between_fragments() {
    let bytes =
        frames(&[(0x01, b"one "), (0x89, b"ping"), (0x00, b"two "), (0x00, b""), (0x8a, b""), (0x80, b"three")]);
    assert_eq!(read(&bytes), [message(b"one two three"), Seen::Ping(b"ping".into()), Seen::Pong]);
}

#[test]
fn empty_messages_have_one_first_and_last_piece() {
    let bytes = frames(&[(0x82, b""), (0x02, b""), (0x00, b""), (0x80, b""), (0x81, b"x")]);
    assert_eq!(read(&bytes), [message(b""), message(b""), message(b"x")]);
}

#[test]
fn every_form_of_length_is_read() {
    let mut random = Random(11);
    for len in [125, 126, 127, 65535, 65536] {
        let payload = random.bytes(len);
        assert_eq!(read(&client_frame(0x82, &payload)), [message(&payload)], "{len}");
    }
    // Longer than need be: 2 as a 16-bit number.
    assert_eq!(read(&[0x82, 0xfe, 0, 2, 0, 0, 0, 0, b'h', b'i']), [message(b"hi")]);
}

#[test]
fn pieces_stay_small_and_are_not_copied() {
    let payload = vec![7; MAX_PIECE + 100];
    let mut input = BytesMut::from(&client_frame(0x82, &payload)[..]);
    let buffer = input.as_ptr_range();
    let mut reader = FrameReader::new();
    let mut lengths = vec![];
    while let Some(Inbound::Data { bytes, .. }) = reader.next(&mut input).unwrap() {
        assert!(buffer.contains(&bytes.as_ptr()));
        lengths.push(bytes.len());
    }
    assert_eq!(lengths, [MAX_PIECE, 100]);
}

// Spec item 33.
#[test]
fn broken_frames_are_protocol_errors() {
    let long = [0; 126];
    for (bytes, error) in [
        (vec![0x82, 0x01, b'x'], FrameError::Unmasked),
        (vec![0x89, 0x00], FrameError::Unmasked),
        (client_frame(0xc2, b"x"), FrameError::ReservedBits),
        (client_frame(0xa2, b"x"), FrameError::ReservedBits),
        (client_frame(0x92, b"x"), FrameError::ReservedBits),
        (client_frame(0x83, b"x"), FrameError::ReservedOpcode),
        (client_frame(0x8b, b"x"), FrameError::ReservedOpcode),
        (client_frame(0x89, &long), FrameError::LongControl),
        (client_frame(0x88, &long), FrameError::LongControl),
        (client_frame(0x09, b"x"), FrameError::FragmentedControl),
        (client_frame(0x80, b"x"), FrameError::StrayContinuation),
        (client_frame(0x88, b"\x03"), FrameError::CloseLength),
        (vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], FrameError::Length),
    ] {
        let follow_up = client_frame(0x82, b"discarded");
        assert_eq!(error.close_code(), 1002);
        assert_eq!(read(&[bytes.clone(), follow_up].concat()), [Seen::Error(error)], "{bytes:x?}");
    }
    let seen = read(&frames(&[(0x02, b"x"), (0x82, b"y")]));
    assert_eq!(seen[1..], [Seen::Error(FrameError::UnfinishedMessage)]);
}

// Spec 2.8 and item 43.
#[test]
fn a_close_frame_is_the_last_that_is_read() {
    for (payload, seen) in [
        (&b""[..], Seen::Close(None)),
        (b"\x03\xe8", Seen::Close(Some(1000))),
        (b"\x03\xe9bye \xff", Seen::Close(Some(1001))),
        (b"\x0f\xa0", Seen::Close(Some(4000))),
        (b"\x00\x00", Seen::Error(FrameError::CloseCode(0))),
        (b"\x03\xec", Seen::Error(FrameError::CloseCode(1004))),
        (b"\x03\xed", Seen::Error(FrameError::CloseCode(1005))),
        (b"\x03\xee", Seen::Error(FrameError::CloseCode(1006))),
        (b"\x0b\xb7", Seen::Error(FrameError::CloseCode(2999))),
        (b"\x13\x88", Seen::Error(FrameError::CloseCode(5000))),
    ] {
        assert_eq!(read(&frames(&[(0x88, payload), (0x82, b"late"), (0x88, b"")])), [seen], "{payload:x?}");
    }
}

/// Feeds a head that announces `len` bytes, then as many zero bytes as `send`, and returns the first error.
fn announce(reader: &mut FrameReader, first: u8, len: usize, send: usize) -> Result<(), FrameError> {
    let head = [&[first, 0xff], &(len as u64).to_be_bytes()[..], &[0; 4]].concat();
    let mut input = BytesMut::from(&head[..]);
    while reader.next(&mut input)?.is_some() {}
    let mut left = send;
    while left > 0 {
        let part = left.min(1 << 20);
        input.resize(part, 0);
        while reader.next(&mut input)?.is_some() {}
        left -= part;
    }
    Ok(())
}

// Spec item 34.
#[test]
fn a_message_up_to_the_limit_is_taken_and_a_larger_one_refused_at_the_head() {
    let mut reader = FrameReader::new();
    assert_eq!(announce(&mut reader, 0x82, MAX_MESSAGE, MAX_MESSAGE), Ok(()));
    // The sum starts again with each message.
    assert_eq!(announce(&mut reader, 0x02, MAX_MESSAGE - 1, MAX_MESSAGE - 1), Ok(()));
    assert_eq!(announce(&mut reader, 0x80, 2, 0), Err(FrameError::TooLarge));
    for len in [MAX_MESSAGE + 1, usize::MAX >> 1] {
        assert_eq!(announce(&mut FrameReader::new(), 0x82, len, 0), Err(FrameError::TooLarge));
    }
    assert_eq!(FrameError::TooLarge.close_code(), 1009);
}

// Spec 2.3, the left column.
#[test]
fn outbound_heads_are_binary_final_and_unmasked() {
    for (len, head) in [
        (1, &[0x82, 0x01][..]),
        (125, &[0x82, 125]),
        (126, &[0x82, 126, 0, 126]),
        (0xffff, &[0x82, 126, 0xff, 0xff]),
        (0x1_0000, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        assert_eq!(*data_head(len), *head);
    }
}

#[test]
fn control_frames_never_exceed_their_limit() {
    assert_eq!(close(1000, "")[..], [0x88, 0x02, 0x03, 0xe8]);
    assert_eq!(close(1002, "no")[..], [0x88, 0x04, 0x03, 0xea, b'n', b'o']);
    assert_eq!(control(ControlOpcode::Pong, b"hi")[..], [0x8a, 0x02, b'h', b'i']);
    assert_eq!(control(ControlOpcode::Ping, &[0; 200]).len(), 127);
    let cut: Bytes = close(1011, &"ä".repeat(100));
    assert_eq!((cut.len(), str::from_utf8(&cut[4..]).unwrap().chars().count()), (126, 61));
}
