//! Phases of the daemon's life, and the requests that move it on.
//!
//! Whoever wants the daemon to stop says so here; whoever has to stop watches here. So neither knows `daemon.rs`.

use std::rc::Rc;

use tokio::sync::watch;

/// A step of the daemon's life. Steps only go forward.
///
/// ```text
///  Running ── request() ──▶ Draining ──▶ Killing ──▶ Closed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Serving.
    Running,
    /// Nothing new is taken: listeners stop accepting, new calls are refused, pending requests are dropped.
    Draining,
    /// Containers and execs are being killed and their exits written down.
    Killing,
    /// All is done; what is left ends at once.
    Closed,
}

/// A handle on the daemon's phase. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ShutdownHandle(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    phase: watch::Sender<Phase>,
    /// A second request came: skip the graces.
    hurry: watch::Sender<bool>,
}

impl ShutdownHandle {
    pub(crate) fn new() -> Self {
        let (phase, _) = watch::channel(Phase::Running);
        let (hurry, _) = watch::channel(false);
        Self(Rc::new(Shared { phase, hurry }))
    }

    /// Asks the daemon to stop: the first request starts the draining, any further one sets the hurry flag.
    pub(crate) fn request(&self) {
        if !self.advance(Phase::Draining) {
            self.0.hurry.send_if_modified(|hurry| !std::mem::replace(hurry, true));
        }
    }

    /// Enters a later phase; says whether it was later.
    pub(crate) fn advance(&self, to: Phase) -> bool {
        self.0.phase.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = to.max(*phase);
            later
        })
    }

    /// A receiver that sees every later phase (but not each step, when they follow at once).
    pub(crate) fn subscribe(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    /// Resolves when this phase or a later one is entered.
    pub(crate) async fn reached(&self, phase: Phase) {
        // An error would mean that the sender is gone, and we hold it.
        let _ = self.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Resolves when a second request has come.
    pub(crate) async fn hurried(&self) {
        let _ = self.0.hurry.subscribe().wait_for(|hurry| *hurry).await;
    }

    /// Whether a second request has come.
    pub(crate) fn is_hurried(&self) -> bool {
        *self.0.hurry.borrow()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_first_request_drains_and_the_second_hurries() {
        let shutdown = ShutdownHandle::new();
        let watcher = shutdown.subscribe();
        assert_eq!((*shutdown.subscribe().borrow(), shutdown.is_hurried()), (Phase::Running, false));
        shutdown.clone().request();
        assert_eq!((*watcher.borrow(), shutdown.is_hurried()), (Phase::Draining, false));
        shutdown.request();
        assert_eq!((*watcher.borrow(), shutdown.is_hurried()), (Phase::Draining, true));
    }

    #[test]
    fn phases_never_go_back() {
        let shutdown = ShutdownHandle::new();
        assert!(shutdown.advance(Phase::Killing));
        assert!(!shutdown.advance(Phase::Draining));
        assert_eq!(*shutdown.subscribe().borrow(), Phase::Killing);
        shutdown.request();
        assert!(shutdown.is_hurried(), "a request while killing is a second one");
    }

    #[test]
    fn waiting_for_a_phase_also_ends_when_it_was_skipped_or_is_over() {
        let shutdown = ShutdownHandle::new();
        let mut drained = Box::pin(shutdown.reached(Phase::Draining));
        assert!(drained.as_mut().now_or_never().is_none());
        assert!(shutdown.hurried().now_or_never().is_none());
        shutdown.advance(Phase::Closed);
        assert!(drained.now_or_never().is_some());
        assert!(shutdown.reached(Phase::Killing).now_or_never().is_some());
        shutdown.request();
        assert!(shutdown.hurried().now_or_never().is_some());
    }
}
