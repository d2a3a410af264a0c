//! `holdfastctl port-forward` as its user sees it: what it prints, and what reaches a container's ports.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Child, ChildStdout, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use holdfast::client::ServePortForward;
use support::{BundleSpec, DEADLINE, Sandbox, eventually, raw_ws::RawSession};

mod support;

/// A container with servers in its network: on 8000 what answers line by line and at the end of its input, on 8001 one
/// that speaks first, ends its half, and writes down what it hears.
const SERVERS: &str = "\
nc -ll -p 8000 -e sh -c 'while read line; do echo got $line; done; echo end' & \
echo hello | nc -l -p 8001 >/heard & \
for port in 1F40 1F41; do until grep -q \":$port \" /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done; done; echo up; wait";

const TRANSPORTS: [&str; 2] = ["--transport=websocket", "--transport=spdy"];

/// A `holdfastctl port-forward` that runs.
struct Forward {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Forward {
    fn start(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let mut ctl = sandbox.ctl(&["port-forward", "--runtime", "runc", "--runtime-root"]);
        ctl.arg(sandbox.path().join("root")).args(arguments);
        ctl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ctl.spawn().expect("holdfastctl was built");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a pipe");
        line
    }

    /// The address of the next `Forwarding from ADDRESS -> PORT`.
    fn address(&mut self, remote: u16) -> SocketAddr {
        let line = self.line();
        let address =
            line.strip_prefix("Forwarding from ").and_then(|rest| rest.strip_suffix(&format!(" -> {remote}\n")));
        address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("{line:?} {}", self.errors()))
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        let _ = self.child.kill();
        let _ = self.child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut text));
        text
    }

    /// Ends it; returns its code and what it has complained about.
    async fn end(self) -> (Option<i32>, String) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("pids are positive"));
        let _ = kill(pid, Signal::SIGINT);
        self.ended().await
    }

    async fn ended(mut self) -> (Option<i32>, String) {
        let status = eventually("the end of holdfastctl", || self.child.try_wait().expect("our child")).await;
        (status.code(), self.errors())
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn with_servers(sandbox: &Sandbox) {
    sandbox.run("web", &BundleSpec::shell(SERVERS)).await;
    sandbox.wait_log("web", "up").await;
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream
}

fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an end, not a reset");
    text
}

#[test]
fn connections_reach_a_container_several_at_once_with_half_close_both_ways() {
    for transport in TRANSPORTS {
        support::e2e(async |sandbox| {
            with_servers(sandbox).await;
            let mut forward = Forward::start(sandbox, &[transport, "web", "127.0.0.1::8000", "[::1]:0:8001"]);
            let (to_8000, to_8001) = (forward.address(8000), forward.address(8001));
            assert!(to_8000.is_ipv4() && to_8001.is_ipv6(), "{to_8000} {to_8001}");
            // Both are open at once, and the second ends first.
            let (mut first, mut second) = (connect(to_8000), connect(to_8000));
            for stream in [&mut first, &mut second] {
                assert_eq!(forward.line(), format!("Handling connection for {}\n", to_8000.port()));
                stream.write_all(b"abc\n").expect("a socket");
            }
            second.shutdown(Shutdown::Write).expect("a socket");
            assert_eq!(rest(&mut second), "got abc\nend\n");
            first.write_all(b"xyz\n").expect("a socket");
            first.shutdown(Shutdown::Write).expect("a socket");
            assert_eq!(rest(&mut first), "got abc\ngot xyz\nend\n");
            // Who speaks first and ends first still hears.
            let mut talker = connect(to_8001);
            assert_eq!(rest(&mut talker), "hello\n");
            talker.write_all(b"still here").expect("a socket");
            drop(talker);
            sandbox.wait_file("heard", "still here").await;
            assert_eq!(forward.end().await, (Some(0), String::new()));
        });
    }
}

