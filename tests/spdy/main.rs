//! What `proto::spdy` writes. The stories of two ends stand beside the code; that no bytes and no calls break it, in
//! `fuzz_corpora`.

#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

use std::{path::Path, time::Instant};

use bytes::BytesMut;
use holdfast::proto::spdy::{Connection, Event, GoAwayStatus, RstStatus, Side, StreamId};

/// One end and what it has written.
struct End {
    connection: Connection,
    input: BytesMut,
    written: Vec<u8>,
}

impl End {
    fn new(side: Side) -> Self {
        Self { connection: Connection::new(side), input: BytesMut::new(), written: Vec::new() }
    }

    /// Writes what waits; the other end reads, accepts and consumes it.
    fn write_to(&mut self, other: &mut Self) {
        while let Some(frame) = self.connection.poll_transmit() {
            let bytes = [&frame.head[..], &frame.body].concat();
            other.input.extend_from_slice(&bytes);
            self.written.extend(bytes);
        }
        while let Some(event) = other.connection.next(Instant::now(), &mut other.input).unwrap() {
            match event {
                Event::Opened { id, .. } => other.connection.accept(id),
                Event::Data { id, bytes } => other.connection.consumed(id, bytes.len()),
                _ => {}
            }
        }
    }
}

// Spec item 60: "own SYN_REPLYs inflate in spdystream". With HOLDFAST_WRITE_GOLDEN=1 the files are written anew.
#[test]
fn what_we_write_is_what_the_go_library_was_shown() {
    let (mut client, mut server) = (End::new(Side::Client), End::new(Side::Server));
    let exchange = |client: &mut End, server: &mut End| {
        client.write_to(server);
        server.write_to(client);
        client.write_to(server);
    };
    let id = |number| StreamId::new(number).unwrap();
    for kind in ["error", "stdin", "stdout"] {
        client.connection.open(&[("streamtype", kind), ("port", "8080")], kind == "error").unwrap();
        exchange(&mut client, &mut server);
    }
    client.connection.ping().unwrap();
    server.connection.ping().unwrap();
    exchange(&mut client, &mut server);
    client.connection.send(id(3), vec![b'x'; 33_000].into()).unwrap();
    server.connection.send(id(5), "hello\n".into()).unwrap();
    exchange(&mut client, &mut server);
    client.connection.finish(id(3), "".into()).unwrap();
    server.connection.finish(id(5), "".into()).unwrap();
    server.connection.finish(id(1), r#"{"metadata":{},"status":"Success"}"#.into()).unwrap();
    server.connection.reset(id(3), RstStatus::CANCEL);
    exchange(&mut client, &mut server);
    server.connection.go_away(GoAwayStatus::OK);
    client.connection.go_away(GoAwayStatus::OK);
    exchange(&mut client, &mut server);

    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"));
    for (name, end) in [("spdy_our_client.bin", client), ("spdy_our_server.bin", server)] {
        let path = folder.join(name);
        if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &end.written).unwrap();
        }
        assert!(
            std::fs::read(&path).unwrap() == end.written,
            "{name}: show it to the Go library, tests/data/README.md"
        );
    }
}
