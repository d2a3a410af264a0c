//! Who does what: the sessions under way, as callers may list them.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::SystemTime,
};

use crate::{
    container::{Exec, ExecFacts, Numbered, Records},
    io::{heap::Heap, task::Scope},
    model::ContainerId,
};

/// The exit code of what could not be started, which no process has (control-api 4.3).
pub(crate) const NOT_STARTED: i32 = -2;

/// What a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    Exec(ContainerId),
    ExecSync(ContainerId),
    Attach(ContainerId),
    /// With the pod as its caller named it; may be empty.
    PortForward(String),
}

impl Subject {
    fn container(&self) -> Option<&ContainerId> {
        match self {
            Self::Exec(id) | Self::ExecSync(id) | Self::Attach(id) => Some(id),
            Self::PortForward(_) => None,
        }
    }
}

/// ```text
/// Waiting ──its client comes──▶ Active ──told how it ended──▶ forgotten
///                                  └──client gone──▶ Detached ──command ended──▶ Ended
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionState {
    /// Its URL has been given out.
    Waiting,
    Active,
    /// The command of an exec runs on without its client.
    Detached,
    /// The command has ended and nobody was told.
    Ended,
}

/// How a client's bytes come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    WebSocket,
    Spdy,
    Tunnel,
    AttachSocket,
}

/// What is fixed when a session is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    /// In the order of the calls and connections; never used twice.
    pub(crate) number: u64,
    pub(crate) time: SystemTime,
    pub(crate) subject: Subject,
}

