//! tokio and file descriptors, without policy.

pub(crate) mod blocking;
pub(crate) mod fd;
pub(crate) mod heap;
mod pool;
pub(crate) mod queue;
pub(crate) mod seqpacket;
pub(crate) mod task;

/// Runs the async body of a test on a runtime such as the daemon's, in real time.
#[cfg(test)]
pub(crate) fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    runtime.unwrap().block_on(test);
}
