//! A pod as a port forward sees it, and what the test does there.

use std::{path::Path, process::Command};

use holdfast::client::Client;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub(crate) use super::support::network::Pod;
use super::support::{
    Sandbox, e2e_with,
    raw_spdy::{FORWARD, Frame, Pair, RawSpdy, Seen},
    within,
};

/// Runs a test with a pod.
pub(crate) fn with_pod(test: impl AsyncFnOnce(&Sandbox, &Pod)) {
    with_pod_and(&[], test);
}

/// The same with environment variables of the daemon.
pub(crate) fn with_pod_and(variables: &[(&str, &str)], test: impl AsyncFnOnce(&Sandbox, &Pod)) {
    let configure = |command: &mut Command| {
        command.envs(variables.iter().copied());
    };
    e2e_with(configure, async |sandbox| {
        let pod = Pod::new(sandbox.path().join("netns"));
        Box::pin(test(sandbox, &pod)).await;
    });
}

/// The URL at which the pod's ports can be reached.
pub(crate) async fn url(sandbox: &Sandbox, pod: &Pod) -> String {
    url_of(&sandbox.client(), &pod.path).await
}

pub(crate) async fn url_of(client: &Client, namespace: &Path) -> String {
    within(client.serve_port_forward(namespace)).await.expect("a port forward gets a URL")
}

/// A connection that speaks SPDY.
pub(crate) async fn forward(sandbox: &Sandbox, pod: &Pod) -> RawSpdy {
    RawSpdy::connect(&url(sandbox, pod).await, FORWARD).await
}

pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    within(listener.accept()).await.expect("a listener").0
}

/// What comes until the other end says that no more will.
pub(crate) async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(stream.read_to_end(&mut bytes)).await.expect("no reset");
    bytes
}

/// Runs a server of the test beside it.
#[allow(clippy::disallowed_methods)] // The runtime ends with the test, and with it all its tasks.
pub(crate) fn serving<T: 'static>(server: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    tokio::task::spawn_local(server)
}

/// Sends back what comes on every connection, until its end.
pub(crate) fn echo(listener: TcpListener) -> JoinHandle<()> {
    serving(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a listener");
            serving(async move {
                let (mut reader, mut writer) = stream.split();
                // The other end may break it: that is what tests are about.
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    })
}

/// Reads until both streams of a pair have ended.
pub(crate) async fn pair_ended(session: &mut RawSpdy, pair: Pair) -> Seen {
    let mut seen = Seen::default();
    while !(seen.has_ended(pair.data) && seen.has_ended(pair.error)) {
        let frame = session.reader.next().await.unwrap_or_else(|| panic!("the end before that of {pair:?}: {seen:?}"));
        assert!(!matches!(frame, Frame::GoAway { .. }), "GOAWAY before the end of {pair:?}: {seen:?}");
        seen.frames.push(frame);
    }
    seen
}

/// Sends a line over a new connection and receives it back.
pub(crate) async fn echoes(session: &mut RawSpdy, port: u16, request: u32) {
    let pair = session.open_pair(port, request).await;
    let line = format!("request {request}\n");
    session.writer.data(pair.data, line.as_bytes()).await;
    session.writer.fin(pair.data).await;
    let seen = pair_ended(session, pair).await;
    assert_eq!((seen.text(pair.data), seen.text(pair.error)), (line, String::new()));
    let resets = seen.frames.iter().filter(|frame| matches!(frame, Frame::Reset { .. })).count();
    assert_eq!(resets, 0, "{seen:?}");
}
