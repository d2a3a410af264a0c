//! Unix sockets under paths longer than `sun_path` holds, whole packets, and descriptors received over them.

use std::{
    io::IoSlice,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        socket::{
            AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen,
            recv, sendmsg, shutdown, socket,
        },
        stat::{Mode, fchmod},
    },
};

use super::{
    SysError,
    fd::{adopt, fionread},
};

/// The most descriptors one message carries: the kernel's own limit (`SCM_MAX_FD`, unix(7)).
const FDS_PER_MESSAGE: libc::c_uint = 253;
/// Control data for so many, in bytes: 1032.
// SAFETY: arithmetic only, cmsg(3).
const RIGHTS_ROOM: usize = unsafe { libc::CMSG_SPACE(FDS_PER_MESSAGE * 4) } as usize;

/// Binds and listens on a stream socket whose file has exactly the given mode (less the umask) from its first moment.
///
/// # Errors
/// `EADDRINUSE` when the path exists; `ENAMETOOLONG` when even the file name alone is too long.
pub(crate) fn listen_stream(path: &Path, mode: u32) -> Result<UnixListener, SysError> {
    listen_at(path, SockType::Stream, mode).map(UnixListener::from)
}

/// The same for a socket of packets (`SOCK_SEQPACKET`).
///
/// # Errors
/// As those of [`listen_stream`].
pub(crate) fn listen_seqpacket(path: &Path, mode: u32) -> Result<OwnedFd, SysError> {
    listen_at(path, SockType::SeqPacket, mode)
}

/// Connects to a stream socket under a path of any length.
///
/// # Errors
/// `ECONNREFUSED` when nobody listens any more, `ENOENT` when the file is gone.
pub(crate) fn connect_stream(path: &Path) -> Result<UnixStream, SysError> {
    connect_at(path, SockType::Stream).map(UnixStream::from)
}

/// The same for a socket of packets.
#[cfg(test)]
pub(crate) fn connect_seqpacket(path: &Path) -> Result<OwnedFd, SysError> {
    connect_at(path, SockType::SeqPacket)
}

/// Whether some process has the socket of this file open. Nobody notices the question: it is put with a datagram socket,
/// for which the kernel looks the owner up and then refuses all other types (`EPROTOTYPE`), so no connection is made that
/// the owner would see come and go.
///
/// # Errors
/// What is not known, passed on from connect(2).
pub(crate) fn is_open(path: &Path) -> Result<bool, SysError> {
    match connect_at(path, SockType::Datagram) {
        Ok(_) => Ok(true),
        Err(error) => match error.errno() {
            Errno::EPROTOTYPE => Ok(true),
            Errno::ECONNREFUSED | Errno::ENOENT => Ok(false),
            _ => Err(error),
        },
    }
}

fn listen_at(path: &Path, kind: SockType, mode: u32) -> Result<OwnedFd, SysError> {
    let fail = |errno| SysError::at("listen on", path, errno);
    let fd = unix_socket(kind).map_err(fail)?;
    // On Linux the mode of an unbound socket is the mode its file is made with: no moment in which others may connect.
    fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(fail)?;
    with_short_path(path, |address| bind(fd.as_raw_fd(), address)).map_err(fail)?;
    listen(&fd, Backlog::MAXCONN).map_err(fail)?;
    Ok(fd)
}

fn connect_at(path: &Path, kind: SockType) -> Result<OwnedFd, SysError> {
    let fail = |errno| SysError::at("connect to", path, errno);
    let fd = unix_socket(kind).map_err(fail)?;
    with_short_path(path, |address| connect(fd.as_raw_fd(), address)).map_err(fail)?;
    Ok(fd)
}

fn unix_socket(kind: SockType) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
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

/// Takes the next connection of a listener, close-on-exec and not blocking.
///
/// # Errors
/// `EAGAIN` when nobody waits; `EMFILE` and its kin when there is no descriptor for it.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { adopt(raw) })
}

/// Sends one packet of two parts: all of it or nothing.
///
/// # Errors
/// `EAGAIN` when the receiver has too much unread; `EPIPE` or `ECONNRESET` when it is gone.
pub(crate) fn send_packet(socket: BorrowedFd<'_>, head: &[u8], body: &[u8]) -> nix::Result<()> {
    let parts = [IoSlice::new(head), IoSlice::new(body)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &parts, &[], flags, None).map(drop)
}

/// A packet, or the end of what the other side sends.
#[derive(Debug)]
pub(crate) enum Received {
    /// Its bytes (perhaps none) and the descriptors that came with it.
    Packet(Vec<u8>, Vec<OwnedFd>),
    End,
}

/// Receives one whole packet, however large, and the descriptors that came with it, close-on-exec from birth. Without
/// `with_fds` the kernel drops them.
///
/// # Errors
/// `EAGAIN` when nothing has arrived yet.
pub(crate) fn receive_packet(socket: BorrowedFd<'_>, with_fds: bool) -> nix::Result<Received> {
    // With MSG_TRUNC the kernel answers the true length, so nothing is ever cut (recv(2)).
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    let mut bytes = vec![0; after_reset(|| recv(socket.as_raw_fd(), &mut [], peek))?];
    let mut taken = Vec::new();
    let length = after_reset(|| receive_message(socket, &mut bytes, with_fds, &mut taken))?;
    bytes.truncate(length);
    // An empty packet reads like the end. It is none while the other side may still send, or if more waits behind it.
    if length == 0 && taken.is_empty() && has_ended(socket)? && fionread(socket).map_err(|e| e.errno())? == 0 {
        return Ok(Received::End);
    }
    Ok(Received::Packet(bytes, taken))
}

