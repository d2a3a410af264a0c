//! Port forward over SPDY: pairs of streams, seen by the session as forwarded connections (streaming 6.1).

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep_until};

use super::{CANCEL, Carrier, Input, Link, Sent};
use crate::{
    proto::{
        port_forward::{Pair, Pairs},
        spdy::{Connection, Event, GoAwayStatus, Headers, StreamId},
    },
    session::client::{ForwardEvent, ForwardReader, ForwardWriter, Gone, PairEnd, PairId},
};

/// Serves one upgraded connection: runs the session, then waits for the client's good-bye. A stream may wait for its
/// partner for as long as `creation_timeout`.
pub(in crate::transport) async fn serve(
    carrier: Carrier,
    creation_timeout: Duration,
    session: impl AsyncFnOnce(&mut Reader<'_>, Writer),
) {
    super::run(carrier, async |input, link| {
        let pairs = Rc::new(RefCell::new(Pairs::new(creation_timeout)));
        let writer = Writer { link: link.clone(), pairs: pairs.clone() };
        let mut reader = Reader { input, pairs, early: HashMap::new(), due: VecDeque::new() };
        session(&mut reader, writer).await;
    })
    .await;
}

/// What came on a stream before its partner.
#[derive(Debug, Default)]
struct Early {
    /// Copied together: pieces of one byte, each with a place in a queue, would take far more than the account says.
    bytes: BytesMut,
    finished: bool,
}

/// The client's streams as events of forwarded connections.
#[derive(Debug)]
pub(in crate::transport) struct Reader<'a> {
    input: &'a mut Input,
    pairs: Rc<RefCell<Pairs>>,
    /// What came on streams whose partner is not there yet. It waits on the stream's account: the connection bounds
    /// it, and stops reading at the bound.
    early: HashMap<StreamId, Early>,
    /// Events that are known and not taken yet: those of a pair's time before it was one.
    due: VecDeque<Event>,
}

impl ForwardReader for Reader<'_> {
    async fn next(&mut self) -> ForwardEvent {
        loop {
            let event = match self.due.pop_front() {
                Some(event) => event,
                None => match self.next_event().await {
                    Some(event) => event,
                    None => return ForwardEvent::Gone,
                },
            };
            if let Some(event) = self.translate(event) {
                return event;
            }
        }
    }
}

impl Reader<'_> {
    /// Waits for the client, and resets streams that have waited too long for their partner.
    async fn next_event(&mut self) -> Option<Event> {
        loop {
            let deadline = self.pairs.borrow().deadline();
            let overdue = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.input.next() => return event,
                () = overdue => {}
            }
            for lonely in self.pairs.borrow_mut().expire(Instant::now().into_std()) {
                self.early.remove(&lonely);
                self.input.link.with(|connection| connection.reset(lonely, CANCEL));
            }
        }
    }

    fn translate(&mut self, event: Event) -> Option<ForwardEvent> {
        match event {
            Event::Opened { id, headers } => self.opened(id, &headers),
            Event::Data { id, bytes } => {
                let pair = match self.place_of(id) {
                    Place::Waiting => {
                        self.early.entry(id).or_default().bytes.extend_from_slice(&bytes);
                        return None;
                    }
                    Place::DataOf(pair) => Some(pair),
                    Place::Other => None,
                };
                self.input.link.with(|connection| connection.consumed(id, bytes.len()));
                pair.map(|pair| ForwardEvent::Data { pair, bytes })
            }
            Event::Finished(id) => match self.place_of(id) {
                Place::Waiting => {
                    self.early.entry(id).or_default().finished = true;
                    None
                }
                Place::DataOf(pair) => Some(ForwardEvent::HalfClosed(pair)),
                // Of an error stream it is what clients begin with.
                Place::Other => None,
            },
            Event::Reset { id, .. } => {
                self.early.remove(&id);
                let pair = self.pairs.borrow().pair_of(id);
                // Its request id is free at once: the client may use it in the next frame.
                self.pairs.borrow_mut().remove(id);
                let pair = pair?;
                self.input.link.with(|connection| end_streams(connection, pair, PairEnd::Reset));
                Some(ForwardEvent::Reset(pair_id(pair.data)))
            }
            Event::GoAway { .. } => {
                self.input.gone = true;
                Some(ForwardEvent::Gone)
            }
            _ => None,
        }
    }

    fn opened(&mut self, id: StreamId, headers: &Headers) -> Option<ForwardEvent> {
        let offered = self.pairs.borrow_mut().offer(Instant::now().into_std(), id, headers);
        match offered {
            Ok(complete) => {
                self.input.link.with(|connection| connection.accept(id));
                let Pair { data, error, port, .. } = complete?;
                // With most clients its end, which says nothing; bytes say nothing either.
                if let Some(early) = self.early.remove(&error) {
                    self.input.link.with(|connection| connection.consumed(error, early.bytes.len()));
                }
                if let Some(early) = self.early.remove(&data) {
                    let bytes = Some(early.bytes.freeze()).filter(|bytes| !bytes.is_empty());
                    self.due.extend(bytes.map(|bytes| Event::Data { id: data, bytes }));
                    self.due.extend(early.finished.then_some(Event::Finished(data)));
                }
                Some(ForwardEvent::Opened { pair: pair_id(data), port })
            }
            Err(error) => {
                tracing::debug!(%error, "a stream was refused");
                self.input.link.with(|connection| connection.reset(id, error.status()));
                None
            }
        }
    }

    fn place_of(&self, id: StreamId) -> Place {
        let pairs = self.pairs.borrow();
        match pairs.pair_of(id) {
            Some(pair) if pair.data == id => Place::DataOf(pair_id(id)),
            Some(_) => Place::Other,
            None if pairs.is_waiting(id) => Place::Waiting,
            None => Place::Other,
        }
    }
}

