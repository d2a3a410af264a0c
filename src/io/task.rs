//! Owners of tasks: nothing in the daemon is spawned elsewhere.

use std::future::Future;

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// Owns tasks. Cancelling it (or dropping it) drops their futures at their next await; joining waits until all are gone.
///
/// A child scope is cancelled with its parent, but can be cancelled and joined alone.
#[derive(Debug)]
pub(crate) struct Scope {
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Scope {
    pub(crate) fn new() -> Self {
        Self { cancel: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    /// A scope for a part: a container, a connection.
    pub(crate) fn child(&self) -> Self {
        Self { cancel: self.cancel.child_token(), tasks: TaskTracker::new() }
    }

    /// Runs a task in the current span until it ends or the scope is cancelled.
    #[allow(clippy::disallowed_methods)] // The one place that spawns.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let cancel = self.cancel.clone();
        let task = async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = task => {}
            }
        };
        tokio::task::spawn_local(self.tasks.track_future(task.instrument(tracing::Span::current())));
    }

    /// Ends all tasks of this scope and its children at their next await.
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits until every task has ended. Tasks may still be added meanwhile; they are waited for too.
    pub(crate) async fn join(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