/// A peer that closes with unread packets leaves `ECONNRESET`, which is told once: what it had sent can still be received.
fn after_reset<T>(mut attempt: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    match attempt() {
        Err(Errno::ECONNRESET) => attempt(),
        done => done,
    }
}

/// Whether the other side has said that it sends no more.
fn has_ended(socket: BorrowedFd<'_>) -> nix::Result<bool> {
    // nix does not know POLLRDHUP, poll(2).
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one structure, which lives for the call.
    Errno::result(unsafe { libc::poll(&raw mut polled, 1, 0) })?;
    Ok(polled.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0)
}

/// Ends both ways so that the peer still gets everything that was sent: a close with unread input would make its next
/// receive fail.
pub(crate) fn close_gently(socket: BorrowedFd<'_>) {
    // Nothing more can arrive behind this, so the loop has an end.
    if shutdown(socket.as_raw_fd(), Shutdown::Both).is_ok() {
        while matches!(receive_packet(socket, false), Ok(Received::Packet(..))) {}
    }
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
    let mut received = Vec::new();
    receive_message(stream, &mut name, true, &mut received)
        .map_err(|errno| SysError::new("receive a descriptor", errno))?;
    // Whatever came beyond the first is closed here by its drop.
    Ok(received.into_iter().next())
}

/// recvmsg(2). Every descriptor the kernel has made for us gets its owner in `taken`, also where it could not make all of
/// them (`MSG_CTRUNC`, when this process may have no more).
fn receive_message(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    with_fds: bool,
    taken: &mut Vec<OwnedFd>,
) -> nix::Result<usize> {
    // In words: control data is aligned to them.
    let mut control = [0usize; RIGHTS_ROOM.div_ceil(size_of::<usize>())];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: a plain C structure, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if with_fds {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = RIGHTS_ROOM as _;
    }
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in the message leads to a live buffer of the length that stands beside it.
    let count = Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })?;
    // SAFETY: the kernel has filled the control data and its length in.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !next.is_null() {
        // SAFETY: the macros of cmsg(3) give heads and data within the control data. Each number is a descriptor that the
        // kernel has just made for us; data need not be aligned.
        unsafe {
            let head = &*next;
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
                let length = head.cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(next).cast::<RawFd>();
                let number = |index| first.add(index).read_unaligned();
                taken.extend((0..length / size_of::<RawFd>()).map(|index| adopt(number(index))));
            }
            next = libc::CMSG_NXTHDR(&raw const message, next);
        }
    }
    usize::try_from(count).map_err(|_| Errno::EINVAL)
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

/// How long ago the peer's last acknowledgement came (`TCP_INFO`, tcp(7)).
pub(crate) fn since_last_ack(fd: &impl std::os::fd::AsFd) -> Result<std::time::Duration, SysError> {
    Ok(std::time::Duration::from_millis(u64::from(tcp_info(fd)?.tcpi_last_ack_recv)))
}

/// Whether a connection can still be written to: it was neither reset, nor given up, nor shut down by us. A peer that has
/// said that it sends no more may still read. Unlike reading, this sees a reset behind bytes that are not read yet.
pub(crate) fn is_connected(fd: &impl std::os::fd::AsFd) -> Result<bool, SysError> {
    /// States of net/tcp_states.h.
    const ESTABLISHED: u8 = 1;
    const CLOSE_WAIT: u8 = 8;
    Ok(matches!(tcp_info(fd)?.tcpi_state, ESTABLISHED | CLOSE_WAIT))
}

fn tcp_info(fd: &impl std::os::fd::AsFd) -> Result<libc::tcp_info, SysError> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes, which are those of `info`.
    let done = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(done).map_err(|errno| SysError::new("ask about a connection", errno))?;
    // SAFETY: it was all zeroes before, and any bytes make a `tcp_info`: it has nothing but numbers.
    Ok(unsafe { info.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_last_acknowledgement_of_a_new_connection_is_recent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(since_last_ack(&stream).unwrap() < std::time::Duration::from_secs(60));
        assert!(since_last_ack(&UnixStream::pair().unwrap().0).is_err());
    }

    #[test]
    fn a_peer_that_is_gone_without_a_word_is_asked_after_30_s_and_3_times_10_s_apart() {
        use nix::sys::socket::{getsockopt, sockopt};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        tune_tcp(&stream).unwrap();
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle).unwrap(), 30);
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepInterval).unwrap(), 10);
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepCount).unwrap(), 3);
    }

    #[test]
    fn a_reset_is_seen_behind_bytes_that_are_not_read() {
        use std::io::Write as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (mut ends, server) = pair();
        ends.write_all(b"not read").unwrap();
        ends.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(is_connected(&server).unwrap(), "it may still read");
        let (mut resets, server) = pair();
        resets.write_all(b"not read").unwrap();
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&resets, nix::sys::socket::sockopt::Linger, &linger).unwrap();
        assert!(is_connected(&server).unwrap());
        drop(resets);
        assert!(!is_connected(&server).unwrap());
    }

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
