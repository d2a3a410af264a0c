//! holdfast: the container monitor of one pod.

pub mod args;
pub mod client;
pub mod config;
mod container;
pub mod daemon;
pub mod format;
#[doc(hidden)]
pub mod fuzzing;
mod io;
mod log;
pub mod model;
mod oci;
mod pause;
mod process;
pub mod proto;
mod rpc;
#[allow(
    unused_qualifications,
    unreachable_pub,
    missing_debug_implementations,
    dead_code,
    clippy::all,
    clippy::unwrap_used
)]
mod schema;
mod session;
mod shutdown;
mod stdio;
mod sys;
pub mod telemetry;
mod transport;
pub mod version;
