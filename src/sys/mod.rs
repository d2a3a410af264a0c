//! The only unsafe code: safe wrappers over system calls. No tokio, no tracing, no policy.
#![allow(unsafe_code)]

use std::{fmt, path::PathBuf};

use nix::errno::Errno;

pub(crate) mod datagram;
pub(crate) mod fd;
pub(crate) mod fork;
pub(crate) mod heap;
pub(crate) mod namespace;
pub(crate) mod netns;
pub(crate) mod notify;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod random;
pub(crate) mod reactor;
pub(crate) mod socket;
pub(crate) mod socket_file;
#[cfg(test)]
mod testing;

/// A system call that failed: what was tried, on what, and why the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysError {
    op: &'static str,
    path: Option<PathBuf>,
    errno: Errno,
}

impl SysError {
    pub(crate) fn new(op: &'static str, errno: Errno) -> Self {
        Self { op, path: None, errno }
    }

    /// The same for a call on a path.
    pub(crate) fn at(op: &'static str, path: impl Into<PathBuf>, errno: Errno) -> Self {
        Self { op, path: Some(path.into()), errno }
    }

    /// From the error of a `std` call without a path.
    pub(crate) fn from_io(op: &'static str, error: &std::io::Error) -> Self {
        Self::new(op, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    /// From the error of a `std` call on a path.
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        Self::at(op, path, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    /// The kernel's reason.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{} {}: {}", self.op, path.display(), self.errno.desc()),
            None => write!(f, "{}: {}", self.op, self.errno.desc()),
        }
    }
}

impl std::error::Error for SysError {}
