//! tokio and file descriptors, without policy.

pub(crate) mod blocking;
pub(crate) mod fd;
pub(crate) mod queue;
pub(crate) mod task;
