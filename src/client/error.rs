use std::{io, path::PathBuf};

/// Why a call of the control interface has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing listens on the control socket.
    #[error(
        "no holdfast daemon listens in {dir} (start one with `holdfastctl run` or `holdfast --runtime PATH \
         --runtime-dir {dir}`)",
        dir = .0.display()
    )]
    NoDaemon(PathBuf),
    /// The control socket is there but could not be used.
    #[error("cannot connect to {path}: {source}", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The daemon refused the call or failed to carry it out.
    #[error("{call}: {reason}")]
    Refused {
        /// Name of the call, as in the schema.
        call: &'static str,
        /// The daemon's own words.
        reason: String,
    },
    /// The daemon went away before it had answered.
    #[error("{call}: the daemon closed the connection before it had answered (see its log)")]
    Gone {
        /// Name of the call, as in the schema.
        call: &'static str,
    },
    /// Texts of the interface are UTF-8; this path is not.
    #[error("the path {path:?} is not UTF-8, which the control interface cannot carry", path = .0)]
    NotUtf8(PathBuf),
}

/// Why a streaming session could not begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Not of the form `http://HOST:PORT/PATH`.
    #[error("{0:?} is not a streaming URL (expected http://HOST:PORT/PATH)")]
    BadUrl(String),
    /// The TCP connection failed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The server answered the request with something else than an upgrade.
    #[error("the streaming server refused the session: {status} {body}")]
    Refused {
        /// The HTTP status code.
        status: u16,
        /// The first bytes of the answer's body, trimmed.
        body: String,
    },
    /// One of the ends broke the protocol, or the connection was lost.
    #[error("streaming connection: {0}")]
    Broken(String),
    /// Before v5 there is no way to close stdin alone; streaming.md 2.4.
    #[error("the agreed sub-protocol cannot close stdin alone")]
    NoHalfClose,
    /// A message for something the session was not asked for with.
    #[error("the session has no {0}: it was not asked for")]
    NoStream(&'static str),
    /// Over SPDY: the server wants no such stream, or as many are open as it allows.
    #[error("the server refused the {0} stream")]
    StreamRefused(&'static str),
    /// Over SPDY: nothing was said about a stream in 30 s.
    #[error("the server did not answer when the {0} stream was opened")]
    NoAnswer(&'static str),
}
