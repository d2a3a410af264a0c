//! An engine's connection, cut after each of its messages.

use std::{io, path::PathBuf};

use futures_util::{StreamExt as _, stream};
use holdfast::{
    client::{
        AttachContainer, Client, ClientError, ContainerInfo, ContainerState, ExecSync, ForwardClient, Forwarded,
        STREAM_PROTOCOLS, ServeAttach, ServeExec, ServePortForward, SessionInfo, SessionKind, SessionState,
        SessionTransport, StreamClient, StreamMessage, Transport,
    },
    model::StdStream,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::relay::{Cut, Relay};
use crate::support::{BundleSpec, RawAttach, Sandbox, e2e, long, within};

/// Counts aloud until it is told to end.
const COUNTING: &str = "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
/// What the engine's execSync exits with.
const SYNC_CODE: i32 = 3;

/// What an engine has got done before its connection was cut.
#[derive(Default)]
struct Done {
    created: bool,
    started: bool,
    sync: bool,
    exec: Option<StreamClient>,
    attach: Option<StreamClient>,
    socket: Option<RawAttach>,
    forward: Option<Pipe>,
}

/// A forwarded connection that is echoed.
struct Pipe {
    /// The pair lives in it.
    _client: ForwardClient,
    local: tokio::net::TcpStream,
}

/// A whole life of a container under one connection.
struct Engine<'a> {
    sandbox: &'a Sandbox,
    id: String,
    port: u16,
}

