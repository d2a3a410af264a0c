//! Descriptors on their way from a client of the descriptor socket to a create.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
};

/// Descriptors that wait, in all. Full: refused, none of the packet is kept.
const SLOT_LIMIT: usize = 1024;
/// Those of one connection: two full packets. Full: as above.
const CONNECTION_SLOTS: usize = 506;

/// Which descriptor waits under which number.
#[derive(Debug)]
pub(crate) struct Slots {
    waiting: RefCell<HashMap<u64, Waiting>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Waiting {
    fd: OwnedFd,
    /// Whose end frees the slot.
    connection: u64,
}

/// Why descriptors are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("{CONNECTION_SLOTS} descriptors of one connection may wait for a container, and these would be more")]
    Connection,
    #[error("{SLOT_LIMIT} descriptors may wait for a container, and these would be more")]
    All,
}

/// A slot that cannot be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSlot {
    #[error("slot {0} is unknown: nothing was sent for it, or it was claimed already, or its sender has gone")]
    Unknown(u64),
    #[error("slot {0} is named twice: one descriptor has one owner")]
    Twice(u64),
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { waiting: RefCell::default(), next: Cell::new(1) }
    }

    /// Keeps descriptors, all or none, and returns their slots in the same order.
    pub(super) fn keep(&self, connection: u64, fds: Vec<OwnedFd>) -> Result<Vec<u64>, (Full, Vec<OwnedFd>)> {
        let mut waiting = self.waiting.borrow_mut();
        let of_connection = waiting.values().filter(|slot| slot.connection == connection).count();
        if of_connection + fds.len() > CONNECTION_SLOTS {
            return Err((Full::Connection, fds));
        }
        if waiting.len() + fds.len() > SLOT_LIMIT {
            return Err((Full::All, fds));
        }
        let keep = |fd| {
            let slot = self.free_number(&waiting);
            waiting.insert(slot, Waiting { fd, connection });
            slot
        };
        Ok(fds.into_iter().map(keep).collect())
    }

    fn free_number(&self, waiting: &HashMap<u64, Waiting>) -> u64 {
        loop {
            let number = self.next.get();
            self.next.set(number.wrapping_add(1));
            if number != 0 && !waiting.contains_key(&number) {
                return number;
            }
        }
    }

    /// Takes the descriptors of all these slots, or none: of one list what it is for, and its slots.
    pub(crate) fn claim<const LISTS: usize>(
        &self,
        lists: [(&'static str, &[u64]); LISTS],
    ) -> Result<[Vec<OwnedFd>; LISTS], (&'static str, NoSlot)> {
        let mut waiting = self.waiting.borrow_mut();
        let mut seen = HashSet::new();
        for (field, slots) in lists {
            for &slot in slots {
                if !waiting.contains_key(&slot) {
                    return Err((field, NoSlot::Unknown(slot)));
                }
                if !seen.insert(slot) {
                    return Err((field, NoSlot::Twice(slot)));
                }
            }
        }
        let mut take = |slots: &[u64]| slots.iter().filter_map(|slot| Some(waiting.remove(slot)?.fd)).collect();
        Ok(lists.map(|(_, slots)| take(slots)))
    }

    /// Whether descriptors of this connection wait.
    pub(super) fn has_of(&self, connection: u64) -> bool {
        self.waiting.borrow().values().any(|slot| slot.connection == connection)
    }

    /// Takes out what nobody has claimed of a connection.
    pub(super) fn forget(&self, connection: u64) -> Vec<OwnedFd> {
        let mut waiting = self.waiting.borrow_mut();
        let of_connection = waiting.extract_if(|_, slot| slot.connection == connection);
        of_connection.map(|(_, slot)| slot.fd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fds(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
    }

    fn keep(slots: &Slots, connection: u64, count: usize) -> Vec<u64> {
        slots.keep(connection, fds(count)).map_err(|(full, _)| full).unwrap()
    }

    #[test]
    fn slots_count_from_one_and_wrap_past_those_that_are_taken() {
        let slots = Slots::new();
        assert_eq!(keep(&slots, 1, 2), [1, 2]);
        assert_eq!(keep(&slots, 2, 1), [3]);
        slots.next.set(u64::MAX);
        assert_eq!(keep(&slots, 1, 2), [u64::MAX, 4]);
    }

    #[test]
    fn a_claim_takes_all_or_nothing_and_only_once() {
        let slots = Slots::new();
        keep(&slots, 1, 3);
        for (lists, refused) in [
            ([("a", &[1, 2][..]), ("b", &[9])], ("b", NoSlot::Unknown(9))),
            ([("a", &[1]), ("b", &[2, 1])], ("b", NoSlot::Twice(1))),
            ([("a", &[3, 3]), ("b", &[])], ("a", NoSlot::Twice(3))),
            ([("a", &[0]), ("b", &[1])], ("a", NoSlot::Unknown(0))),
        ] {
            assert_eq!(slots.claim(lists).unwrap_err(), refused);
        }
        let [a, b] = slots.claim([("a", &[3, 1]), ("b", &[2])]).unwrap();
        assert_eq!((a.len(), b.len()), (2, 1));
        assert_eq!(slots.claim([("a", &[1])]).unwrap_err(), ("a", NoSlot::Unknown(1)));
    }

    #[test]
    fn a_full_table_keeps_nothing_of_a_packet_and_a_connections_end_makes_room() {
        let slots = Slots::new();
        keep(&slots, 1, 253);
        keep(&slots, 1, 253);
        let (full, refused) = slots.keep(1, fds(1)).unwrap_err();
        assert_eq!((full, refused.len()), (Full::Connection, 1));
        keep(&slots, 2, 253);
        keep(&slots, 2, 253);
        assert_eq!(slots.keep(3, fds(13)).unwrap_err().0, Full::All);
        keep(&slots, 3, 12);
        assert_eq!((slots.forget(1).len(), slots.has_of(1), slots.has_of(2)), (506, false, true));
        keep(&slots, 3, 13);
    }
}