#[test]
fn a_refused_port_is_told_and_ends_no_other_connection() {
    support::e2e(async |sandbox| {
        with_servers(sandbox).await;
        let mut forward = Forward::start(sandbox, &["--address", "127.0.0.1", "web", ":8000", ":9"]);
        let (to_8000, to_9) = (forward.address(8000), forward.address(9));
        let mut stays = connect(to_8000);
        let mut refused = connect(to_9);
        assert!(refused.read(&mut [0]).is_err(), "a reset");
        stays.write_all(b"abc\n").expect("a socket");
        stays.shutdown(Shutdown::Write).expect("a socket");
        assert_eq!(rest(&mut stays), "got abc\nend\n");
        let (code, errors) = forward.end().await;
        let told = format!(
            "holdfastctl: an error occurred forwarding {} -> 9: error forwarding port 9 to pod web",
            to_9.port()
        );
        assert!(code == Some(0) && errors.starts_with(&told) && errors.contains("connection refused"), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    });
}

#[test]
fn a_namespace_can_be_named_and_both_loopback_addresses_are_listened_on() {
    support::e2e(async |sandbox| {
        with_servers(sandbox).await;
        let pid = sandbox.runtime(&["state", "web"]).stdout;
        let state: serde_json::Value = serde_json::from_slice(&pid).expect("JSON");
        let path = format!("/proc/{}/ns/net", state["pid"]);
        let mut forward = Forward::start(sandbox, &[&path, ":8000"]);
        let first = forward.address(8000);
        let second = forward.address(8000);
        assert!(first.ip().is_loopback() && second.ip().is_loopback() && first.is_ipv4() && second.is_ipv6());
        assert_eq!(first.port(), second.port());
        let mut stream = connect(second);
        stream.shutdown(Shutdown::Write).expect("a socket");
        assert_eq!(rest(&mut stream), "end\n");
        assert_eq!(forward.end().await.0, Some(0));
    });
}

#[test]
fn it_ends_with_the_container_and_with_the_daemon() {
    support::e2e(async |sandbox| {
        with_servers(sandbox).await;
        let mut forward = Forward::start(sandbox, &["--address=127.0.0.1", "web", ":8000"]);
        forward.address(8000);
        sandbox.runtime(&["kill", "web", "KILL"]);
        let (code, errors) = forward.ended().await;
        let says = "holdfastctl: lost connection: the container web has ended\n";
        assert_eq!((code, errors.as_str()), (Some(125), says));
        let mut forward = Forward::start(sandbox, &["--address=127.0.0.1", "/proc/self/ns/net", ":8000"]);
        forward.address(8000);
        sandbox.end_daemon(Signal::SIGTERM).await;
        let (code, errors) = forward.ended().await;
        assert!(code == Some(125) && errors.starts_with("holdfastctl: lost connection"), "{errors}");
    });
}

// A client of the old WebSocket form cannot say which ports it means, nor can the contract's call.
#[test]
fn ports_and_pod_named_by_the_call_reach_a_client_of_the_old_form() {
    support::e2e(async |sandbox| {
        let pid = sandbox.run("web", &BundleSpec::idle()).await;
        let serve = ServePortForward {
            net_ns: format!("/proc/{pid}/ns/net").into(),
            pod_id: "pod1".to_owned(),
            ports: vec![9, 8080],
        };
        let url = sandbox.client().serve_pod_ports(&serve).await.expect("a URL");
        let mut session = RawSession::open(&url, "v4.channel.k8s.io").await;
        for greeting in [[0, 9, 0], [1, 9, 0], [2, 0x90, 0x1f], [3, 0x90, 0x1f]] {
            assert_eq!(session.next().await.expect("a frame").payload, greeting);
        }
        let mut told = [session.next().await, session.next().await].map(|frame| frame.expect("a text").payload);
        told.sort();
        for (text, (channel, port)) in told.iter().zip([(1, 9), (3, 8080)]) {
            let says = format!("error forwarding port {port} to pod pod1, ");
            assert!(text[0] == channel && String::from_utf8_lossy(&text[1..]).starts_with(&says), "{text:?}");
        }
        let refused = ServePortForward { ports: vec![0], ..serve };
        let error = sandbox.client().serve_pod_ports(&refused).await.expect_err("no port").to_string();
        assert_eq!(error, "servePortForward: invalid-request: ports: 0 is no port");
    });
}

#[test]
fn what_cannot_be_forwarded_is_one_line_with_a_hint() {
    support::e2e(async |sandbox| {
        sandbox.run("web", &BundleSpec::idle()).await;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback");
        let port = format!("127.0.0.1:{}:80", taken.local_addr().expect("bound").port());
        for (arguments, says) in [
            (&["web", &port][..], "cannot listen on 127.0.0.1:"),
            (&["unknown", ":80"], "state unknown"),
            (&["web", "80:0"], "the port of the pod is not 1 to 65535"),
            (&["web", "--address", "example.org", ":80"], "\"example.org\" is no address"),
            (&["no id", ":80"], "choose another"),
        ] {
            let (code, errors) = Forward::start(sandbox, arguments).ended().await;
            assert!(
                code == Some(125) && errors.lines().count() == 1 && errors.contains(says),
                "{arguments:?}: {errors}"
            );
        }
    });
}
