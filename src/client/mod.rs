//! The Rust client: calls of the control interface, streaming sessions, and the substance of `holdfastctl`.
//!
//! ```text
//! holdfastctl ──▶ cli ──┬──▶ Client        Cap'n Proto over <runtime-dir>/conmon.sock: create, exec, "give me a URL"
//!                       └──▶ StreamClient  WebSocket to that URL: stdin, stdout, stderr, resize, status
//! ```
//!
//! Everything here runs inside a tokio `LocalRuntime` (or `LocalSet`): Cap'n Proto objects are not `Send`.

pub mod cli;
mod encode;
mod error;
mod fds;
mod halves;
mod request;
mod rpc;
mod status;
mod stream;

pub use error::{ClientError, StreamError};
pub use fds::{FdClient, FdError};
pub use halves::{Collected, StreamMessage, StreamReceiver, StreamSender};
pub use request::{
    AttachContainer, CgroupManager, CreateContainer, CreateNamespaces, ExecSync, ExecSyncReply, LogDriver,
    LogDriverKind, NamespaceKind, ServeAttach, ServeExec, ServePortForward, VersionReply,
};
pub use rpc::Client;
pub use stream::StreamClient;

/// The generated code of both interfaces, for callers that need a field or a call [`Client`] does not offer.
pub use crate::schema::{conmon_capnp, holdfast_capnp};

/// The control socket's name in the runtime directory; control-api.md 3.3.
pub(crate) const CONTROL_SOCKET: &str = "conmon.sock";

/// What to offer a streaming URL, best first. Only v5 can close stdin and leave the output open; streaming.md 2.1.
pub const STREAM_PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
