//! The Rust client: calls of the control interface, streaming sessions, and the substance of `holdfastctl`.
//!
//! ```text
//! holdfastctl ──▶ cli ──┬──▶ Client        Cap'n Proto over <runtime-dir>/conmon.sock: create, exec, "give me a URL"
//!                       ├──▶ StreamClient  WebSocket or SPDY to that URL: stdin, stdout, stderr, resize, status
//!                       └──▶ ForwardClient SPDY to that URL, alone or in a WebSocket: connections to ports of a pod
//! ```
//!
//! Everything here runs inside a tokio `LocalRuntime` (or `LocalSet`): Cap'n Proto objects are not `Send`.

pub mod cli;
mod encode;
mod error;
mod fds;
mod forward;
mod halves;
mod lists;
mod request;
mod rpc;
mod spdy;
mod status;
mod stream;
mod url;

pub use error::{ClientError, StreamError};
pub use fds::{FdClient, FdError};
pub use forward::{ForwardClient, ForwardEnd, Forwarded, Transport};
pub use halves::{Collected, StreamMessage, StreamReceiver, StreamSender};
pub use lists::{ContainerInfo, ContainerState, Listing, SessionInfo, SessionKind, SessionState, SessionTransport};
pub use request::{
    AttachContainer, CgroupManager, CreateContainer, CreateNamespaces, ExecSync, ExecSyncReply, LogDriver,
    LogDriverKind, NamespaceKind, ServeAttach, ServeExec, ServePortForward, VersionReply,
};
pub use rpc::Client;
pub use stream::StreamClient;

pub use crate::proto::stream_set::Requested;

/// The generated code of both interfaces, for callers that need a field or a call [`Client`] does not offer.
pub use crate::schema::{conmon_capnp, holdfast_capnp};

/// The control socket's name in the runtime directory; control-api.md 3.3.
pub(crate) const CONTROL_SOCKET: &str = "conmon.sock";

/// What to offer a streaming URL, best first. Only v5 can close stdin and leave the output open; streaming.md 2.1.
pub const STREAM_PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// What to offer over SPDY, best first: v3 differs in the form of the status alone; streaming.md 5.8.
pub const SPDY_PROTOCOLS: [&str; 2] = ["v4.channel.k8s.io", "v3.channel.k8s.io"];
