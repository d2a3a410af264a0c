//! Streaming requests that wait for their client: plain data, no descriptor, no task.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use tokio::time::Instant;

use super::{ListedSession, Opening, port_forward::Destination};
use crate::{
    container::Container, oci::ExecSpec, proto::remotecommand::StreamKind, stdio::Wants, telemetry::counters::Counters,
};

/// What the commands of all waiting requests may take together, in bytes.
const BYTES_LIMIT: usize = 8 * 1024 * 1024;

/// Claimed tokens that may stay in the order of age before it is cleared of them, beside as many as still wait: a request
/// that nobody claims must not keep those behind it.
const CLAIMED_KEPT: usize = 32;

/// The secret in a session's URL: 128 random bits as hexadecimal digits, good for one connection.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn new(secret: String) -> Self {
        Self(secret)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever reads a log must not be able to use it.
        f.write_str("Token(…)")
    }
}

/// What the client of a URL will get.
#[derive(Debug)]
pub(crate) enum Request {
    Exec {
        spec: ExecSpec,
        wants: Wants,
    },
    Attach {
        container: std::rc::Weak<Container>,
        stdin: bool,
        wants: Wants,
    },
    PortForward {
        destination: Destination,
        /// For clients that need them beforehand; empty if nobody named any.
        ports: Vec<u16>,
    },
}

/// A request and what it is listed as.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) opening: Opening,
    pub(crate) request: Request,
}

impl Request {
    fn kind(&self) -> StreamKind {
        match self {
            Self::Exec { .. } => StreamKind::Exec,
            Self::Attach { .. } => StreamKind::Attach,
            Self::PortForward { .. } => StreamKind::PortForward,
        }
    }

    /// What it takes, in bytes: what a client may choose, and 64 for each word.
    fn cost(&self) -> usize {
        match self {
            Self::Exec { spec, .. } => spec.command.iter().map(|word| word.len() + 64).sum(),
            Self::Attach { .. } => 0,
            Self::PortForward { destination, ports } => destination.cost() + 2 * ports.len(),
        }
    }
}

/// The requests waiting, oldest first. Full: the oldest is dropped and counted, because a refused call would cost the
/// caller its whole control connection.
#[derive(Debug)]
pub(crate) struct PendingRequests {
    requests: HashMap<Token, Waiting>,
    /// In order of age. Claimed ones among them are at most as many as the others, and a few.
    ages: VecDeque<(Instant, Token)>,
    limit: usize,
    bytes: usize,
    lifetime: Duration,
    counters: Rc<Counters>,
}

impl PendingRequests {
    pub(crate) fn new(limit: usize, lifetime: Duration, counters: Rc<Counters>) -> Self {
        Self { requests: HashMap::new(), ages: VecDeque::new(), limit, bytes: 0, lifetime, counters }
    }

    /// Stores a request under its token.
    pub(crate) fn insert(&mut self, now: Instant, token: Token, waiting: Waiting) {
        self.expire(now);
        let cost = waiting.request.cost();
        // One alone is taken whatever it costs: a message has its own limit.
        while self.requests.len() >= self.limit.max(1) || self.bytes + cost > BYTES_LIMIT {
            let Some((_, oldest)) = self.ages.pop_front() else { break };
            if self.remove(&oldest).is_some() {
                self.counters.pending_evicted.increment();
                tracing::warn!(
                    limit = self.limit,
                    "too many streaming requests wait for their client: the oldest was dropped"
                );
            }
        }
        self.bytes += cost;
        self.ages.push_back((now, token.clone()));
        self.requests.insert(token, waiting);
    }

    /// Takes the request of a token. `None` for one that is unknown, used, expired or of another kind; only its own kind
    /// uses it up.
    pub(crate) fn claim(&mut self, now: Instant, kind: StreamKind, token: &str) -> Option<Waiting> {
        self.expire(now);
        let token = Token::new(token.to_owned());
        if self.requests.get(&token)?.request.kind() != kind {
            return None;
        }
        let request = self.remove(&token);
        if self.ages.len() > 2 * self.requests.len() + CLAIMED_KEPT {
            let Self { requests, ages, .. } = self;
            ages.retain(|(_, token)| requests.contains_key(token));
        }
        request
    }

    fn remove(&mut self, token: &Token) -> Option<Waiting> {
        let waiting = self.requests.remove(token)?;
        self.bytes -= waiting.request.cost();
        Some(waiting)
    }

