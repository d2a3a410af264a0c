//! What comes in on a WebSocket: frames, and the two ways to put channels into their messages.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use holdfast::proto::channel::{ChannelEvent, Decoder};
use holdfast::proto::port_channels::{MAX_PORTS, PortChannel, PortDecoder, greetings, port_message, ports_of_query};
use holdfast::proto::remotecommand::{Protocol, Version};
use holdfast::proto::ws_frame::{FrameError, FrameReader, Inbound, MAX_PIECE};

#[derive(Debug, PartialEq)]
enum Seen {
    Message { bytes: Vec<u8>, ended: bool },
    Control(Inbound),
    Error(FrameError),
}

/// Any bytes through the frame reader: pieces obey their contract, and how the bytes are cut changes no message. The first
/// byte is the size of the cuts.
pub(crate) fn frames(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    assert_eq!(read(data.chunks(usize::from(cut).max(1))), read([data].into_iter()));
}

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

/// Any messages in any pieces: a byte with flags and length, and as many bytes; at the end, what is left.
fn pieces(mut rest: &[u8]) -> impl Iterator<Item = (bool, bool, Bytes)> {
    std::iter::from_fn(move || {
        let (&piece, tail) = rest.split_first()?;
        let (bytes, tail) = tail.split_at(usize::from(piece & 0x3f).min(tail.len()));
        rest = tail;
        Some((piece & 0x80 != 0, piece & 0x40 != 0, Bytes::copy_from_slice(bytes)))
    })
}

/// Any messages in any pieces through the channel decoder: events obey their contract. The first byte chooses the session.
pub(crate) fn channel(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let version = [Version::V1, Version::V4, Version::V5][usize::from(choice) % 3];
    let requested = choice & 0x80 != 0;
    let mut decoder = Decoder::new(Protocol { version, base64: choice & 0x40 != 0, name: None }, requested);
    let (mut events, mut closed) = (VecDeque::new(), false);
    // Base64 may be delivered in larger pieces than it came in, but never more of it.
    let (mut came, mut delivered) = (0, 0);

    for (first, last, bytes) in pieces(rest) {
        came += bytes.len();
        if decoder.handle(first, last, bytes, &mut events).is_err() {
            assert!(version.can_close_stdin());
            return;
        }
        assert!(events.len() <= 1);
        match events.pop_front() {
            Some(ChannelEvent::Stdin(bytes)) => {
                assert!(requested && !closed && !bytes.is_empty());
                delivered += bytes.len();
            }
            Some(ChannelEvent::StdinClosed) => {
                assert!(requested && !closed && version.can_close_stdin());
                closed = true;
            }
            Some(ChannelEvent::Resize(size)) => assert!(size.cols > 0 && size.rows > 0),
            None => {}
        }
        assert!(delivered <= came);
    }
}

/// Any messages of a port forward in any pieces; then the same bytes as a query, and as what we send. The first two bytes
/// choose the session.
pub(crate) fn port_channels(data: &[u8]) {
    let [choice, ports, rest @ ..] = data else { return };
    let (base64, ports) = (choice & 1 != 0, usize::from(*ports) % (MAX_PORTS + 1));
    let mut decoder = PortDecoder::new(base64, ports);
    let (mut came, mut delivered) = (0, 0);
    for (first, last, bytes) in pieces(rest) {
        came += bytes.len();
        if let Some((index, bytes)) = decoder.handle(first, last, bytes) {
            assert!(index < ports && !bytes.is_empty());
            delivered += bytes.len();
        }
        assert!(delivered <= came);
    }

    if let Some(named) = str::from_utf8(rest).ok().and_then(ports_of_query) {
        assert!(named.len() <= MAX_PORTS && !named.contains(&0));
        assert_eq!(greetings(base64, &named).count(), 2 * named.len());
    }

    // A message of ours is read as it was meant, but for its head, which differs between the two directions.
    let index = usize::from(*choice) % MAX_PORTS;
    let (head, body) = port_message(base64, index, PortChannel::Data, Bytes::copy_from_slice(rest));
    let channel = head[head.len() - 1];
    let whole = Bytes::from([&[channel], &body[..]].concat());
    // The characters of base64 name no more channels than nine.
    if !base64 || index < 5 {
        let mut decoder = PortDecoder::new(base64, MAX_PORTS);
        let seen: Vec<_> = whole
            .chunks(4099)
            .enumerate()
            .filter_map(|(number, part)| {
                let last = (number + 1) * 4099 >= whole.len();
                decoder.handle(number == 0, last, Bytes::copy_from_slice(part))
            })
            .inspect(|(seen, _)| assert_eq!(*seen, index))
            .flat_map(|(_, bytes)| bytes)
            .collect();
        assert_eq!(seen, rest);
    }
}
