//! Exec and attach over SPDY: streams named by their headers, seen by the session as one client (streaming 5.7 to 5.10).

use std::{collections::VecDeque, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::{CANCEL, Carrier, Input, Link};
use crate::{
    io::queue::ByteQueue,
    model::{Chunk, Outcome, StdStream},
    proto::{
        remotecommand::Version,
        resize::ResizeReader,
        spdy::{Event, Headers, StreamId},
        status,
        stream_set::{Requested, StreamSet, StreamType},
    },
    session::client::{ClientEvent, ClientReader, ClientWriter, Gone},
};

/// Serves one upgraded connection: waits for the client's streams, runs the session, then waits for the client's good-bye.
pub(in crate::transport) async fn serve(
    carrier: Carrier,
    version: Version,
    requested: Requested,
    creation_timeout: Duration,
    session: impl AsyncFnOnce(&mut Reader<'_>, &mut Writer),
) {
    super::run(carrier, async |input, link| {
        let deadline = Instant::now() + creation_timeout;
        let mut set = StreamSet::new(version, requested, deadline.into_std());
        let Some(early) = open_streams(input, &mut set, deadline).await else { return };
        let streams = Streams {
            stdout: set.id_of(StreamType::Stdout),
            stderr: set.id_of(StreamType::Stderr),
            error: set.id_of(StreamType::Error),
            inputs: [set.id_of(StreamType::Stdin), set.id_of(StreamType::Resize)],
        };
        let mut writer = Writer { link: link.clone(), version, streams };
        let mut reader = Reader { input, early, set, sizes: ResizeReader::new() };
        session(&mut reader, &mut writer).await;
    })
    .await;
}

/// Waits until every stream of the set is there; returns what came on them meanwhile. `None` when the client is gone, took
/// too long or makes no sense: nothing has been started then.
async fn open_streams(input: &mut Input, set: &mut StreamSet, deadline: Instant) -> Option<Early> {
    let mut early = Early { data: ByteQueue::new(), ends: VecDeque::new() };
    while !set.is_complete() {
        let event = tokio::select! {
            event = input.next() => event?,
            () = sleep_until(deadline) => {
                tracing::debug!("a client did not open the streams of its session in time");
                return None;
            }
        };
        match event {
            Event::Opened { id, headers } => input.admit(set, id, &headers)?,
            Event::Rejected { .. } => input.rejected(set)?,
            Event::Data { id, bytes } => early.data.push(id, bytes),
            Event::Finished(_) | Event::Reset { .. } => early.ends.push_back(event),
            Event::GoAway { .. } => return None,
            _ => {}
        }
    }
    Some(early)
}

impl Input {
    /// Answers a stream that was opened at once: clients open the next one only then. `None`: one too many was senseless.
    fn admit(&self, set: &mut StreamSet, id: StreamId, headers: &Headers) -> Option<()> {
        match set.offer(id, headers) {
            Ok(_) => self.link.with(|connection| connection.accept(id)),
            Err(unwanted) => {
                tracing::debug!(%unwanted, "a stream was refused");
                self.link.with(|connection| connection.reset(id, unwanted.status()));
            }
        }
        (!set.is_hopeless()).then_some(())
    }

    /// The connection has answered a senseless stream by itself.
    fn rejected(&self, set: &mut StreamSet) -> Option<()> {
        set.count_rejected();
        (!set.is_hopeless()).then_some(())
    }
}

/// What came before the session.
#[derive(Debug)]
struct Early {
    /// On the accounts of its streams: the connection bounds them. Small pieces are copied together, or each would keep the
    /// buffer it was read into.
    data: ByteQueue<StreamId>,
    /// At most one for each stream.
    ends: VecDeque<Event>,
}

impl Early {
    /// Streams have nothing to do with each other, and of each the end came last.
    fn pop(&mut self) -> Option<Event> {
        let data = self.data.pop().map(|(id, bytes)| Event::Data { id, bytes });
        data.or_else(|| self.ends.pop_front())
    }
}

/// The client's streams as events.
#[derive(Debug)]
pub(in crate::transport) struct Reader<'a> {
    input: &'a mut Input,
    early: Early,
    set: StreamSet,
    sizes: ResizeReader,
}

impl ClientReader for Reader<'_> {
    async fn next(&mut self) -> ClientEvent {
        loop {
            let event = match self.early.pop() {
                Some(event) => event,
                None => match self.input.next().await {
                    Some(event) => event,
                    None => return ClientEvent::Gone,
                },
            };
            if let Some(event) = self.translate(event) {
                return event;
            }
        }
    }

    async fn lost(&self) {
        self.input.socket.lost().await;
    }
}

