//! Processes that are not our children: they can be watched and signalled, but have no status for us.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::{SysError, process, reactor};

/// A process that an earlier daemon started, held by pidfd.
#[derive(Debug)]
pub(crate) struct Foreign {
    pidfd: AsyncFd<OwnedFd>,
}

impl Foreign {
    /// Takes hold of the process that has this number now; `None` when there is none. Which one it is must be looked at
    /// afterwards: only then can the number not change hands between looking and holding.
    pub(crate) fn open(pid: u32) -> Result<Option<Self>, SysError> {
        match process::pidfd_open(pid) {
            Ok(pidfd) => Ok(Some(Self { pidfd: reactor::watch(pidfd, Interest::READABLE)? })),
            // Not the leader of its thread group: not what we are looking for either.
            Err(error) if matches!(error.errno(), Errno::ESRCH | Errno::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends it a signal. No error when it has ended meanwhile.
    pub(crate) fn signal(&self, signal: i32) {
        if let Err(error) = process::pidfd_send_signal(self.pidfd.as_fd(), signal)
            && error.errno() != Errno::ESRCH
        {
            tracing::warn!(%error, "could not signal a process of an earlier daemon");
        }
    }

    /// Waits for its end (pidfd_open(2): it is readable then). Cancel safe.
    pub(crate) async fn ended(&self) {
        // An error would mean that the reactor is gone: the daemon is ending.
        if let Ok(mut ready) = self.pidfd.readable().await {
            ready.retain_ready();
        }
    }
}