    /// Forgets what is too old.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((born, token)) = self.ages.front() {
            if self.requests.contains_key(token) && now.duration_since(*born) < self.lifetime {
                break;
            }
            let token = token.clone();
            self.remove(&token);
            self.ages.pop_front();
        }
        if self.ages.is_empty() {
            // The room of the most that ever waited.
            self.requests.shrink_to_fit();
            self.ages.shrink_to_fit();
        }
    }

    /// What waits, in no order.
    pub(crate) fn list(&self) -> impl Iterator<Item = ListedSession> {
        self.requests.values().map(|waiting| ListedSession::waiting(waiting.opening.clone()))
    }

    /// When [`PendingRequests::expire`] will have something to do.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.ages.front().map(|(born, _)| *born + self.lifetime)
    }

    /// Drops everything that waits.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
        self.ages.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ContainerId,
        oci::{Purpose, argv::CgroupManager},
        session::{SessionTable, Subject},
    };

    const LIFETIME: Duration = Duration::from_secs(60);

    fn waiting(request: Request) -> Waiting {
        Waiting { opening: SessionTable::new(1, Rc::default()).opening(Subject::PortForward(String::new())), request }
    }

    fn request() -> Waiting {
        let wants = Wants { stdout: true, stderr: false };
        waiting(Request::Attach { container: std::rc::Weak::new(), stdin: false, wants })
    }

    fn token(n: usize) -> Token {
        Token::new(format!("token-{n}"))
    }

    #[test]
    fn a_token_works_once_and_only_for_its_own_kind() {
        let (mut pending, now) = (PendingRequests::new(10, LIFETIME, Rc::default()), Instant::now());
        pending.insert(now, token(1), request());
        assert!(pending.claim(now, StreamKind::Exec, "token-1").is_none());
        assert!(pending.claim(now, StreamKind::Attach, "token-1").is_some());
        assert!(pending.claim(now, StreamKind::Attach, "token-1").is_none());
        assert!(pending.claim(now, StreamKind::Attach, "guessed").is_none());
    }

    #[test]
    fn a_token_expires_after_its_lifetime() {
        let (mut pending, now) = (PendingRequests::new(10, LIFETIME, Rc::default()), Instant::now());
        pending.insert(now, token(1), request());
        assert_eq!(pending.next_expiry(), Some(now + LIFETIME));
        assert!(pending.claim(now + LIFETIME, StreamKind::Attach, "token-1").is_none());
        assert_eq!(pending.next_expiry(), None);
    }

    #[test]
    fn a_request_that_nobody_claimed_kept_all_claimed_tokens_behind_it() {
        let (mut pending, now) = (PendingRequests::new(1000, LIFETIME, Rc::default()), Instant::now());
        pending.insert(now, token(0), request());
        for n in 1..10_000 {
            pending.insert(now, token(n), request());
            assert!(pending.claim(now, StreamKind::Attach, &format!("token-{n}")).is_some());
        }
        assert!(pending.ages.len() <= 2 + CLAIMED_KEPT, "{}", pending.ages.len());
        assert!(pending.claim(now, StreamKind::Attach, "token-0").is_some());
    }

    #[test]
    fn beyond_the_limit_the_oldest_is_dropped() {
        let (mut pending, now) = (PendingRequests::new(1000, LIFETIME, Rc::default()), Instant::now());
        for n in 0..1001 {
            pending.insert(now, token(n), request());
        }
        assert_eq!((pending.requests.len(), pending.counters.pending_evicted.value()), (1000, 1));
        assert!(pending.claim(now, StreamKind::Attach, "token-0").is_none());
        assert!(pending.claim(now, StreamKind::Attach, "token-1000").is_some());
    }

    #[test]
    fn long_commands_cost_older_requests_their_place() {
        let exec = |size: usize| {
            waiting(Request::Exec {
                spec: ExecSpec {
                    id: ContainerId::parse("c").unwrap(),
                    command: vec!["x".repeat(size)],
                    terminal: false,
                    stdin: false,
                    env: Vec::new(),
                    cgroup_manager: CgroupManager::Cgroupfs,
                    purpose: Purpose::Streaming,
                },
                wants: Wants { stdout: true, stderr: false },
            })
        };
        let (mut pending, now) = (PendingRequests::new(1000, LIFETIME, Rc::default()), Instant::now());
        for n in 0..20 {
            pending.insert(now, token(n), exec(1 << 20));
        }
        assert!(pending.requests.len() == 7 && pending.bytes <= BYTES_LIMIT, "{}", pending.bytes);
        pending.insert(now, token(20), exec(9 << 20));
        assert_eq!((pending.requests.len(), pending.counters.pending_evicted.value()), (1, 20));
        assert!(pending.claim(now, StreamKind::Exec, "token-20").is_some());
        pending.insert(now, token(21), exec(5));
        pending.expire(now + LIFETIME);
        assert_eq!(pending.bytes, 0);
    }

    #[test]
    fn claimed_tokens_do_not_pile_up() {
        let (mut pending, now) = (PendingRequests::new(10, LIFETIME, Rc::default()), Instant::now());
        for n in 0..5000 {
            pending.insert(now, token(n), request());
            pending.claim(now, StreamKind::Attach, token(n).as_str()).unwrap();
        }
        assert!(pending.ages.len() <= 1);
    }
}