impl Reader<'_> {
    fn translate(&mut self, event: Event) -> Option<ClientEvent> {
        match event {
            Event::Data { id, bytes } => {
                // The session asks for nothing more until it has found room for this.
                self.input.link.with(|connection| connection.consumed(id, bytes.len()));
                match self.set.type_of(id)? {
                    StreamType::Stdin => Some(ClientEvent::Stdin(bytes)),
                    StreamType::Resize => self.sizes.read(&bytes).map(ClientEvent::Resize),
                    StreamType::Error | StreamType::Stdout | StreamType::Stderr => None,
                }
            }
            Event::Finished(id) | Event::Reset { id, .. } => {
                (self.set.type_of(id) == Some(StreamType::Stdin)).then_some(ClientEvent::StdinClosed)
            }
            Event::Opened { id, headers } => {
                let sense = self.input.admit(&mut self.set, id, &headers);
                self.unless_hopeless(sense)
            }
            Event::Rejected { .. } => {
                let sense = self.input.rejected(&mut self.set);
                self.unless_hopeless(sense)
            }
            Event::GoAway { .. } => self.unless_hopeless(None),
            _ => None,
        }
    }

    fn unless_hopeless(&mut self, sense: Option<()>) -> Option<ClientEvent> {
        if sense.is_some() {
            return None;
        }
        self.input.gone = true;
        Some(ClientEvent::Gone)
    }
}

/// Where output goes, and what is ended with it; what was not asked for is missing.
#[derive(Debug, Clone, Copy)]
struct Streams {
    stdout: Option<StreamId>,
    stderr: Option<StreamId>,
    error: Option<StreamId>,
    inputs: [Option<StreamId>; 2],
}

/// The session's output as payload of streams.
#[derive(Debug)]
pub(in crate::transport) struct Writer {
    link: Rc<Link>,
    version: Version,
    streams: Streams,
}

impl ClientWriter for Writer {
    async fn write(&mut self, chunk: Chunk) -> Result<(), Gone> {
        let stream = match chunk.stream {
            StdStream::Stdout => self.streams.stdout,
            StdStream::Stderr => self.streams.stderr,
        };
        let Some(stream) = stream else { return Ok(()) };
        // A client that has closed one output may still want the other, and the status.
        self.link.send(stream, chunk.bytes).await.map(|_| ())
    }

    async fn finish(&mut self, outcome: &Outcome) -> Result<(), Gone> {
        // Streams take turns on the wire: only what has left cannot be overtaken by the status.
        self.link.flushed().await;
        let status = status::encode(outcome, self.version).unwrap_or_default();
        self.link.with(|connection| {
            for input in self.streams.inputs.into_iter().flatten() {
                connection.reset(input, CANCEL);
            }
            let outputs = [
                (self.streams.error, status),
                (self.streams.stdout, Bytes::new()),
                (self.streams.stderr, Bytes::new()),
            ];
            for (stream, last_words) in outputs {
                if let Some(stream) = stream {
                    // A stream that the client has reset needs no end.
                    let _ = connection.finish(stream, last_words);
                }
            }
        });
        self.link.finished.set(true);
        self.link.flushed().await;
        if self.link.dead.get() { Err(Gone) } else { Ok(()) }
    }
}
