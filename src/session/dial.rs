//! Connecting to a port inside a pod: 127.0.0.1, then ::1, in its network namespace. No name is resolved (streaming 6.4).

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    time::timeout,
};

use crate::{
    io::blocking::{Blocking, BlockingError},
    sys::{
        SysError,
        fd::{self, NoRoom},
        netns::{Sockets, tcp_sockets},
    },
};

/// How long opening the namespace's file may take: it is a path somebody else named.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// How long each address may take: on a loopback only a firewall makes anybody wait.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The pod is gone, or what was named was never a network namespace.
    #[error("the network namespace {} cannot be entered", namespace.display())]
    Namespace {
        namespace: PathBuf,
        #[source]
        source: SysError,
    },
    /// Nobody listens there.
    #[error("nobody answers: over IPv4 {v4}, over IPv6 {v6}")]
    Refused { v4: String, v6: String },
    /// Somebody listens, and broke the connection as soon as it was there.
    #[error("the connection was reset")]
    Reset,
    /// We could not even try.
    #[error(transparent)]
    Blocking(#[from] BlockingError),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// The network namespace of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// The host's: for pods that share its network.
    Host,
    Namespace(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Namespace(path) => path.display().fmt(f),
        }
    }
}

/// Connects to a port of the loopback in `place`.
pub(super) async fn dial(blocking: &Blocking, place: &Place, port: u16) -> Result<TcpStream, DialError> {
    fd::room()?;
    let sockets = match place {
        Place::Host => make_sockets(None).await?,
        Place::Namespace(path) => {
            // Opened for each connection: a descriptor kept would keep the namespace alive when the pod is gone.
            let gone = |source| DialError::Namespace { namespace: path.clone(), source };
            let opened = open(blocking, path).await?.map_err(|error| gone(SysError::io("open", path, &error)))?;
            make_sockets(Some(opened)).await.map_err(gone)?
        }
    };
    let v4 = match connect(sockets.v4, (Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(stream) => return Ok(stream),
        Err(NotConnected::Reset) => return Err(DialError::Reset),
        Err(NotConnected::Refused(reason)) => reason,
    };
    match connect(sockets.v6, (Ipv6Addr::LOCALHOST, port).into()).await {
        Ok(stream) => Ok(stream),
        Err(NotConnected::Reset) => Err(DialError::Reset),
        Err(NotConnected::Refused(v6)) => Err(DialError::Refused { v4, v6 }),
    }
}

async fn open(blocking: &Blocking, path: &Path) -> Result<io::Result<OwnedFd>, BlockingError> {
    let job_path = path.to_owned();
    // A FIFO would hold the thread until somebody opens its other end.
    let open = move || File::options().read(true).custom_flags(libc::O_NONBLOCK).open(job_path).map(OwnedFd::from);
    blocking.run("open", path, OPEN_LIMIT, open, drop).await
}

async fn make_sockets(namespace: Option<OwnedFd>) -> Result<Sockets, SysError> {
    let (send, made) = oneshot::channel();
    tcp_sockets(namespace, move |sockets| _ = send.send(sockets))?;
    made.await.unwrap_or(Err(SysError::new("make a socket", nix::errno::Errno::ECANCELED)))
}

enum NotConnected {
    /// Why; people read it: kubectl shows it.
    Refused(String),
    Reset,
}

async fn connect(socket: Result<OwnedFd, SysError>, address: SocketAddr) -> Result<TcpStream, NotConnected> {
    let refused = |reason: &dyn std::fmt::Display| NotConnected::Refused(format!("connect: {reason}"));
    let socket = TcpSocket::from_std_stream(socket.map_err(|error| refused(&error))?.into());
    match timeout(CONNECT_LIMIT, socket.connect(address)).await {
        // Nobody listens, and the kernel has chosen this very port for our end: it talks to itself.
        Ok(Ok(stream)) if stream.local_addr().ok() == Some(address) => Err(refused(&"connection refused")),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Err(NotConnected::Reset),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(refused(&"connection refused")),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => Err(refused(&"timed out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        crate::io::local(test);
    }

    #[test]
    fn a_port_on_either_loopback_address_is_reached() {
        run(async {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let listener = tokio::net::TcpListener::bind(address).await.unwrap();
                let port = listener.local_addr().unwrap().port();
                dial(&Blocking::new(), &Place::Host, port).await.unwrap();
                listener.accept().await.unwrap();
            }
        });
    }

    #[test]
    fn a_refusal_tells_why_of_both_addresses() {
        run(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            let text = dial(&Blocking::new(), &Place::Host, port).await.unwrap_err().to_string();
            assert_eq!(text.matches("connection refused").count(), 2, "{text}");
        });
    }

    #[test]
    fn a_namespace_that_is_gone_is_told_from_a_refusal() {
        run(async {
            let place = Place::Namespace("/nonexistent/netns".into());
            let error = dial(&Blocking::new(), &place, 1).await.unwrap_err();
            assert!(matches!(error, DialError::Namespace { .. }), "{error}");
        });
    }
}
