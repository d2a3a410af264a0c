//! Handing a descriptor to tokio's reactor: the one place in `sys/` that names tokio, since its constructor is unsafe.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use tokio::io::{Interest, unix::AsyncFd};

use super::SysError;

/// Registers a descriptor with the reactor of the current runtime.
///
/// # Errors
/// `EPERM` for regular files and directories, which epoll(7) does not watch.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, SysError> {
    // SAFETY: an `OwnedFd` is open, always names the same descriptor, and is moved in: it stays so until the drop.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| {
        let error = std::io::Error::from(error);
        SysError::new("watch a descriptor", Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    })
}
