//! Clients that are gone without a word: no FIN, no RST, no answer (streaming 9.8).

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    pod::Pod,
    support::{BundleSpec, e2e_with, long, which, within},
};

const DAEMON: &str = "198.18.0.1";
const CLIENT: &str = "198.18.0.2";
const CLIENT_MAC: &str = "02:00:00:00:00:02";

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("looked for before");
    assert!(status.success(), "ip {arguments:?}");
}

/// Joins two namespaces by a cable.
fn join(daemon: &Pod, client: &Pod) {
    let peer = client.path.to_str().expect("a temporary path");
    daemon.inside(|| {
        let cable = ["link", "add", "va", "type", "veth", "peer", "name", "vb", "address", CLIENT_MAC, "netns", peer];
        ip(&cable);
        ip(&["addr", "add", &format!("{DAEMON}/24"), "dev", "va"]);
        ip(&["link", "set", "va", "up"]);
        // Or the kernel would notice that nobody answers, and tell.
        ip(&["neigh", "replace", CLIENT, "lladdr", CLIENT_MAC, "dev", "va", "nud", "permanent"]);
    });
    client.inside(|| {
        ip(&["addr", "add", &format!("{CLIENT}/24"), "dev", "vb"]);
        ip(&["link", "set", "vb", "up"]);
    });
}

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

/// The connections of clients that the daemon's kernel has, by peer (proc(5)).
fn connections(daemon: u32, port: u16) -> Vec<String> {
    let sockets = fs::read_to_string(format!("/proc/{daemon}/net/tcp")).expect("procfs");
    let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let local = format!(":{port:04X}");
    // 0A is the state of a listener.
    fields.filter(|f| f[1].ends_with(&local) && f[3] != "0A").map(|f| f[2].to_owned()).collect()
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
    if !long() || which("ip").is_none() || which("nsenter").is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (daemon_side, client_side) = (Pod::new(dir.path().join("daemon")), Pod::new(dir.path().join("client")));
    join(&daemon_side, &client_side);
    let inside = |command: &mut Command| enter(command, &daemon_side.path);
    e2e_with(inside, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let exec = async |command: &[&str]| sandbox.exec_url("c", command).await;
        let idle_url = exec(&["cat"]).await;
        let port = idle_url.split([':', '/']).nth(4).and_then(|port| port.parse().ok()).expect("a URL with a port");
        let _idle = session(&client_side, &idle_url).await;
        let mut busy = session(&client_side, &exec(&["yes"]).await).await;
        // A live one: on the daemon's own side, where nothing is lost.
        let mut live = session(&daemon_side, &exec(&["yes"]).await).await;
        within(busy.read_exact(&mut vec![0; 1 << 20])).await.expect("output");
        let daemon = sandbox.daemon_pid();
        assert_eq!(connections(daemon, port).len(), 3);

        // From now on nobody answers there, not even with a refusal.
        client_side.inside(|| ip(&["addr", "del", &format!("{CLIENT}/24"), "dev", "vb"]));
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

/// Lets the daemon be started in a namespace, on its address there.
fn enter(command: &mut Command, namespace: &Path) {
    let mut entered = Command::new("nsenter");
    entered.arg(format!("--net={}", namespace.display())).arg(command.get_program()).args(command.get_args());
    entered.env("HOLDFAST_STREAM_ADDRESS", DAEMON);
    *command = entered;
}
