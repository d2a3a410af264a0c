//! Clients that are gone without a word: no FIN, no RST, no answer (streaming 9.8).

use std::{
    process::Command,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::support::{
    BundleSpec, e2e_with, long,
    network::{Cable, Pod, connections, port_of},
    within,
};

/// A WebSocket session whose client's end is in a namespace.
async fn session(from: &Pod, url: &str) -> TcpStream {
    let (address, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("absolute");
    let stream = from.inside(|| std::net::TcpStream::connect(address).expect("the cable is there"));
    stream.set_nonblocking(true).expect("a socket");
    let mut stream = TcpStream::from_std(stream).expect("a socket");
    let head = format!(
        "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("the daemon reads");
    let mut status = [0; 12];
    within(stream.read_exact(&mut status)).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 101");
    stream
}

/// How long it takes until only so many connections are left.
async fn time_until(daemon: u32, port: u16, left: usize, limit: Duration) -> Duration {
    let start = Instant::now();
    while connections(daemon, port).len() > left {
        assert!(start.elapsed() < limit, "{:?}", connections(daemon, port));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    start.elapsed()
}

#[test]
fn p128_a_dead_peer_is_found_idle_or_not_and_a_live_one_that_does_not_read_is_left_alone() {
    if !long() {
        return;
    }
    let Some(cable) = Cable::new() else { return };
    let inside = |command: &mut Command| cable.enter(command);
    e2e_with(inside, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let exec = async |command: &[&str]| sandbox.exec_url("c", command).await;
        let idle_url = exec(&["cat"]).await;
        let port = port_of(&idle_url);
        let _idle = session(&cable.client, &idle_url).await;
        let mut busy = session(&cable.client, &exec(&["yes"]).await).await;
        // A live one: on the daemon's own side, where nothing is lost.
        let mut live = session(&cable.daemon, &exec(&["yes"]).await).await;
        within(busy.read_exact(&mut vec![0; 1 << 20])).await.expect("output");
        let daemon = sandbox.daemon_pid();
        assert_eq!(connections(daemon, port).len(), 3);

        cable.cut();
        // 30 s and 3 probes 10 s apart.
        let found = time_until(daemon, port, 2, Duration::from_secs(100)).await;
        assert!(found > Duration::from_secs(20), "{found:?}");
        time_until(daemon, port, 1, Duration::from_secs(150)).await;
        assert!(sandbox.daemon_log().contains("acknowledges nothing any more"));
        // As long again: the one that lives.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(connections(daemon, port).len(), 1);
        within(live.read_exact(&mut vec![0; 4 << 20])).await.expect("all of it is still to be had");
    });
}
