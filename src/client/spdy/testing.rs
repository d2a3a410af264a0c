//! A server in memory that does as it is told, for tests of our side.

use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::Wire;
use crate::proto::spdy::{Connection, Event, Headers, Side, StreamId};

#[derive(Debug)]
pub(in crate::client) struct Server {
    pub(in crate::client) connection: Connection,
    input: BytesMut,
    wire: DuplexStream,
}

impl Server {
    /// A server, and the wire to it.
    pub(in crate::client) fn new() -> (Wire, Self) {
        let (ours, theirs) = tokio::io::duplex(8 << 10);
        let (reader, writer) = tokio::io::split(ours);
        let wire = Wire { reader: Box::new(reader), writer: Box::new(writer), early: BytesMut::new() };
        (wire, Self { connection: Connection::new(Side::Server), input: BytesMut::new(), wire: theirs })
    }

    /// Writes what waits.
    pub(in crate::client) async fn flush(&mut self) {
        while let Some(frame) = self.connection.poll_transmit() {
            self.wire.write_all(&[&frame.head[..], &frame.body].concat()).await.unwrap();
        }
    }

    /// Writes bytes that are no frame.
    pub(in crate::client) async fn babble(&mut self) {
        self.wire.write_all(b"\xff\xff\xff\xff\xff\xff\xff\xff").await.unwrap();
    }

    /// The client's next event; payload counts as consumed.
    pub(in crate::client) async fn next(&mut self) -> Option<Event> {
        loop {
            self.flush().await;
            if let Some(event) = self.connection.next(Instant::now(), &mut self.input).unwrap() {
                if let Event::Data { id, bytes } = &event {
                    self.connection.consumed(*id, bytes.len());
                }
                return Some(event);
            }
            if self.wire.read_buf(&mut self.input).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// Accepts the next stream.
    pub(in crate::client) async fn opened(&mut self) -> (StreamId, Headers) {
        match self.next().await {
            Some(Event::Opened { id, headers }) => {
                self.connection.accept(id);
                self.flush().await;
                (id, headers)
            }
            other => panic!("no new stream: {other:?}"),
        }
    }

    /// Refuses the next stream.
    pub(in crate::client) async fn refuse(&mut self) {
        match self.next().await {
            Some(Event::Opened { id, .. }) => {
                self.connection.reset(id, crate::proto::spdy::RstStatus::CANCEL);
                self.flush().await;
            }
            other => panic!("no new stream: {other:?}"),
        }
    }

    /// Reads until something of a stream, of whatever kind, that is looked for.
    pub(in crate::client) async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next().await.expect("the client is there");
            if wanted(&event) {
                return event;
            }
        }
    }
}
