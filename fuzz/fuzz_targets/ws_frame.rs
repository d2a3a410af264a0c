//! Any bytes through the frame reader: pieces obey their contract, and how the bytes are cut changes no message.
#![no_main]

use bytes::BytesMut;
use holdfast::proto::ws_frame::{FrameError, FrameReader, Inbound, MAX_PIECE};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, PartialEq)]
enum Seen {
    Message { bytes: Vec<u8>, ended: bool },
    Control(Inbound),
    Error(FrameError),
}

fuzz_target!(|data: &[u8]| {
    // The first byte is the size of the cuts.
    let Some((&cut, data)) = data.split_first() else { return };
    assert_eq!(read(data.chunks(usize::from(cut).max(1))), read([data].into_iter()));
});

fn read<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Vec<Seen> {
    let (mut reader, mut input, mut seen) = (FrameReader::new(), BytesMut::new(), Vec::new());
    for part in parts {
        input.extend_from_slice(part);
        loop {
            match reader.next(&mut input) {
                Ok(None) => break,
                Ok(Some(Inbound::Data { first, last, bytes })) => join(&mut seen, first, last, &bytes),
                Ok(Some(control)) => seen.push(Seen::Control(control)),
                Err(error) => seen.push(Seen::Error(error)),
            }
        }
        // What waits is a head or a whole control frame.
        assert!(input.len() < 14 + 125);
    }
    seen
}

/// Adds a piece to its message, which control frames may have come behind.
fn join(seen: &mut Vec<Seen>, first: bool, last: bool, piece: &[u8]) {
    assert!(piece.len() <= MAX_PIECE && (last || !piece.is_empty()));
    if first {
        seen.push(Seen::Message { bytes: Vec::new(), ended: false });
    }
    let message = seen.iter_mut().rev().find(|seen| matches!(seen, Seen::Message { .. }));
    let Some(Seen::Message { bytes, ended }) = message else { panic!("a piece of no message") };
    assert!(!*ended, "a piece after the last");
    bytes.extend_from_slice(piece);
    *ended = last;
}
