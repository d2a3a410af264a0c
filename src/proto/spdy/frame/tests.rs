use super::*;
use crate::proto::testing::split_invariant;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

type Read = Vec<Result<Frame, ConnectionError>>;

/// Reads frames at all kinds of cuts; the pieces of a DATA frame are joined.
fn read(bytes: &[u8]) -> Read {
    split_invariant(bytes, FrameReader::default, |reader, input, frames: &mut Read| {
        while !frames.last().is_some_and(Result::is_err) {
            match (reader.next(input).transpose(), frames.last_mut()) {
                (None, _) => return,
                (
                    Some(Ok(Frame::Data { id, fin, bytes })),
                    Some(Ok(Frame::Data { id: before, fin: ended, bytes: joined })),
                ) if id == *before && !*ended => {
                    *joined = [&joined[..], &bytes].concat().into();
                    *ended = fin;
                }
                (Some(frame), _) => frames.push(frame),
            }
        }
    })
}

fn id(number: u32) -> StreamId {
    StreamId::new(number).unwrap()
}

/// The frames of spec 5.3.
const GOLDEN: &str = "80030001 0000000d 00000001 00000000 0000 aabbcc
    80030002 00000006 00000001 ffff
    00000005 00000006 68656c6c6f0a
    00000003 01000000
    80030006 00000004 00000001
    80030003 00000008 00000005 00000005
    80030007 00000008 00000007 00000000";

#[test]
fn the_golden_frames_are_read_and_written() {
    let written = [
        Transmit::syn_stream(id(1), false, &[0xaa, 0xbb, 0xcc]),
        Transmit::syn_reply(id(1), &[0xff, 0xff]),
        Transmit::data(id(5), false, Bytes::from_static(b"hello\n")),
        Transmit::data(id(3), true, Bytes::new()),
        Transmit::ping(1),
        Transmit::rst_stream(id(5), RstStatus::CANCEL),
        Transmit::go_away(7, GoAwayStatus::OK),
    ];
    let bytes = written.iter().flat_map(|frame| [&frame.head[..], &frame.body].concat()).collect::<Vec<_>>();
    assert_eq!(bytes, hex(GOLDEN));
    assert_eq!(written.iter().map(Transmit::len).sum::<usize>(), bytes.len());
    let expected = [
        Frame::SynStream { id: id(1), fin: false, block: hex("aabbcc").into() },
        Frame::SynReply { id: id(1), fin: false, block: hex("ffff").into() },
        Frame::Data { id: id(5), fin: false, bytes: Bytes::from_static(b"hello\n") },
        Frame::Data { id: id(3), fin: true, bytes: Bytes::new() },
        Frame::Ping(1),
        Frame::RstStream { id: id(5), status: RstStatus::CANCEL },
        Frame::GoAway { last_good: 7, status: GoAwayStatus::OK },
    ];
    assert_eq!(read(&bytes), expected.map(Ok));
}

// Spec item 68.
#[test]
fn what_asks_for_nothing_is_skipped() {
    let skipped = "80030004 0000000c 00000001 00000004 00010000
        80030009 00000008 00000000 00010000
        80030005 00000000
        8003ffff 00000003 010203
        00000001 00000000
        80030006 00000004 00000002";
    assert_eq!(read(&hex(skipped)), [Ok(Frame::Ping(2))]);
}

// Spec items 72 to 74: refused by the head, before the body is waited for.
#[test]
fn a_length_that_cannot_be_is_refused_at_once() {
    for (head, kind) in [
        ("80030001 00010011", "SYN_STREAM"),
        ("80030001 00000009", "SYN_STREAM"),
        ("80030002 00ffffff", "SYN_REPLY"),
        ("80030008 00000003", "HEADERS"),
        ("80030003 00000009", "RST_STREAM"),
        ("80030004 00001001", "SETTINGS"),
        ("80030006 00000005", "PING"),
        ("80030007 00000004", "GOAWAY"),
        ("80030009 00000000", "WINDOW_UPDATE"),
    ] {
        let error = FrameReader::default().next(&mut BytesMut::from(&hex(head)[..])).unwrap_err();
        assert!(matches!(error, ConnectionError::Length { kind: k, .. } if k == kind), "{head}: {error}");
    }
}

// Spec items 64, 67 and 72.
#[test]
fn frames_that_break_the_protocol_end_the_connection() {
    for (frame, error) in [
        ("00000000 00000001 00", ConnectionError::StreamZero),
        ("80030001 0000000a 00000000 00000000 0000", ConnectionError::StreamZero),
        ("80030003 00000008 80000000 00000005", ConnectionError::StreamZero),
        ("80020001 0000000a 00000001 00000000 0000", ConnectionError::Version(2)),
        ("80030004 00000004 1fffffff", ConnectionError::SettingsCount(0x1fff_ffff)),
        ("80030004 0000000b 00000001 00000000 000000", ConnectionError::SettingsCount(1)),
    ] {
        assert_eq!(error.go_away_status(), GoAwayStatus::PROTOCOL_ERROR);
        assert_eq!(read(&hex(frame)), [Err(error)], "{frame}");
    }
}

#[test]
fn a_long_frame_is_handed_out_as_it_comes() {
    let (mut reader, mut input) = (FrameReader::default(), BytesMut::from(&hex("00000003 01ffffff")[..]));
    assert_eq!(reader.next(&mut input), Ok(None));
    input.extend_from_slice(&vec![7; MAX_PIECE + 1]);
    for len in [MAX_PIECE, 1] {
        let expected = Frame::Data { id: id(3), fin: false, bytes: vec![7; len].into() };
        assert_eq!(reader.next(&mut input), Ok(Some(expected)));
    }
    assert_eq!(reader.next(&mut input), Ok(None));
}
