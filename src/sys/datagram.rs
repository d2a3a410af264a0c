//! Datagrams over Unix sockets, and descriptors in place of those that are too large.

use std::{
    io::IoSlice,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket},
    },
    unistd::write,
};

use super::SysError;

/// A socket to send from. It never waits.
pub(crate) fn unbound() -> Result<OwnedFd, SysError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Datagram, flags, None).map_err(|errno| SysError::new("make a socket", errno))
}

/// Makes the socket at a path the peer, in place of an earlier one. To a peer, unlike to an address, a send that finds no
/// room announces when there is some (unix(7) does not say so; the kernel's `unix_dgram_poll` does).
///
/// # Errors
/// `ENOENT` when the path is not there, `ECONNREFUSED` when nobody listens there any more.
pub(crate) fn connect_to(fd: impl AsFd, path: &Path) -> nix::Result<()> {
    connect(fd.as_fd().as_raw_fd(), &UnixAddr::new(path)?)
}

/// Sends one datagram made of parts to the peer: all of it or nothing.
///
/// # Errors
/// `EAGAIN` when there is no room now, `EMSGSIZE` when there never will be; `ECONNREFUSED` or `ENOTCONN` when the peer is
/// gone.
pub(crate) fn send(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> nix::Result<()> {
    send_with(fd, parts, &[])
}

/// Sends an empty datagram with a descriptor to the peer (`SCM_RIGHTS`).
///
/// # Errors
/// As [`send`].
pub(crate) fn send_fd(fd: BorrowedFd<'_>, sent: BorrowedFd<'_>) -> nix::Result<()> {
    send_with(fd, &[], &[ControlMessage::ScmRights(&[sent.as_raw_fd()])])
}

fn send_with(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>], control: &[ControlMessage<'_>]) -> nix::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(fd.as_raw_fd(), parts, control, flags, None) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop),
        }
    }
}

/// A file in memory that nobody can change any more, so that who gets it can trust it to stay.
///
/// # Errors
/// Passed on from memfd_create(2) and write(2).
pub(crate) fn sealed_file(name: &str, parts: &[&[u8]]) -> nix::Result<OwnedFd> {
    let file = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            rest = &rest[write(&file, rest)?..];
        }
    }
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Seek as _, Write as _},
        os::unix::net::UnixDatagram,
    };

    use super::*;
    use crate::sys::socket::receive_fd;

    #[test]
    fn a_datagram_of_parts_arrives_as_one_and_a_peer_that_is_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = unbound().unwrap();
        assert_eq!(connect_to(&socket, &path), Err(Errno::ENOENT));
        for text in ["one", "two"] {
            let server = UnixDatagram::bind(&path).unwrap();
            connect_to(&socket, &path).unwrap();
            send(socket.as_fd(), &[IoSlice::new(b"part "), IoSlice::new(text.as_bytes())]).unwrap();
            let mut buffer = [0; 64];
            let length = server.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], *format!("part {text}").as_bytes());
            std::fs::remove_file(&path).unwrap();
            drop(server);
            assert_eq!(send(socket.as_fd(), &[]), Err(Errno::ECONNREFUSED));
        }
    }

    #[test]
    fn a_sealed_file_has_what_was_put_in_and_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (server, socket) = (UnixDatagram::bind(&path).unwrap(), unbound().unwrap());
        connect_to(&socket, &path).unwrap();
        let file = sealed_file("entry", &[b"one ", b"two"]).unwrap();
        send_fd(socket.as_fd(), file.as_fd()).unwrap();
        let mut received = std::fs::File::from(receive_fd(server.as_fd()).unwrap().unwrap());
        let mut text = String::new();
        received.rewind().unwrap();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        assert_eq!(received.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
