//! What the fuzz targets (`fuzz/`) and the replay of their corpora reach of the private modules. No part of any interface.

use std::cell::RefCell;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::{Builder, LocalOptions, LocalRuntime},
};

pub use crate::rpc::fuzzing::{CONMON, HOLDFAST};
use crate::{
    proto::upgrade_head::Refusal,
    rpc::fuzzing::Edge,
    transport::{Agreed, agree},
};

thread_local! {
    static RUNTIME: LocalRuntime = {
        let mut builder = Builder::new_current_thread();
        builder.enable_all().build_local(LocalOptions::default()).expect("a thread of a test may have an event loop")
    };
    /// One for all clients of a thread, as in a daemon: what one of them leaves behind, the next ones would add to.
    static EDGE: RefCell<Option<Edge>> = const { RefCell::new(None) };
}

/// Runs something at the control edge of a daemon that is closing.
fn at_the_edge<T>(run: impl AsyncFnOnce(&Edge) -> T) -> T {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let edge = EDGE.with_borrow_mut(|edge| edge.take());
            let edge = match edge {
                Some(edge) => edge,
                None => Edge::closing().await,
            };
            let result = run(&edge).await;
            EDGE.set(Some(edge));
            result
        })
    })
}

/// Sends these bytes on a control connection, with a pause after each part. When `done` says of all that came back that it
/// is enough, the client says that it sends no more. Returns what came back.
///
/// # Panics
/// When the connection does not end by itself then, or leaves something behind.
pub fn control_client(parts: &[&[u8]], done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    at_the_edge(async |edge| edge.client(parts, done).await)
}

/// Reads one message as the request of every method.
///
/// # Panics
/// When a decoded value breaks the limits that everything behind the edge believes in.
pub fn request(message: &[u8]) {
    at_the_edge(async |edge| edge.decode(message));
}

/// Sends these bytes to the streaming server, and then says that no more will come. Any token but `gone` is good. Returns the
/// answers; after an upgrade also the bytes behind the head.
#[must_use]
pub fn http_client(parts: &[&[u8]]) -> (Vec<u8>, Option<Vec<u8>>) {
    /// Smaller than a head may be, so that reading and writing have to take turns.
    const PIPE: usize = 4096;
    let (ours, theirs) = duplex(PIPE);
    let serve = async {
        let claim = |_, token: &str| if token == "gone" { Err(Refusal::not_found()) } else { Ok(()) };
        let Agreed { mut stream, early, .. } = agree(ours, claim).await?;
        let mut behind = early.to_vec();
        let _ = stream.read_to_end(&mut behind).await;
        Some(behind)
    };
    let client = async {
        let (mut reader, mut writer) = tokio::io::split(theirs);
        let send = async {
            for part in parts {
                if writer.write_all(part).await.is_err() {
                    break;
                }
            }
            let _ = writer.shutdown().await;
        };
        let mut answers = Vec::new();
        let ((), _) = tokio::join!(send, reader.read_to_end(&mut answers));
        answers
    };
    RUNTIME.with(|runtime| runtime.block_on(async { tokio::join!(client, serve) }))
}
