//! Processes we wait for. One mechanism for all: a pidfd, polled; a status is collected exactly once, by its [`Process`].

pub(crate) mod cgroup;
pub(crate) mod exec_cgroup;
mod foreign;
pub(crate) mod oom;
pub(crate) mod orphans;
pub(crate) mod stuck;
pub(crate) mod tree;

use std::{
    cell::Cell,
    os::fd::{AsFd as _, OwnedFd},
    process::Child,
    rc::Rc,
};

use nix::errno::Errno;
use tokio::io::{Interest, unix::AsyncFd};

pub(crate) use self::{foreign::Foreign, orphans::Processes};
use crate::{
    model::ExitStatus,
    sys::{
        SysError,
        process::{self, ChildState},
        reactor,
    },
};

/// A child process (or a descendant that became our child), held by pidfd: its number cannot be reused while we hold it
/// uncollected, and a signal can only reach it.
///
/// Dropping it without having waited leaves the zombie to the orphan reaper.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    status: Cell<Option<ExitStatus>>,
    registry: Rc<Processes>,
}

/// Whether a process is the first of a pid namespace (`NSpid`, proc_pid_status(5)).
pub(crate) fn leads_namespace(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.and_then(|numbers| numbers.split_whitespace().last()) == Some("1")
}

/// Kills a child that was started too late for anybody to want it. It may have been collected as an orphan already and its
/// number be another's: only a child of ours is signalled, and by pidfd.
pub(crate) fn kill_late(child: &Child) {
    let Ok(pidfd) = process::pidfd_open(child.id()) else { return };
    if process::peek(pidfd.as_fd()) == Ok(ChildState::Running) {
        // It may have ended, which is as good.
        let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    }
}

/// Why a process number could not be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdoptError {
    /// The number names something that is not a child of the daemon.
    #[error("process {0} is not a child of this daemon")]
    NotAChild(u32),
    /// The number names a process that is watched already: another container's or exec's.
    #[error("process {0} belongs to another container or exec")]
    Taken(u32),
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl Process {
    /// Takes over a child by its number: one just spawned, or one whose parent (the OCI runtime) has ended so that we, the
    /// subreaper, inherited it.
    pub(crate) fn adopt(registry: &Rc<Processes>, pid: u32) -> Result<Self, AdoptError> {
        let pidfd = match process::pidfd_open(pid) {
            Err(error) if error.errno() == Errno::ESRCH => return Err(AdoptError::NotAChild(pid)),
            other => other?,
        };
        if process::peek(pidfd.as_fd())? == ChildState::NotOurs {
            return Err(AdoptError::NotAChild(pid));
        }
        let pidfd = reactor::watch(pidfd, Interest::READABLE)?;
        // A pidfile must not give away a process that somebody else is responsible for.
        if !registry.watch(pid) {
            return Err(AdoptError::Taken(pid));
        }
        Ok(Self { pid, pidfd, status: Cell::new(None), registry: registry.clone() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to this process alone. No error when it has ended meanwhile.
    pub(crate) fn signal(&self, signal: i32) {
        if self.status.get().is_none()
            && let Err(error) = process::pidfd_send_signal(self.pidfd.as_fd(), signal)
            && error.errno() != Errno::ESRCH
        {
            tracing::warn!(pid = self.pid, %error, "could not signal a process");
        }
    }

    /// Kills the process group it leads, then the process itself.
    pub(crate) fn kill_group(&self) {
        if self.status.get().is_none() {
            // The group's number stays taken while its leader is not collected. It may be empty or not led by us: fine.
            let _ = process::kill_group(self.pid, libc::SIGKILL);
            self.signal(libc::SIGKILL);
        }
    }

    /// Waits for the end without collecting the status: the number stays taken, so its group can still be signalled.
    pub(crate) async fn ended_uncollected(&self) -> Option<ExitStatus> {
        while self.status.get().is_none() {
            let mut ready = self.pidfd.readable().await.ok()?;
            match process::peek(self.pidfd.as_fd()) {
                // The readiness is kept for whoever collects the status.
                Ok(ChildState::Ended(status)) => return Some(status),
                Ok(ChildState::Running) => ready.clear_ready(),
                Ok(ChildState::NotOurs) | Err(_) => return None,
            }
        }
        self.status.get()
    }

    /// Waits for the end and collects the status. May be awaited by several tasks; all see the same status. Cancel safe.
    pub(crate) async fn wait(&self) -> ExitStatus {
        loop {
            if let Some(status) = self.status.get() {
                return status;
            }
            let Ok(mut ready) = self.pidfd.readable().await else {
                // The reactor is gone: the daemon is ending.
                return ExitStatus::Lost;
            };
            ready.clear_ready();
            match process::reap(self.pidfd.as_fd()) {
                Ok(ChildState::Running) => {}
                Ok(ChildState::Ended(status)) => self.ended(status),
                Ok(ChildState::NotOurs) if self.status.get().is_some() => {}
                Ok(ChildState::NotOurs) => {
                    tracing::error!(pid = self.pid, "the exit status was collected by somebody else");
                    self.ended(ExitStatus::Lost);
                }
                Err(error) => {
                    tracing::error!(pid = self.pid, %error, "cannot wait for a process");
                    self.ended(ExitStatus::Lost);
                }
            }
        }
    }

    fn ended(&self, status: ExitStatus) {
        self.status.set(Some(status));
        self.registry.collected(self.pid);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.get().is_none() {
            self.registry.collected(self.pid);
        }
    }
}
