//! A client that reaches ports inside a pod: any number of TCP connections over one stream connection.
//!
//! ```text
//! ForwardReader ─▶ run (one loop) ─▶ Inbound (a queue per pair) ─▶ pair task ─▶ socket in the pod
//! ForwardWriter ◀──────────────────────────────────────────────── pair task ◀──┘
//! ```
//!
//! A *pair* is one forwarded connection; the name is SPDY's, where an error and a data stream make one. No pair's failure
//! ends another one; only a pod that is gone ends the session (streaming 6.2, 6.3).

mod inbound;
mod pair;

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::inbound::{ConnectionMemory, Inbound};
use super::{
    Activity, GOODBYE_LIMIT, Session as Listed,
    client::{ForwardEvent, ForwardReader, ForwardWriter, PairEnd, PairId},
    dial::Place,
};
use crate::{
    config::{ForwardRefusal, StreamConfig},
    io::{blocking::Blocking, task::Scope},
    stdio::ReadAhead,
};

/// A pair whose process has taken nothing for so long, while the whole connection waits for it, is reset: what other
/// connections send, new ones included, is behind the bytes that are not read.
const STUCK_LIMIT: Duration = Duration::from_secs(30);
/// How often that is looked at while the connection waits.
const STUCK_LOOK: Duration = Duration::from_secs(1);
/// After the client's end, processes may take for so long what it had sent before.
const DELIVERY_LIMIT: Duration = Duration::from_secs(5);

/// What is forwarded to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    /// Where the ports are.
    pub(crate) place: Place,
    /// The pod as its user knows it; empty when nobody told. For error texts only.
    pub(crate) pod: String,
}

impl Destination {
    /// What a caller has chosen of it, in bytes.
    pub(super) fn cost(&self) -> usize {
        let place = match &self.place {
            Place::Host => 0,
            Place::Namespace(path) => path.as_os_str().len(),
        };
        place + self.pod.len()
    }
}

/// What the pairs of one client share.
struct Session<W> {
    blocking: Blocking,
    refusal: ForwardRefusal,
    destination: Destination,
    writer: W,
    activity: Activity,
    pairs: RefCell<HashMap<PairId, Rc<Pair>>>,
    memory: Rc<ConnectionMemory>,
    /// Woken when the pod turned out to be gone.
    pod_gone: Notify,
}

/// One forwarded connection, as the reading loop sees it.
#[derive(Debug)]
struct Pair {
    inbound: Inbound,
    /// The client has reset it.
    reset: CancellationToken,
}

/// What a port forward needs of its daemon.
pub(crate) struct Surroundings<'a> {
    pub(crate) scope: &'a Scope,
    pub(crate) blocking: &'a Blocking,
    pub(crate) read_ahead: &'a Rc<ReadAhead>,
    pub(crate) config: &'a StreamConfig,
    /// Cancelled when the daemon shuts down.
    pub(crate) ending: &'a CancellationToken,
    pub(crate) session: &'a Rc<Listed>,
}

/// Serves one client until it is gone, idle for too long, or the pod or the daemon is gone.
pub(crate) async fn run<W: ForwardWriter>(
    surroundings: Surroundings<'_>,
    destination: Destination,
    reader: &mut impl ForwardReader,
    writer: W,
) {
    let Surroundings { scope, blocking, read_ahead, config, ending, session: listed } = surroundings;
    // Dropped at the end, and with it every pair and its socket.
    let scope = scope.child();
    let session = Rc::new(Session {
        blocking: blocking.clone(),
        refusal: config.forward_refusal,
        destination,
        writer: writer.clone(),
        activity: Activity::new(config.idle_timeout, listed),
        pairs: RefCell::default(),
        memory: ConnectionMemory::new(read_ahead.clone()),
        pod_gone: Notify::new(),
    });
    let client_is_there = tokio::select! {
        () = session.pass_events(reader, &scope) => false,
        () = session.activity.idle() => {
            tracing::info!(limit = ?config.idle_timeout, "port forward idle for too long");
            true
        }
        () = session.pod_gone.notified() => true,
        () = ending.cancelled() => true,
    };
    if client_is_there {
        session.reset_all();
        let _ = timeout(GOODBYE_LIMIT, writer.finish()).await;
    } else {
        let _ = timeout(DELIVERY_LIMIT, session.deliver()).await;
    }
}

impl<W: ForwardWriter> Session<W> {
    /// Hands the client's events to their pairs until it is gone. Waits while a pair or the connection is full.
    async fn pass_events(self: &Rc<Self>, reader: &mut impl ForwardReader, scope: &Scope) {
        loop {
            match reader.next().await {
                ForwardEvent::Opened { pair, port } => self.open(pair, port, scope),
                ForwardEvent::Data { pair, bytes } => self.pass_data(pair, bytes).await,
                ForwardEvent::HalfClosed(pair) => {
                    if let Some(pair) = self.find(pair) {
                        pair.inbound.half_close();
                    }
                }
                ForwardEvent::Reset(pair) => {
                    if let Some(pair) = self.find(pair) {
                        pair.reset.cancel();
                    }
                }
                ForwardEvent::Gone => return,
            }
        }
    }

    fn open(self: &Rc<Self>, id: PairId, port: u16, scope: &Scope) {
        let pair = Rc::new(Pair { inbound: Inbound::new(self.memory.clone()), reset: CancellationToken::new() });
        self.pairs.borrow_mut().insert(id, pair.clone());
        let session = self.clone();
        scope.spawn(async move {
            let end = pair::forward(&session, id, &pair, port).await;
            session.pairs.borrow_mut().remove(&id);
            session.writer.end(id, end);
        });
    }

    /// Tells the client the end of every pair: one that misses an end keeps its own connection open.
    fn reset_all(&self) {
        for id in self.pairs.take().into_keys() {
            self.writer.end(id, PairEnd::Reset);
        }
    }

    /// The client is gone. What it had sent is still for the pod, whose answers nobody wants.
    async fn deliver(&self) {
        self.pairs.borrow().values().for_each(|pair| pair.inbound.half_close());
        while self.pairs.borrow().values().any(|pair| !pair.inbound.is_delivered()) {
            self.memory.changed().await;
        }
    }

    /// No new connection can be made: the session ends once the client has been told why.
    fn pod_is_gone(&self) {
        self.pod_gone.notify_one();
    }

    fn find(&self, id: PairId) -> Option<Rc<Pair>> {
        self.pairs.borrow().get(&id).cloned()
    }

    async fn pass_data(&self, id: PairId, bytes: Bytes) {
        // What comes for a pair that has ended is of no use to anybody.
        let Some(pair) = self.find(id) else { return };
        self.activity.received(bytes.len());
        let look = async {
            loop {
                sleep(STUCK_LOOK).await;
                self.reset_stuck();
            }
        };
        tokio::select! {
            biased;
            () = pair.inbound.push(bytes) => {}
            () = pair.reset.cancelled() => {}
            () = look => {}
        }
    }

    /// Resets the pairs that keep the connection from being read. The one whose bytes cannot be queued need not be one
    /// of them: others may have used up what the connection may hold.
    fn reset_stuck(&self) {
        for pair in self.pairs.borrow().values().filter(|pair| pair.inbound.is_stuck(STUCK_LIMIT)) {
            tracing::debug!("a process in the pod takes no data while other connections wait: its connection is reset");
            // The room it used is the others' at once, not only when its task has run.
            pair.inbound.discard();
            pair.reset.cancel();
        }
    }
}

#[cfg(test)]
mod tests;
