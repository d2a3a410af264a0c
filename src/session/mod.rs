//! One client doing one thing: exec, attach or port forward.
//!
//! A session is two halves that run side by side, input and output, never one loop that awaits a write: a client that
//! sends while it is sent to (`cat`) would lock such a loop up.

pub(crate) mod attach;
pub(crate) mod client;
pub(crate) mod dial;
pub(crate) mod exec;
pub(crate) mod exec_sync;
pub(crate) mod pending;
pub(crate) mod port_forward;
mod table;

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::time::{Instant, sleep_until};

use self::client::{ClientEvent, ClientReader};
pub(crate) use self::table::{
    Carrier, ListedSession, Opening, Session, SessionGuard, SessionState, SessionTable, Subject,
};
use crate::stdio::Stdio;

/// How long a client that was given up (cut, or idle) may take to read what it had queued and why.
const GOODBYE_LIMIT: Duration = Duration::from_secs(60);

/// When data last moved either way; pings do not count.
#[derive(Debug)]
struct Activity {
    last: Cell<Instant>,
    /// Zero: no limit.
    limit: Duration,
    /// Where it is counted.
    session: Rc<Session>,
}

impl Activity {
    fn new(limit: Duration, session: &Rc<Session>) -> Self {
        Self { last: Cell::new(Instant::now()), limit, session: session.clone() }
    }

    /// Bytes came from the client.
    fn received(&self, bytes: usize) {
        self.session.received(bytes);
        self.touch();
    }

    /// Bytes went to the client.
    fn sent(&self, bytes: usize) {
        self.session.sent(bytes);
        self.touch();
    }

    fn touch(&self) {
        self.last.set(Instant::now());
    }

    /// Resolves when nothing has moved for the limit.
    async fn idle(&self) {
        if self.limit.is_zero() {
            std::future::pending::<()>().await;
        }
        loop {
            let deadline = self.last.get() + self.limit;
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// What the end of a client's input does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtStdinEnd {
    /// The process sees the end; the session goes on.
    HalfClose,
    /// Nothing: others may still send.
    Ignore,
    /// The session is over.
    Detach,
}

/// Why the input half ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputEnd {
    Gone,
    Detached,
}

/// The input half: hands events on until the client is gone or detaches. Waits while the process does not read.
async fn pass_input(
    reader: &mut impl ClientReader,
    stdio: &Stdio,
    stdin: bool,
    at_end: AtStdinEnd,
    activity: &Activity,
) -> InputEnd {
    loop {
        match reader.next().await {
            ClientEvent::Stdin(bytes) if stdin => {
                activity.received(bytes.len());
                // A process that takes no more input does not end the session: its output and status are still to come.
                tokio::select! {
                    biased;
                    _ = stdio.stdin().write(bytes) => {}
                    () = reader.lost() => return InputEnd::Gone,
                }
                activity.touch();
            }
            ClientEvent::Stdin(_) => {}
            ClientEvent::StdinClosed => match at_end {
                AtStdinEnd::HalfClose if stdin => stdio.stdin().half_close(),
                AtStdinEnd::Detach if stdin => return InputEnd::Detached,
                _ => {}
            },
            ClientEvent::Resize(size) => {
                if let Err(error) = stdio.resize(size) {
                    tracing::trace!(%error, "resize ignored");
                }
            }
            ClientEvent::Gone => return InputEnd::Gone,
        }
    }
}
