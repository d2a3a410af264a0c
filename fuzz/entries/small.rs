//! Decoders of one message.

use bytes::Bytes;
use holdfast::model::{Outcome, StdStream};
use holdfast::proto::attach_packet::{DONE, MAX_PACKET, head, payloads};
use holdfast::proto::fd_message::{Reply, Request};
use holdfast::proto::remotecommand::Version;
use holdfast::proto::resize::ResizeReader;
use holdfast::proto::status::{decode, encode};
use holdfast::proto::traceparent::TraceParent;

/// Any packet through both parsers of the descriptor socket: what they take they write again in the same way.
pub(crate) fn fd_message(data: &[u8]) {
    match Request::parse(data) {
        Ok(request) => assert_eq!(request.packet(), data),
        Err(error) => assert!(data.len() != 8 && (data.len() > 8 || error.id == 0)),
    }
    match Reply::parse(data) {
        Some((id, reply @ Reply::Kept(_))) => assert_eq!(reply.packet(id), data),
        // Bytes that are no UTF-8 are replaced, once.
        Some((id, reply @ Reply::Refused(_))) => assert_eq!(Reply::parse(&reply.packet(id)), Some((id, reply))),
        None => {}
    }
}

/// Any output in any pieces as packets of the attach socket: a client that puts them together has the output.
pub(crate) fn attach_packet(data: &[u8]) {
    let [cut, repeat, data @ ..] = data else { return };
    let output: Vec<u8> = data.iter().flat_map(|byte| std::iter::repeat_n(*byte, usize::from(*repeat) + 1)).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut sent = [Vec::new(), Vec::new()];
    for (number, piece) in output.chunks(usize::from(*cut) * 64 + 1).enumerate() {
        let stream = if number % 3 == 2 { StdStream::Stderr } else { StdStream::Stdout };
        sent[stream as usize].extend_from_slice(piece);
        for payload in payloads(Bytes::copy_from_slice(piece)) {
            let packet = [&head(stream)[..], &payload].concat();
            assert!((2..=MAX_PACKET).contains(&packet.len()) && packet[..1] != DONE);
            match packet.split_first() {
                Some((2, bytes)) => stdout.extend_from_slice(bytes),
                Some((3, bytes)) => stderr.extend_from_slice(bytes),
                other => panic!("{other:?} is no packet of output"),
            }
        }
    }
    assert_eq!([stdout, stderr], sent);
}

/// Any stream of sizes in any cuts. The size that holds in the end does not depend on the cuts, as long as no object is
/// longer than what is kept of one.
pub(crate) fn resize(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    let last = |size: usize| {
        let mut reader = ResizeReader::new();
        let last = data.chunks(size).filter_map(|part| reader.read(part)).last();
        assert!(last.is_none_or(|size| size.cols > 0 && size.rows > 0));
        last
    };
    let (whole, cut) = (last(data.len().max(1)), last(usize::from(cut).max(1)));
    assert!(whole == cut || data.len() >= 4096, "{whole:?} whole, {cut:?} in pieces");
}

/// Any header: what is read is what the standard calls valid, and is the same written as of today's version.
pub(crate) fn traceparent(data: &[u8]) {
    let Some(parent) = TraceParent::parse(data) else { return };
    assert!(parent.trace.0 != [0; 16] && parent.span != [0; 8] && data.is_ascii() | (data.len() > 55));
    let span = u64::from_be_bytes(parent.span);
    let text = format!("00-{}-{span:016x}-{:02x}", parent.trace, u8::from(parent.sampled));
    assert_eq!(TraceParent::parse(text.as_bytes()), Some(parent));
    assert_eq!(text.as_bytes()[3..53], data[3..53]);
}

/// Any last message of a server, and any text in one of ours.
pub(crate) fn status(data: &[u8]) {
    if let Ok(outcome) = decode(data) {
        assert!(!matches!(&outcome, Outcome::Failed(text) if text.len() > data.len()));
    }
    let text = String::from_utf8_lossy(data).into_owned();
    let message = encode(&Outcome::Failed(text.clone()), Version::V5).expect("from v4 on there always is one");
    assert_eq!(decode(&message), Ok(Outcome::Failed(format!("Internal error occurred: {text}"))));
    let code = data.first().copied().unwrap_or_default();
    let message = encode(&Outcome::Exited(code), Version::V4).expect("from v4 on there always is one");
    assert_eq!(decode(&message), Ok(Outcome::Exited(code)));
}