/// What a stream is.
enum Place {
    /// Its partner has not come.
    Waiting,
    DataOf(PairId),
    /// An error stream, or one whose connection is over.
    Other,
}

/// Both streams end in every case: a client that misses one end waits for it. What is closed already stays so.
fn end_streams(connection: &mut Connection, pair: Pair, end: PairEnd) {
    match end {
        PairEnd::Done => drop(connection.finish(pair.data, Bytes::new())),
        PairEnd::Reset => {}
        PairEnd::Failed(text) => drop(connection.finish(pair.error, text.into())),
    }
    connection.reset(pair.data, CANCEL);
    let _ = connection.finish(pair.error, Bytes::new());
    connection.reset(pair.error, CANCEL);
}

fn pair_id(data: StreamId) -> PairId {
    PairId(data.number().into())
}

/// The forwarded connections' way to the client.
#[derive(Debug, Clone)]
pub(in crate::transport) struct Writer {
    link: Rc<Link>,
    pairs: Rc<RefCell<Pairs>>,
}

impl Writer {
    fn pair(&self, id: PairId) -> Option<Pair> {
        let stream = StreamId::new(u32::try_from(id.0).ok()?)?;
        self.pairs.borrow().pair_of(stream)
    }
}

impl ForwardWriter for Writer {
    const HALF_CLOSE: bool = true;
    const TEXT_ENDS_ALL: bool = true;

    async fn write(&self, pair: PairId, bytes: Bytes) -> Result<(), Gone> {
        let pair = self.pair(pair).ok_or(Gone)?;
        match self.link.send(pair.data, bytes).await? {
            Sent::Queued => Ok(()),
            Sent::Closed => Err(Gone),
        }
    }

    fn half_close(&self, pair: PairId) {
        if let Some(pair) = self.pair(pair) {
            // Clients wait for the end of both before they close their own connection. Either may be closed already,
            // which is as good.
            for stream in [pair.data, pair.error] {
                let _ = self.link.with(|connection| connection.finish(stream, Bytes::new()));
            }
        }
    }

    fn end(&self, id: PairId, end: PairEnd) {
        let Some(pair) = self.pair(id) else { return };
        self.link.with(|connection| end_streams(connection, pair, end));
        self.pairs.borrow_mut().remove(pair.data);
    }

    async fn finish(&self) {
        self.link.finished.set(true);
        // Clients have nothing else to tell them that their session is over.
        self.link.with(|connection| connection.go_away(GoAwayStatus::OK));
        self.link.flushed().await;
    }
}
