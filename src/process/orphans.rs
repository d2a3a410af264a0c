//! Descendants nobody waits for: as subreaper the daemon becomes their parent and must collect them, but never a process
//! whose status somebody is waiting for.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, HashSet},
    rc::Rc,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use crate::{sys::process, telemetry::counters::Counters};

/// Which children are watched, and which launches are under way.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    watched: RefCell<HashSet<u32>>,
    launches: RefCell<BTreeSet<u64>>,
    next_launch: Cell<u64>,
    /// Unknown zombies: the newest launch that was in flight when each was first seen.
    seen: RefCell<HashMap<u32, Option<u64>>>,
    counters: Rc<Counters>,
    look_again: Notify,
}

impl Processes {
    pub(crate) fn new(counters: Rc<Counters>) -> Rc<Self> {
        Rc::new(Self { counters, ..Self::default() })
    }

    /// Announces a launch whose process numbers are not known yet. Until the guard is dropped, a zombie that appears is
    /// left alone: it may be the very process whose pidfile has not been read.
    pub(crate) fn launching(self: &Rc<Self>) -> LaunchGuard {
        let number = self.next_launch.get();
        self.next_launch.set(number + 1);
        self.launches.borrow_mut().insert(number);
        LaunchGuard { number, registry: self.clone() }
    }

    /// False when it is watched already.
    pub(super) fn watch(&self, pid: u32) -> bool {
        self.watched.borrow_mut().insert(pid)
    }

    pub(super) fn collected(&self, pid: u32) {
        self.watched.borrow_mut().remove(&pid);
        // A watched zombie hides all others from the peek: now the next one can be seen.
        self.look_again.notify_one();
    }

    /// Collects orphans for the life of the daemon.
    pub(crate) async fn reap_orphans(self: Rc<Self>) {
        let mut children = match signal(SignalKind::child()) {
            Ok(children) => children,
            Err(error) => {
                tracing::error!(%error, "cannot watch for orphans: zombies will pile up");
                return;
            }
        };
        loop {
            self.reap_what_may_be();
            tokio::select! {
                _ = children.recv() => {}
                () = self.look_again.notified() => {}
            }
        }
    }

    fn reap_what_may_be(&self) {
        while let Some(pid) = process::first_zombie() {
            if self.watched.borrow().contains(&pid) || !self.may_reap(pid) {
                return;
            }
            self.seen.borrow_mut().remove(&pid);
            if let Some(status) = process::reap_pid(pid) {
                self.counters.orphans_reaped.increment();
                tracing::debug!(pid, %status, "collected an orphan");
            }
        }
        // No zombie is left, so no number in here is still one.
        self.seen.borrow_mut().clear();
    }

    fn may_reap(&self, pid: u32) -> bool {
        let launches = self.launches.borrow();
        let newest = *self.seen.borrow_mut().entry(pid).or_insert_with(|| launches.last().copied());
        newest.is_none_or(|newest| launches.first().is_none_or(|&oldest| oldest > newest))
    }
}

/// A launch under way; see [`Processes::launching`].
#[derive(Debug)]
pub(crate) struct LaunchGuard {
    number: u64,
    registry: Rc<Processes>,
}

impl Drop for LaunchGuard {
    fn drop(&mut self) {
        self.registry.launches.borrow_mut().remove(&self.number);
        self.registry.look_again.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_zombie_waits_for_the_launches_that_ran_when_it_was_first_seen() {
        let registry = Rc::new(Processes::default());
        let early = registry.launching();
        assert!(!registry.may_reap(7));
        let late = registry.launching();
        assert!(!registry.may_reap(7));
        drop(early);
        assert!(registry.may_reap(7), "a launch that began later does not hold it back");
        drop(late);
        assert!(registry.may_reap(8));
    }
}
