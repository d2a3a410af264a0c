//! Handing descriptors to a daemon for containers to come; control-api.md 4.8.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    path::Path,
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg, socket,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    proto::fd_message::{Reply, Request},
    sys::reactor,
};

/// The largest reply: the head and a slot for each descriptor of a message, or a refusal's text.
const REPLY_LIMIT: usize = 8 + 253 * 8;

/// Why descriptors were not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FdError {
    /// The daemon's own words.
    #[error("the daemon refuses the descriptors: {0}")]
    Refused(String),
    /// What it answered makes no sense.
    #[error("the daemon's answer on the descriptor socket makes no sense")]
    Protocol,
    /// The connection is broken or could not be made.
    #[error("descriptor socket: {0}")]
    Io(#[from] io::Error),
}

/// A connection to the descriptor socket. Dropping it takes back what no container has claimed.
#[derive(Debug)]
pub struct FdClient {
    socket: AsyncFd<OwnedFd>,
    next: u32,
}

impl FdClient {
    /// Connects to the path that `startFdSocket` has answered.
    ///
    /// # Errors
    /// [`FdError::Io`] when nobody listens.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(path: &Path) -> Result<Self, FdError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(io::Error::from)?;
        // Also where the path is longer than a socket address takes.
        let directory = File::open(path.parent().unwrap_or(Path::new(".")))?;
        let name = path.file_name().unwrap_or_default();
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        UnixAddr::new(&short).and_then(|address| connect(fd.as_raw_fd(), &address)).map_err(io::Error::from)?;
        let socket = reactor::watch(fd, Interest::READABLE | Interest::WRITABLE);
        Ok(Self { socket: socket.map_err(|error| io::Error::from(error.errno()))?, next: 1 })
    }

    /// Hands descriptors over, at most 253, and returns their slots in the same order.
    ///
    /// # Errors
    /// See [`FdError`]; then the daemon has kept none of them.
    pub async fn send(&mut self, fds: &[BorrowedFd<'_>]) -> Result<Vec<u64>, FdError> {
        let id = self.next;
        self.next = id.wrapping_add(1);
        let count = u32::try_from(fds.len()).unwrap_or(u32::MAX);
        self.send_packet(&Request::Keep { id, count }.packet(), fds).await?;
        match Reply::parse(&self.receive_packet().await?) {
            Some((of, Reply::Kept(slots))) if of == id && slots.len() == fds.len() => Ok(slots),
            Some((of, Reply::Refused(reason))) if of == id => Err(FdError::Refused(reason)),
            _ => Err(FdError::Protocol),
        }
    }

    /// Takes back all that no container has claimed. Not answered.
    ///
    /// # Errors
    /// [`FdError::Io`] alone.
    pub async fn forget(&self) -> Result<(), FdError> {
        self.send_packet(&Request::Forget.packet(), &[]).await
    }

    /// Sends any packet.
    ///
    /// # Errors
    /// [`FdError::Io`] alone.
    pub async fn send_packet(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), FdError> {
        let numbers: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let send = |socket: &AsyncFd<OwnedFd>| {
            let sent = sendmsg::<()>(
                socket.as_raw_fd(),
                &[IoSlice::new(packet)],
                control,
                MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                None,
            );
            Ok(sent.map(drop)?)
        };
        loop {
            if let Ok(sent) = self.socket.writable().await?.try_io(send) {
                return Ok(sent?);
            }
        }
    }

    /// The next packet of the daemon; empty at the end.
    ///
    /// # Errors
    /// [`FdError::Io`] alone.
    pub async fn receive_packet(&self) -> Result<Vec<u8>, FdError> {
        let mut packet = vec![0; REPLY_LIMIT];
        let mut receive =
            |socket: &AsyncFd<OwnedFd>| Ok(recv(socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)?);
        let length = loop {
            if let Ok(received) = self.socket.readable().await?.try_io(&mut receive) {
                break received?;
            }
        };
        packet.truncate(length);
        Ok(packet)
    }
}
