//! Commands in containers and clients of containers: execSync, exec and attach over WebSocket.

mod attach;
mod client_gone;
mod exec_sync;
mod frames;
mod http;
#[path = "../support/mod.rs"]
mod support;
mod websocket;
