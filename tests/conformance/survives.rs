//! The fallback when the engine dies: sessions do not go through its connection, so they go on.

use std::{net::TcpListener, process::Stdio, thread};

use holdfast::{
    client::{ServeAttach, ServeExec, StreamClient},
    model::{Outcome, StdStream},
};

use crate::{
    ALL, SUCCESS, TTY, exec,
    support::{
        self, BundleSpec, RawAttach, Sandbox, collect, eventually,
        raw_spdy::{FORWARD, Frame, Ids, Pair, RawSpdy, data, syn_stream},
        raw_ws::{BINARY, FIN, RawSession},
        wait_output, within,
    },
};

const SCRIPT: &str = "while read line; do echo got $line; done; exit 7";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const LEGACY: &str = "v4.channel.k8s.io";

/// One session of each kind; their container `c` is one that answers, too.
struct Sessions {
    web_sockets: Vec<StreamClient>,
    spdy: Vec<(RawSpdy, Ids)>,
    attach_socket: RawAttach,
    forward: (RawSpdy, Pair),
    legacy: RawSession,
    tunnel: RawSession,
}

/// A server as one in a pod, which sends back what it gets.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    // The threads end with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
        }
    });
    port
}

impl Sessions {
    async fn open(sandbox: &Sandbox, port: u16) -> Self {
        // As the engine's: with its end, that of every connection that the URLs came over.
        let engine = sandbox.connect().await;
        let attach = ServeAttach { id: "c".to_owned(), stdin: true, stdout: true, stderr: true };
        let pipes = ServeExec { stdin: true, stdout: true, stderr: true, ..exec(&["sh", "-c", SCRIPT]) };
        let tty = ServeExec { stdin: true, stdout: true, tty: true, ..exec(&["sh", "-c", SCRIPT]) };
        let (mut web_sockets, mut spdy) = (Vec::new(), Vec::new());
        for exec in [&pipes, &tty] {
            let url = async || engine.serve_exec(exec).await.expect("a URL");
            let types = if exec.tty { &TTY } else { &ALL };
            web_sockets.push(StreamClient::connect(&url().await, &["v5.channel.k8s.io"]).await.expect("a session"));
            spdy.push(RawSpdy::session(&url().await, types).await);
        }
        let url = async || engine.serve_attach(&attach).await.expect("a URL");
        web_sockets.push(StreamClient::connect(&url().await, &["v5.channel.k8s.io"]).await.expect("a session"));
        spdy.push(RawSpdy::session(&url().await, &ALL).await);
        let attach_socket = sandbox.attach_raw("c", false).await;
        let url = async || engine.serve_port_forward("".as_ref()).await.expect("a URL");
        let mut forward = RawSpdy::connect(&url().await, FORWARD).await;
        let pair = forward.open_pair(port, 0).await;
        let legacy = RawSession::open(&format!("{}?port={port}", url().await), LEGACY).await;
        let mut tunnel = RawSession::open(&url().await, TUNNEL).await;
        let mut headers = holdfast::proto::spdy::HeaderWriter::new();
        for (id, name) in [(1, "error"), (3, "data")] {
            let text = port.to_string();
            let block = headers.write(&[("streamtype", name), ("port", &text), ("requestid", "0")]);
            tunnel.send(FIN | BINARY, &syn_stream(id, 0, &block)).await;
        }
        Self { web_sockets, spdy, attach_socket, forward: (forward, pair), legacy, tunnel }
    }

    /// Every session answers.
    async fn answer(&mut self, word: &str) {
        let (line, answer) = (format!("{word}\n"), format!("got {word}\n"));
        for session in &mut self.web_sockets {
            session.send_stdin(line.as_bytes()).await.expect("open");
            wait_output(session, answer.trim_end()).await;
        }
        for (session, ids) in &mut self.spdy {
            session.writer.data(ids["stdin"], line.as_bytes()).await;
            let answer = if ids.contains_key("resize") { answer.replace('\n', "\r\n") } else { answer.clone() };
            session.reader.wait_output(ids["stdout"], &answer).await;
        }
        self.attach_socket.send(line.as_bytes()).await;
        self.attach_socket.wait_output(&answer).await;
        let (forward, pair) = &mut self.forward;
        forward.writer.data(pair.data, line.as_bytes()).await;
        forward.reader.wait_output(pair.data, &line).await;
        self.legacy.send(FIN | BINARY, format!("\0{line}").as_bytes()).await;
        self.legacy.wait_output(0, &line).await;
        self.tunnel.send(FIN | BINARY, &data(3, 0, line.as_bytes())).await;
        let mut seen = Vec::new();
        while !seen.ends_with(line.as_bytes()) {
            seen.extend(self.tunnel.next_message().await.expect("a message").payload);
        }
    }

    /// Every exec ends as it should.
    async fn finish(mut self) {
        for _ in 0..2 {
            let mut session = self.web_sockets.remove(0);
            let tty = self.web_sockets.len() == 1;
            session.send_stdin(if tty { b"\x04" } else { b"" }).await.expect("open");
            session.close_stdin().await.expect("v5");
            assert_eq!(collect(session).await.statuses, [Outcome::Exited(7)]);
            let (mut session, ids) = self.spdy.remove(0);
            session.writer.data(ids["stdin"], if tty { b"\x04" } else { b"" }).await;
            session.writer.fin(ids["stdin"]).await;
            assert_eq!(session.finish(&ids).await.text(ids["error"]), crate::failure(7));
        }
        let (mut forward, pair) = self.forward;
        forward.writer.fin(pair.data).await;
        forward.reader.wait(&Frame::Data { id: pair.data, fin: true, bytes: Vec::new() }).await;
        forward.bye().await;
        // The container's end is that of its watchers.
        self.attach_socket.send(b"end\n").await;
        let (session, ids) = self.spdy.remove(0);
        assert_eq!(session.finish(&ids).await.text(ids["error"]), SUCCESS);
        assert_eq!(collect(self.web_sockets.remove(0)).await.statuses, [Outcome::Exited(0)]);
    }
}

#[test]
fn a_runtime_killed_in_the_middle_of_ten_sessions_of_all_kinds_changes_nothing_for_them() {
    support::e2e(async |sandbox| {
        let script = "while read line; do echo got $line; [ $line != end ] || exit 5; done";
        sandbox.run("c", &BundleSpec::shell(script).stdin()).await;
        let port = echo_server();
        // The connection that the URLs came over ends with this line, in the middle of everything.
        let mut sessions = Sessions::open(sandbox, port).await;
        sessions.answer("one").await;
        // A client that is killed in the middle of a call, and one in the middle of a message.
        let mut killed = sandbox.ctl(&["exec", "c", "sleep", "98765"]);
        let mut killed =
            killed.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        // It has the word in its own command line, too.
        let started = || support::procfs::with_word("98765").len() > 1;
        eventually("the call to be under way", || started().then_some(())).await;
        killed.kill().expect("our child");
        killed.wait().expect("our child");
        let mut half = support::raw_rpc::RawRpc::connect(&sandbox.runtime_dir()).await;
        half.send(&support::raw_rpc::bootstrap(0)[..12]).await;
        drop(half);
        sessions.answer("two").await;
        // The next engine finds all of it.
        assert!(sandbox.connect().await.version(false).await.is_ok());
        sessions.answer("three").await;
        within(sessions.finish()).await;
        assert_eq!(sandbox.wait_exit("c").await, 5);
        let log = String::from_utf8(sandbox.logged("c", StdStream::Stdout)).expect("text");
        assert_eq!(log.matches("got three\n").count(), 3, "the container's three clients: {log}");
    });
}
