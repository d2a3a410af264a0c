//! Any messages in any pieces through the channel decoder: events obey their contract.
#![no_main]

use std::collections::VecDeque;

use bytes::Bytes;
use holdfast::proto::channel::{ChannelEvent, Decoder};
use holdfast::proto::remotecommand::{Protocol, Version};
use libfuzzer_sys::fuzz_target;

// The first byte chooses the session. Then come pieces: a byte with flags and length, and the bytes.
fuzz_target!(|data: &[u8]| {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    let version = [Version::V1, Version::V4, Version::V5][usize::from(choice) % 3];
    let requested = choice & 0x80 != 0;
    let mut decoder = Decoder::new(Protocol { version, base64: choice & 0x40 != 0, name: None }, requested);
    let (mut events, mut closed) = (VecDeque::new(), false);

    while let Some((&piece, tail)) = rest.split_first() {
        let (bytes, tail) = tail.split_at(usize::from(piece & 0x3f).min(tail.len()));
        rest = tail;
        let (first, last) = (piece & 0x80 != 0, piece & 0x40 != 0);
        if decoder.handle(first, last, Bytes::copy_from_slice(bytes), &mut events).is_err() {
            assert!(version.can_close_stdin());
            return;
        }
        assert!(events.len() <= 1);
        match events.pop_front() {
            Some(ChannelEvent::Stdin(bytes)) => assert!(requested && !closed && !bytes.is_empty()),
            Some(ChannelEvent::StdinClosed) => {
                assert!(requested && !closed && version.can_close_stdin());
                closed = true;
            }
            Some(ChannelEvent::Resize(size)) => assert!(size.cols > 0 && size.rows > 0),
            None => {}
        }
    }
});