impl Engine<'_> {
    async fn work(&self, client: &Client, done: &mut Done) -> Result<(), ClientError> {
        let id = &self.id;
        let create = self.sandbox.create_request(id, &BundleSpec::shell(COUNTING));
        client.create_container(&create).await?;
        done.created = true;
        self.sandbox.start(&self.id);
        done.started = true;
        let command = words(&["sh", "-c", &format!("echo >/{}; exit {SYNC_CODE}", self.mark())]);
        let sync = client.exec_sync(&ExecSync { id: id.clone(), command, ..ExecSync::default() }).await?;
        assert_eq!(sync.exit_code, SYNC_CODE);
        done.sync = true;
        done.exec = Some(self.exec(client).await?);
        done.attach = Some(self.attach(client).await?);
        done.socket = Some(self.socket(client).await?);
        done.forward = Some(self.forward(client).await?);
        Ok(())
    }

    /// The file that the engine's execSync makes.
    fn mark(&self) -> String {
        format!("mark-{}", self.id)
    }

    async fn exec(&self, client: &Client) -> Result<StreamClient, ClientError> {
        let command = words(&["cat"]);
        let exec = ServeExec { id: self.id.clone(), command, stdin: true, stdout: true, ..ServeExec::default() };
        let url = client.serve_exec(&exec).await?;
        let mut session = StreamClient::connect(&url, &STREAM_PROTOCOLS).await.expect("a session");
        echoes(&mut session, "first").await;
        Ok(session)
    }

    async fn attach(&self, client: &Client) -> Result<StreamClient, ClientError> {
        let attach = ServeAttach { id: self.id.clone(), stdout: true, ..ServeAttach::default() };
        let url = client.serve_attach(&attach).await?;
        let mut session = StreamClient::connect(&url, &STREAM_PROTOCOLS).await.expect("a session");
        session.next().await.expect("the server begins with an empty message");
        Ok(session)
    }

    async fn socket(&self, client: &Client) -> Result<RawAttach, ClientError> {
        let socket_path: PathBuf = self.sandbox.attach_path(&self.id);
        let attach = AttachContainer { id: self.id.clone(), socket_path, stop_after_stdin_eof: false };
        client.attach_container(&attach).await?;
        Ok(RawAttach::connect(&attach.socket_path).expect("the container listens"))
    }

    async fn forward(&self, client: &Client) -> Result<Pipe, ClientError> {
        let serve = ServePortForward { pod_id: self.id.clone(), ..ServePortForward::default() };
        let url = client.serve_pod_ports(&serve).await?;
        let forward = ForwardClient::connect(&url, Transport::Spdy).await.expect("a session");
        let pair: Forwarded = forward.open(self.port).await.expect("the listener is ours");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (local, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        tokio::task::spawn_local(pair.copy(accepted.expect("connected").0));
        Ok(Pipe { _client: forward, local: local.expect("connected") })
    }

    /// The engine is gone. The next one finds everything, goes on where it ended, and sees no byte lost.
    async fn next(&self, mut done: Done, cut: Cut) {
        let client = self.sandbox.connect().await;
        let Some(container) = self.settled(&client).await else {
            assert!(!done.created, "{cut:?}: a container is missing");
            return;
        };
        assert_eq!((container.state, container.exit_code, container.oom_killed), (ContainerState::Live, None, false));
        assert!(container.pid > 0 && container.created_at > 0);
        if !done.started {
            self.sandbox.start(&self.id);
        }
        self.streams_go_on(&mut done).await;
        self.sessions_are_listed(&client, &done, cut).await;
        // What the first engine did not get to do, the next one can.
        if done.exec.is_none() {
            done.exec = Some(self.exec(&client).await.expect("the exec is served"));
        }
        if done.attach.is_none() {
            done.attach = Some(self.attach(&client).await.expect("the attach is served"));
        }
        drop(client);
        // It ends while nobody is there.
        let pid = i32::try_from(container.pid).expect("pids are positive");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
        assert_eq!(self.sandbox.wait_exit(&self.id).await, 9);
        self.ends_are_found(container.number).await;
        self.nothing_is_lost(done).await;
    }

    /// The container, once it is not being created any more.
    async fn settled(&self, client: &Client) -> Option<ContainerInfo> {
        let listed = async {
            loop {
                let mut listing = client.list_containers(Some(&self.id)).await.expect("a list");
                assert!(listing.entries.len() <= 1);
                match listing.entries.pop() {
                    Some(container) if container.state == ContainerState::Creating => {
                        tokio::task::yield_now().await;
                    }
                    other => return other,
                }
            }
        };
        within(listed).await
    }

    async fn streams_go_on(&self, done: &mut Done) {
        if let Some(exec) = &mut done.exec {
            echoes(exec, "second").await;
        }
        if let Some(pipe) = &mut done.forward {
            let mut echo = [0; 6];
            pipe.local.write_all(b"second").await.expect("the forward goes on");
            within(pipe.local.read_exact(&mut echo)).await.expect("the forward goes on");
            assert_eq!(&echo, b"second");
        }
    }

    async fn sessions_are_listed(&self, client: &Client, done: &Done, cut: Cut) {
        let sessions = client.list_sessions(Some(&self.id)).await.expect("a list").entries;
        let active = |kind, transport| {
            let is = |s: &&SessionInfo| (s.kind, s.transport, s.state) == (kind, transport, SessionState::Active);
            sessions.iter().find(is)
        };
        let exec = active(SessionKind::Exec, SessionTransport::WebSocket);
        assert_eq!(exec.is_some(), done.exec.is_some(), "{cut:?}: {sessions:?}");
        if let Some(exec) = exec {
            assert!(exec.pid > 0 && exec.exit_code.is_none() && exec.peer.starts_with("127.0.0.1:"), "{exec:?}");
            // What is on its way to the client is counted when it has been written.
            assert!(exec.received_bytes == 11 && (5..=11).contains(&exec.sent_bytes), "{exec:?}");
        }
        let attached = active(SessionKind::Attach, SessionTransport::WebSocket).is_some();
        assert_eq!(attached, done.attach.is_some(), "{cut:?}: {sessions:?}");
        let on_socket = active(SessionKind::Attach, SessionTransport::AttachSocket).is_some();
        assert_eq!(on_socket, done.socket.is_some(), "{cut:?}: {sessions:?}");
        let all = client.list_sessions(None).await.expect("a list").entries;
        let forward = |s: &&SessionInfo| (&s.pod_id, s.state) == (&self.id, SessionState::Active);
        assert_eq!(all.iter().any(|s| forward(&s)), done.forward.is_some(), "{cut:?}: {all:?}");
        if !done.sync && !matches!(cut, Cut::Replies(_)) && self.sandbox.in_rootfs(&self.mark()).exists() {
            // It has run, and its caller was gone.
            let ended = |s: &SessionInfo| (s.kind, s.exit_code) == (SessionKind::ExecSync, Some(SYNC_CODE));
            let untold = |all: &[SessionInfo]| all.iter().any(|s| ended(s) && s.state == SessionState::Ended);
            sessions_until(client, Some(&self.id), untold).await;
        }
        if done.sync {
            assert!(sessions.iter().all(|session| session.kind != SessionKind::ExecSync), "it was told: {sessions:?}");
        }
    }

    /// The next client finds the ends that came while nobody was there.
    async fn ends_are_found(&self, number: u64) {
        let client = self.sandbox.connect().await;
        let exited = within(async {
            loop {
                let listing = client.list_containers(Some(&self.id)).await.expect("a list");
                if let [container] = &listing.entries[..]
                    && container.state == ContainerState::Exited
                {
                    return container.clone();
                }
            }
        });
        let exited = exited.await;
        assert_eq!((exited.number, exited.exit_code, exited.lost_bytes), (number, Some(9), 0));
        assert!(exited.exited_at.is_some_and(|time| time >= exited.created_at));
        assert_eq!(client.forget(&[number], &[]).await.expect("forgotten"), (1, 0));
        assert_eq!(client.list_containers(Some(&self.id)).await.expect("a list").entries, []);
    }

    /// What each stream brought is a part of the log without a gap, and the log is all that was counted.
    async fn nothing_is_lost(&self, done: Done) {
        let log = self.sandbox.logged(&self.id, StdStream::Stdout);
        let lines: Vec<_> = std::str::from_utf8(&log).expect("digits").lines().collect();
        assert!(lines.iter().zip(1..).all(|(line, n)| *line == n.to_string()), "{lines:?}");
        if let Some(attach) = done.attach {
            let all = within(attach.collect()).await.expect("a whole session");
            assert!(log.ends_with(&all.stdout), "{} of {}", all.stdout.len(), log.len());
            assert_eq!(all.statuses.len(), 1);
        }
        if let Some(socket) = done.socket {
            let all = within(socket.collect()).await;
            assert!(log.ends_with(&all.stdout) && all.done == 1, "{} of {}", all.stdout.len(), log.len());
        }
        if let Some(exec) = done.exec {
            let all = within(exec.collect()).await.expect("a whole session");
            assert_eq!(all.statuses, [holdfast::model::Outcome::Exited(137)], "killed with its container");
        }
    }
}

