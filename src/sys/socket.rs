//! Unix sockets under paths longer than `sun_path` holds, and descriptors received over them.

use std::{
    io::IoSliceMut,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        socket::{
            AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen,
            recvmsg, socket,
        },
        stat::{Mode, fchmod},
    },
};

use super::{SysError, fd::adopt};

/// Binds and listens on a stream socket whose file has exactly the given mode (less the umask) from its first moment.
///
/// # Errors
/// `EADDRINUSE` when the path exists; `ENAMETOOLONG` when even the file name alone is too long.
pub(crate) fn listen_stream(path: &Path, mode: u32) -> Result<UnixListener, SysError> {
    let fail = |errno| SysError::at("listen on", path, errno);
    let fd = stream_socket().map_err(fail)?;
    // On Linux the mode of an unbound socket is the mode its file is made with: no moment in which others may connect.
    fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(fail)?;
    with_short_path(path, |address| bind(fd.as_raw_fd(), address)).map_err(fail)?;
    listen(&fd, Backlog::MAXCONN).map_err(fail)?;
    Ok(UnixListener::from(fd))
}

/// Connects to a stream socket under a path of any length.
///
/// # Errors
/// `ECONNREFUSED` when nobody listens any more, `ENOENT` when the file is gone.
pub(crate) fn connect_stream(path: &Path) -> Result<UnixStream, SysError> {
    let fail = |errno| SysError::at("connect to", path, errno);
    let fd = stream_socket().map_err(fail)?;
    with_short_path(path, |address| connect(fd.as_raw_fd(), address)).map_err(fail)?;
    Ok(UnixStream::from(fd))
}

fn stream_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// unix(7): `sun_path` holds 108 bytes. A long path is reached through a descriptor of its directory.
fn with_short_path<T>(path: &Path, call: impl FnOnce(&UnixAddr) -> nix::Result<T>) -> nix::Result<T> {
    if let Ok(address) = UnixAddr::new(path) {
        return call(&address);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    let directory = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let short: PathBuf = ["/proc/self/fd", &directory.as_raw_fd().to_string()].iter().collect();
    call(&UnixAddr::new(&short.join(name))?)
}

/// Receives one message with at most one descriptor (`SCM_RIGHTS`), close-on-exec from birth.
///
/// Returns `None` at the end of the connection or when a message carried no descriptor.
///
/// # Errors
/// `EAGAIN` when nothing has arrived yet.
pub(crate) fn receive_fd(stream: BorrowedFd<'_>) -> Result<Option<OwnedFd>, SysError> {
    // The sender puts the terminal's name into the message; nobody reads it.
    let mut name = [0u8; 4096];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut name)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let fail = |errno| SysError::new("receive a descriptor", errno);
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags).map_err(fail)?;
    let mut received = Vec::new();
    for part in message.cmsgs().map_err(fail)? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made them for us.
            received.extend(raw.into_iter().map(|raw| unsafe { adopt(raw) }));
        }
    }
    // Whatever came beyond the first is closed here by its drop.
    Ok(received.into_iter().next())
}

/// Keep-alive as the design sets it: 30 s idle, then 3 probes 10 s apart; and no delay for small frames.
///
/// # Errors
/// Passed on from setsockopt(2).
pub(crate) fn tune_tcp(fd: &impl std::os::fd::AsFd) -> Result<(), SysError> {
    use nix::sys::socket::{setsockopt, sockopt};
    let set = || {
        setsockopt(fd, sockopt::TcpNoDelay, &true)?;
        setsockopt(fd, sockopt::KeepAlive, &true)?;
        setsockopt(fd, sockopt::TcpKeepIdle, &30)?;
        setsockopt(fd, sockopt::TcpKeepInterval, &10)?;
        setsockopt(fd, sockopt::TcpKeepCount, &3)
    };
    set().map_err(|errno| SysError::new("set up a connection", errno))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn paths_longer_than_a_socket_address_work_and_have_their_mode_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("d".repeat(200));
        std::fs::create_dir(&long).unwrap();
        let path = long.join("conmon.sock");
        let _listener = listen_stream(&path, 0o700).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        connect_stream(&path).unwrap();
    }

    #[test]
    fn a_socket_nobody_listens_on_refuses() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(listen_stream(&path, 0o700).unwrap());
        assert_eq!(connect_stream(&path).unwrap_err().errno(), Errno::ECONNREFUSED);
    }
}