/// One session, as its parts note what they do. No token, command line or environment is in it. Listed until the last part
/// has dropped it.
#[derive(Debug)]
pub(crate) struct Session {
    table: Rc<SessionTable>,
    opening: Opening,
    state: Cell<SessionState>,
    carrier: Cell<Option<Carrier>>,
    peer: Cell<Option<SocketAddr>>,
    exec: OnceCell<Rc<ExecFacts>>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl Session {
    /// Notes how its client comes.
    pub(crate) fn connected(&self, carrier: Carrier, peer: Option<SocketAddr>) {
        self.carrier.set(Some(carrier));
        self.peer.set(peer);
    }

    /// Notes what it runs.
    pub(super) fn runs(&self, exec: &Exec) {
        // A session runs one command; a second would not be noted.
        let _ = self.exec.set(exec.facts().clone());
    }

    /// Counts bytes of the client.
    pub(super) fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// Counts bytes to the client.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    /// The client of an exec is gone: it is listed as such until the command has ended, and then as an end that nobody was
    /// told.
    pub(super) fn detach(self: &Rc<Self>, mut exec: Exec, scope: &Scope) {
        self.state.set(SessionState::Detached);
        let session = self.clone();
        scope.spawn(async move {
            let code = exec.ended().await.map_or(NOT_STARTED, |status| status.code());
            session.untold(code);
        });
    }

    /// The command has ended, and whoever asked for it is not there to be told.
    pub(crate) fn untold(&self, code: i32) {
        let end = ListedSession {
            state: SessionState::Ended,
            code: Some(code),
            ended: Some(SystemTime::now()),
            ..self.listed()
        };
        // Its other parts may not have dropped it yet.
        self.state.set(SessionState::Ended);
        self.table.untold.borrow_mut().push(end);
    }

    fn listed(&self) -> ListedSession {
        let (pid, exit) = self.exec.get().map_or((0, None), |exec| (exec.pid.get(), exec.exit.get()));
        ListedSession {
            state: self.state.get(),
            carrier: self.carrier.get(),
            peer: self.peer.get(),
            pid,
            code: exit.map(|status| status.code()),
            received: self.received.get(),
            sent: self.sent.get(),
            ..ListedSession::waiting(self.opening.clone())
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.table.known.borrow_mut().remove(&self.opening.number);
        self.table.heap.freed();
    }
}

/// A session as a caller is told of it.
#[derive(Debug, Clone)]
pub(crate) struct ListedSession {
    pub(crate) opening: Opening,
    pub(crate) state: SessionState,
    pub(crate) carrier: Option<Carrier>,
    pub(crate) peer: Option<SocketAddr>,
    /// Of an exec; 0 until it has been started.
    pub(crate) pid: u32,
    /// Of an exec, once it has ended; as execSync answers it.
    pub(crate) code: Option<i32>,
    pub(crate) ended: Option<SystemTime>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl ListedSession {
    pub(crate) fn waiting(opening: Opening) -> Self {
        Self {
            opening,
            state: SessionState::Waiting,
            carrier: None,
            peer: None,
            pid: 0,
            code: None,
            ended: None,
            received: 0,
            sent: 0,
        }
    }

    pub(crate) fn is_wanted(&self, id: Option<&ContainerId>, after: u64) -> bool {
        self.opening.number > after && id.is_none_or(|id| self.opening.subject.container() == Some(id))
    }
}

impl Numbered for ListedSession {
    fn number(&self) -> u64 {
        self.opening.number
    }
}

/// The sessions under way. Full: a new client is refused before its token is looked at.
#[derive(Debug)]
pub(crate) struct SessionTable {
    /// Those with a client, of all transports.
    running: Cell<usize>,
    limit: usize,
    /// Told when one has ended.
    heap: Rc<Heap>,
    last_number: Cell<u64>,
    /// As many as run, as there are calls of execSync, and as there are commands without their clients: each has more
    /// than this elsewhere.
    known: RefCell<BTreeMap<u64, Weak<Session>>>,
    /// Ends of commands that nobody was told. See [`Records`] for its bound.
    untold: RefCell<Records<ListedSession>>,
}

impl SessionTable {
    pub(crate) fn new(limit: usize, heap: Rc<Heap>) -> Rc<Self> {
        Rc::new(Self {
            running: Cell::new(0),
            limit,
            heap,
            last_number: Cell::new(0),
            known: RefCell::default(),
            untold: RefCell::default(),
        })
    }

    pub(crate) fn is_full(&self) -> bool {
        self.running.get() >= self.limit
    }

    /// A session is asked for now.
    pub(crate) fn opening(&self, subject: Subject) -> Opening {
        let number = self.last_number.get() + 1;
        self.last_number.set(number);
        Opening { number, time: SystemTime::now(), subject }
    }

    /// Counts and lists a session for as long as the guard lives.
    pub(crate) fn enter(self: &Rc<Self>, opening: Opening) -> SessionGuard {
        self.running.set(self.running.get() + 1);
        SessionGuard(self.begin(opening))
    }

    /// Lists what is not counted: a call of the engine's.
    pub(crate) fn begin(self: &Rc<Self>, opening: Opening) -> Rc<Session> {
        let number = opening.number;
        let session = Rc::new(Session {
            table: self.clone(),
            opening,
            state: Cell::new(SessionState::Active),
            carrier: Cell::default(),
            peer: Cell::default(),
            exec: OnceCell::new(),
            received: Cell::default(),
            sent: Cell::default(),
        });
        self.known.borrow_mut().insert(number, Rc::downgrade(&session));
        session
    }

    /// All with larger numbers than `after`, by number, but those whose clients have not come.
    pub(crate) fn list(&self, id: Option<&ContainerId>, after: u64) -> Vec<ListedSession> {
        let known = self.known.borrow().values().filter_map(Weak::upgrade).collect::<Vec<_>>();
        // An end is among the ends.
        let known = known.iter().filter(|s| s.state.get() != SessionState::Ended);
        let mut all: Vec<_> = known.map(|session| session.listed()).filter(|s| s.is_wanted(id, after)).collect();
        all.extend(self.untold.borrow().iter().filter(|session| session.is_wanted(id, after)).cloned());
        all.sort_unstable_by_key(Numbered::number);
        all
    }

    /// Ends that went for newer ones before anybody collected them.
    pub(crate) fn dropped_ends(&self) -> u64 {
        self.untold.borrow().dropped()
    }

    /// The ends of sessions with these numbers have been collected. Returns how many there were.
    pub(crate) fn forget(&self, numbers: impl Iterator<Item = u64>) -> u32 {
        self.untold.borrow_mut().forget(numbers)
    }
}

/// One running session.
#[derive(Debug)]
pub(crate) struct SessionGuard(Rc<Session>);

impl SessionGuard {
    pub(crate) fn session(&self) -> &Rc<Session> {
        &self.0
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let table = &self.0.table;
        table.running.set(table.running.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(table: &SessionTable) -> Opening {
        table.opening(Subject::ExecSync(ContainerId::parse("c").unwrap()))
    }

    fn seen(table: &SessionTable, after: u64) -> Vec<(u64, SessionState, Option<i32>)> {
        table.list(None, after).into_iter().map(|s| (s.opening.number, s.state, s.code)).collect()
    }

    #[test]
    fn a_session_is_counted_while_its_client_is_there_and_listed_until_its_last_part_is_gone() {
        let table = SessionTable::new(1, Rc::default());
        let guard = table.enter(exec(&table));
        let part = guard.session().clone();
        assert!(table.is_full());
        drop(guard);
        assert!(!table.is_full());
        assert_eq!(seen(&table, 0), [(1, SessionState::Active, None)]);
        drop(part);
        assert_eq!(seen(&table, 0), []);
    }

    #[test]
    fn an_end_that_nobody_was_told_is_listed_once_and_until_it_is_forgotten() {
        let table = SessionTable::new(1, Rc::default());
        let (first, second) = (table.begin(exec(&table)), table.begin(exec(&table)));
        first.untold(3);
        let (end, active) = ((1, SessionState::Ended, Some(3)), (2, SessionState::Active, None));
        assert_eq!(seen(&table, 0), [end, active], "although a part of it is still there");
        drop(first);
        assert_eq!(table.forget([2].into_iter()), 0, "it goes on");
        assert_eq!(seen(&table, 0), [end, active]);
        assert_eq!(seen(&table, 1), [active]);
        assert_eq!(table.forget([1, 2].into_iter()), 1);
        assert_eq!(seen(&table, 0), [active]);
        let other = ContainerId::parse("other").unwrap();
        assert!(table.list(Some(&other), 0).is_empty());
        drop(second);
    }
}
