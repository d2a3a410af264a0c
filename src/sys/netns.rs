//! Sockets inside a network namespace that is not ours.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::SysError;

/// Stack of the thread that makes the sockets: it makes a few system calls.
const STACK: usize = 64 * 1024;

/// Two TCP sockets that have not been connected yet, close-on-exec and non-blocking.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) v4: Result<OwnedFd, SysError>,
    pub(crate) v6: Result<OwnedFd, SysError>,
}

/// Makes sockets in the given network namespace, or in ours, and hands them to `done`.
///
/// A socket stays in the namespace it was made in; connecting needs no move. setns(2) moves the calling thread and there is
/// no sure way back, so a thread is made for it and thrown away.
///
/// # Errors
/// When no thread can be made. What happens in it goes to `done`: `EINVAL` when the descriptor is no network namespace.
pub(crate) fn tcp_sockets(
    namespace: Option<OwnedFd>,
    done: impl FnOnce(Result<Sockets, SysError>) + Send + 'static,
) -> Result<(), SysError> {
    let work = move || {
        if let Some(namespace) = namespace
            && let Err(errno) = setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
        {
            return done(Err(SysError::new("enter the network namespace", errno)));
        }
        done(Ok(Sockets { v4: tcp_socket(AddressFamily::Inet), v6: tcp_socket(AddressFamily::Inet6) }));
    };
    match thread::Builder::new().name("netns".to_owned()).stack_size(STACK).spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => Err(SysError::new("start a thread", Errno::from_raw(error.raw_os_error().unwrap_or(0)))),
    }
}

fn tcp_socket(family: AddressFamily) -> Result<OwnedFd, SysError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(family, SockType::Stream, flags, None).map_err(|errno| SysError::new("make a socket", errno))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::mpsc};

    use super::*;

    fn sockets(namespace: Option<OwnedFd>) -> Result<Sockets, SysError> {
        let (send, receive) = mpsc::channel();
        tcp_sockets(namespace, move |made| send.send(made).unwrap()).unwrap();
        receive.recv().unwrap()
    }

    #[test]
    fn sockets_are_made_and_what_is_no_network_namespace_is_refused() {
        assert!(sockets(None).unwrap().v4.is_ok());
        let wrong = sockets(Some(File::open("/proc/self/ns/uts").unwrap().into())).unwrap_err();
        // Without privileges the kernel does not even look.
        assert!([Errno::EINVAL, Errno::EPERM].contains(&wrong.errno()), "{wrong}");
    }
}