/// Asks until the sessions are as they should be.
async fn sessions_until(client: &Client, id: Option<&str>, good: impl Fn(&[SessionInfo]) -> bool) {
    within(async { while !good(&client.list_sessions(id).await.expect("a list").entries) {} }).await;
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Sends a word and waits until it comes back.
async fn echoes(session: &mut StreamClient, word: &str) {
    session.send_stdin(word.as_bytes()).await.expect("the session goes on");
    let mut echo = Vec::new();
    while echo.len() < word.len() {
        match within(session.next()).await.expect("the session goes on") {
            StreamMessage::Stdout(bytes) => echo.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(echo, word.as_bytes());
}

/// Sends back what comes, on every connection.
async fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                let (mut from, mut to) = stream.split();
                // Until the client's end, however that looks.
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
        #[allow(unreachable_code, reason = "names the error type")]
        io::Result::Ok(())
    });
    port
}

/// One engine whose connection is cut, and the one after it. Returns how many messages there were.
async fn cut_at(sandbox: &Sandbox, port: u16, name: &str, cut: Cut) -> (usize, usize) {
    let relay = Relay::start(sandbox, &format!("relay-{name}"), cut);
    let engine = Engine { sandbox, id: format!("c{name}"), port };
    let client = Client::connect(&relay.dir).await.expect("the relay listens");
    let mut done = Done::default();
    let worked = within(engine.work(&client, &mut done)).await;
    assert!(worked.is_ok() || (cut != Cut::Never && matches!(worked, Err(ClientError::Gone { .. }))), "{worked:?}");
    drop(client);
    let counted = relay.counted();
    relay.ended().await;
    within(engine.next(done, cut)).await;
    counted
}

#[test]
fn wherever_an_engine_is_cut_off_the_next_one_finds_and_continues_everything() {
    e2e(async |sandbox| {
        let port = echo_server().await;
        let (requests, replies) = cut_at(sandbox, port, "whole", Cut::Never).await;
        assert!(
            requests >= 7 && replies >= 7,
            "{requests} requests and {replies} replies for the bootstrap and six calls"
        );
        let sixteenths = if long() { 1..16 } else { 8..9 };
        let parts =
            (0..requests).flat_map(|request| sixteenths.clone().map(move |part| Cut::WithinRequest(request, part)));
        let cuts = (0..requests).map(Cut::Requests).chain((0..replies).map(Cut::Replies)).chain(parts);
        let runs = stream::iter(cuts.enumerate()).map(async |(n, cut)| {
            cut_at(sandbox, port, &n.to_string(), cut).await;
        });
        let at_once = if long() { 1 } else { 4 };
        assert!(runs.buffer_unordered(at_once).count().await > 20);
        // Nothing of all these is left but URLs that nobody came for, and ends of commands that nobody was told.
        let left = |s: &SessionInfo| matches!(s.state, SessionState::Waiting | SessionState::Ended);
        sessions_until(&sandbox.connect().await, None, |all| all.iter().all(left)).await;
    });
}
