//! Bytes recorded from the Go library. How they were made: tests/data/README.md. What we write for it is in tests/spdy.

use super::*;
use crate::proto::testing::split_invariant;

const EXEC_CLIENT: &[u8] = include_bytes!("../../../../tests/data/spdy_go_exec_client.bin");
const EXEC_SERVER: &[u8] = include_bytes!("../../../../tests/data/spdy_go_exec_server.bin");
const FORWARD_CLIENT: &[u8] = include_bytes!("../../../../tests/data/spdy_go_forward_client.bin");

const SIZE: &[u8] = b"{\"Width\":80,\"Height\":24}\n";
const STATUS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;

fn data(number: u32, bytes: &[u8]) -> Seen {
    Seen::Data(number, bytes.to_vec())
}

fn finished(number: u32) -> Seen {
    Seen::Other(Event::Finished(id(number)))
}

fn reset(number: u32) -> Seen {
    Seen::Other(Event::Reset { id: id(number), status: RstStatus::CANCEL })
}

fn goaway(last_good: u32) -> Seen {
    Seen::Other(Event::GoAway { last_good, status: GoAwayStatus::OK })
}

fn opened() -> impl Iterator<Item = Seen> {
    let kinds = [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr"), (9, "resize")];
    kinds.into_iter().map(|(number, kind)| Seen::Opened(number, kind.into()))
}

/// Feeds a recorded direction to a connection at all kinds of cuts. What the other direction said is not fed, so streams
/// opened here are opened first.
fn replay(side: Side, opens: usize, bytes: &[u8]) -> Vec<Seen> {
    let make = || {
        let mut end = End::new(side);
        for _ in 0..opens {
            end.connection.open(&[], false).unwrap();
        }
        end
    };
    split_invariant(bytes, make, |end, input, seen| {
        std::mem::swap(&mut end.input, input);
        end.read(epoch());
        let _ = end.written();
        std::mem::swap(&mut end.input, input);
        *seen = end.seen.clone();
    })
}

#[test]
fn a_recorded_exec_client_is_understood() {
    let rest = [data(3, b"hi\n"), data(9, SIZE), finished(3), reset(5), goaway(0)];
    assert_eq!(replay(Side::Server, 0, EXEC_CLIENT), opened().chain(rest).collect::<Vec<_>>());
}

#[test]
fn a_recorded_exec_server_is_understood() {
    let accepted = [1, 3, 5, 7, 9].map(|number| Seen::Other(Event::Accepted(id(number))));
    let output = [data(5, b"hello\n"), data(7, b"oops\n"), data(1, STATUS)];
    let ends = [finished(5), finished(7), finished(1), reset(9), goaway(9)];
    let expected: Vec<_> = accepted.into_iter().chain(output).chain(ends).collect();
    assert_eq!(replay(Side::Client, 5, EXEC_SERVER), expected);
}

#[test]
fn a_recorded_port_forward_client_is_understood() {
    let mut end = End::new(Side::Server);
    let mut input = BytesMut::from(FORWARD_CLIENT);
    let mut opened = Vec::new();
    while let Some(event) = end.connection.next(epoch(), &mut input).unwrap() {
        if let Event::Opened { id, headers } = event {
            let value = |name| String::from_utf8_lossy(headers.value(name).unwrap()).into_owned();
            opened.push((id.number(), value("streamtype"), value("port"), value("requestid")));
        }
    }
    let pair = [(1, "error"), (3, "data")].map(|(number, kind)| (number, kind.into(), "8080".into(), "0".into()));
    assert_eq!(opened, pair);
    let request = data(3, b"GET / HTTP/1.0\r\n\r\n");
    let expected = [Seen::Opened(1, "error".into()), finished(1), Seen::Opened(3, "data".into()), request, finished(3)];
    assert_eq!(replay(Side::Server, 0, FORWARD_CLIENT), expected.into_iter().chain([goaway(0)]).collect::<Vec<_>>());
}
