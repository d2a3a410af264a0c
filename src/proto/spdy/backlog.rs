//! Received bytes that were handed out and are not consumed yet.
//!
//! The core keeps no payload: what was received waits with its receiver (the queue of stdin, of a pod's socket). The core
//! keeps the account, because only it can stop the peer: it hands out nothing more while an account is full. There are no
//! windows, so this stops all streams of the connection, pings included (head-of-line blocking, spec 5.5); the bounds are
//! wide so that it is rare.

use std::collections::HashMap;
use std::time::Instant;

use super::frame::StreamId;

/// Bytes handed out and not consumed, of one stream. Full: nothing more is read from the connection.
pub const STREAM_BACKLOG: usize = 256 << 10;
/// The same for all streams of a connection.
pub const CONNECTION_BACKLOG: usize = 4 << 20;

/// The accounts of one connection. A stream without an entry holds nothing.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    accounts: HashMap<StreamId, Account>,
    /// The sum of all accounts.
    total: usize,
    /// Accounts at their bound.
    full: usize,
}

#[derive(Debug, Default)]
struct Account {
    bytes: usize,
    /// When it reached its bound; `None` below it.
    full_since: Option<Instant>,
}

impl Backlog {
    pub(super) fn is_full(&self) -> bool {
        self.full > 0 || self.total >= CONNECTION_BACKLOG
    }

    /// Which stream has been full for longest, and since when.
    pub(super) fn longest_full(&self) -> Option<(StreamId, Instant)> {
        let full = self.accounts.iter().filter_map(|(id, account)| Some((*id, account.full_since?)));
        full.min_by_key(|(id, since)| (*since, *id)).filter(|_| self.full > 0)
    }

    /// Bytes were handed out.
    pub(super) fn add(&mut self, now: Instant, id: StreamId, len: usize) {
        let account = self.accounts.entry(id).or_default();
        account.bytes += len;
        self.total += len;
        if account.bytes >= STREAM_BACKLOG && account.full_since.is_none() {
            account.full_since = Some(now);
            self.full += 1;
        }
    }

    /// Bytes were consumed; returns how many of them were on the account.
    pub(super) fn release(&mut self, id: StreamId, len: usize) -> usize {
        let Some(account) = self.accounts.get_mut(&id) else { return 0 };
        let len = len.min(account.bytes);
        account.bytes -= len;
        self.total -= len;
        if account.bytes < STREAM_BACKLOG && account.full_since.take().is_some() {
            self.full -= 1;
        }
        if account.bytes == 0 {
            self.accounts.remove(&id);
        }
        len
    }

    /// The stream was reset: nobody wants what is left.
    pub(super) fn forget(&mut self, id: StreamId) {
        self.release(id, usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(number: u32) -> StreamId {
        StreamId::new(number).unwrap()
    }

    #[test]
    fn an_account_is_full_until_something_is_consumed() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        backlog.add(start, id(1), STREAM_BACKLOG - 1);
        assert!(!backlog.is_full() && backlog.longest_full().is_none());
        let later = start + Duration::from_secs(1);
        backlog.add(later, id(1), 1);
        backlog.add(later + Duration::from_secs(1), id(3), STREAM_BACKLOG);
        assert_eq!((backlog.is_full(), backlog.longest_full()), (true, Some((id(1), later))));
        assert_eq!(backlog.release(id(1), 1), 1);
        backlog.forget(id(3));
        assert!(!backlog.is_full() && backlog.longest_full().is_none());
        assert_eq!((backlog.release(id(1), usize::MAX), backlog.release(id(1), 1)), (STREAM_BACKLOG - 1, 0));
        assert_eq!((backlog.total, backlog.accounts.len()), (0, 0));
    }

    #[test]
    fn many_streams_fill_the_connection() {
        let mut backlog = Backlog::default();
        for number in 1..=33 {
            assert!(!backlog.is_full());
            backlog.add(Instant::now(), id(number), CONNECTION_BACKLOG / 33 + 1);
        }
        assert!(backlog.is_full() && backlog.longest_full().is_none());
    }
}
