//! What holds for every session of the streaming server (streaming 9.8), and its settings.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use holdfast::{
    client::{ClientError, ServeAttach},
    model::StdStream,
};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    pod::{accept, echo, echoes, forward, url, with_pod, with_pod_and},
    support::{
        BundleSpec, Sandbox, e2e_with,
        raw_spdy::{CANCEL, Frame, RawSpdy},
        raw_ws::{FIN, Frame as Message, PING, RawSession, channel},
        with_container, within,
    },
};

const V5: &str = "v5.channel.k8s.io";
const ALL: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

#[test]
fn p116_without_a_limit_idle_pairs_and_connections_stay() {
    with_pod_and(&[("HOLDFAST_IDLE_TIMEOUT", "0")], async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        let start = Instant::now();
        let mut number = 1;
        while start.elapsed() < Duration::from_secs(2) {
            session.writer.ping(number).await;
            assert_eq!(session.reader.next().await, Some(Frame::Ping(number)));
            number += 2;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        server.write_all(b"still here").await.expect("the daemon reads");
        session.reader.wait_output(pair.data, "still here").await;
    });
}

#[test]
fn p116_p125_data_keeps_a_forward_alive_and_pings_do_not() {
    with_pod_and(&[("HOLDFAST_IDLE_TIMEOUT", "3")], async |sandbox, pod| {
        let (listener, port) = pod.listen();
        let mut session = forward(sandbox, pod).await;
        let pair = session.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            session.writer.data(pair.data, b"x").await;
            assert_eq!(within(server.read_u8()).await.expect("the connection stays"), b'x');
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // From now on nothing but pings.
        let quiet = Instant::now();
        let RawSpdy { reader, writer } = &mut session;
        let pings = async {
            loop {
                writer.ping(1).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let end = Frame::GoAway { last_good: pair.data, status: 0 };
        let seen = tokio::select! {
            seen = reader.wait(&end) => seen,
            () = pings => unreachable!("it goes on"),
        };
        assert!(quiet.elapsed() >= Duration::from_secs(2), "{:?}", quiet.elapsed());
        assert!(seen.frames.contains(&Frame::Ping(1)), "{seen:?}");
        assert!(seen.frames.contains(&Frame::Reset { id: pair.data, status: CANCEL }), "{seen:?}");
        assert!(seen.has_ended(pair.error) && seen.text(pair.error).is_empty(), "{seen:?}");
        assert_eq!(within(server.read(&mut [0])).await.ok(), Some(0));
        session.writer.goaway().await;
        assert_eq!(session.reader.next().await, None);
    });
}

#[test]
fn p125_an_idle_session_of_any_kind_ends_as_its_transport_ends_sessions() {
    with_pod_and(&[("HOLDFAST_IDLE_TIMEOUT", "1")], async |sandbox, pod| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let attach = || async {
            let attach = ServeAttach { id: "c".to_owned(), stdout: true, ..ServeAttach::default() };
            sandbox.client().serve_attach(&attach).await.expect("the attach gets a URL")
        };
        for url in [sandbox.exec_url("c", &["cat"]).await, attach().await] {
            let mut session = RawSession::open(&url, V5).await;
            let frames = session.rest().await;
            assert!(String::from_utf8_lossy(&channel(&frames, 3)).contains("idle for too long"), "{frames:?}");
            assert_eq!(frames.last().and_then(Message::close_code), Some(1000));
        }
        let kinds = [(sandbox.exec_url("c", &["cat"]).await, &ALL[..]), (attach().await, &["error", "stdout"])];
        for (url, streams) in kinds {
            let (mut session, ids) = RawSpdy::session(&url, streams).await;
            let seen = session.reader.until_ended(&ids).await;
            assert!(seen.text(ids["error"]).contains("idle for too long"), "{seen:?}");
            session.bye().await;
        }
        let (listener, port) = pod.listen();
        let mut session =
            RawSession::open(&format!("{}?port={port}", url(sandbox, pod).await), "v4.channel.k8s.io").await;
        let mut server = accept(&listener).await;
        assert_eq!(session.rest().await.last().and_then(Message::close_code), Some(1000));
        assert_eq!(within(server.read(&mut [0])).await.ok(), Some(0));
    });
}

#[test]
fn p126_at_the_shutdown_every_session_is_told() {
    with_pod(async |sandbox, pod| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let mut ws = RawSession::open(&sandbox.exec_url("c", &["cat"]).await, V5).await;
        let (mut spdy, ids) = RawSpdy::session(&sandbox.exec_url("c", &["cat"]).await, &ALL).await;
        // Both commands run.
        ws.send(FIN | 2, b"\x00ws\n").await;
        ws.wait_output(1, "ws\n").await;
        spdy.writer.data(ids["stdin"], b"spdy\n").await;
        spdy.reader.wait_output(ids["stdout"], "spdy\n").await;
        let (listener, port) = pod.listen();
        let mut forward = forward(sandbox, pod).await;
        let pair = forward.open_pair(port, 0).await;
        let mut servers = vec![accept(&listener).await];
        let channels = format!("{}?port={port}", url(sandbox, pod).await);
        let mut channels = RawSession::open(&channels, "v4.channel.k8s.io").await;
        servers.push(accept(&listener).await);

        let told = async {
            let frames = ws.rest().await;
            let status = String::from_utf8(channel(&frames, 3)).expect("JSON");
            assert!(status.contains(r#""message":"137""#), "{status}");
            assert_eq!(frames.last().and_then(Message::close_code), Some(1000));
            let seen = spdy.reader.until_ended(&ids).await;
            assert!(seen.text(ids["error"]).contains(r#""message":"137""#), "{seen:?}");
            let seen = forward.reader.wait(&Frame::GoAway { last_good: pair.data, status: 0 }).await;
            assert!(seen.has_ended(pair.data) && seen.has_ended(pair.error), "{seen:?}");
            assert_eq!(channels.rest().await.last().and_then(Message::close_code), Some(1000));
        };
        let ((), status) = tokio::join!(told, sandbox.end_daemon(Signal::SIGTERM));
        assert!(status.success(), "{status}");
        for server in &mut servers {
            assert_eq!(within(server.read(&mut [0])).await.ok(), Some(0));
        }
    });
}

#[test]
fn p127_connections_that_never_ask_are_bounded_in_number_and_time() {
    let limited = |command: &mut Command| {
        command.env("HOLDFAST_CONNECTION_LIMIT", "20");
    };
    e2e_with(limited, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let url = sandbox.exec_url("c", &["echo", "hello"]).await;
        let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).expect("absolute");
        let mut waiting = Vec::new();
        for number in 0..60 {
            let mut stream = TcpStream::connect(address).await.expect("the server listens");
            // Some say nothing, some begin, some never come to an end of their head.
            let begin = ["", "G", "GET /exec/x HTTP/1.1\r\nHost: x\r\n"][number % 3];
            stream.write_all(begin.as_bytes()).await.expect("the server may close, but has not yet");
            waiting.push(stream);
        }
        let start = Instant::now();
        // The oldest made room for the newest, who is served at once.
        for stream in &mut waiting[..40] {
            let _ = within(stream.read_to_end(&mut Vec::new())).await;
        }
        let (session, ids) = RawSpdy::session(&url, &ALL).await;
        assert_eq!(session.finish(&ids).await.text(ids["stdout"]), "hello\n");
        assert!(start.elapsed() < Duration::from_secs(9), "nobody waited for a time limit: {:?}", start.elapsed());
        // And these are not waited for without end.
        for stream in &mut waiting[40..] {
            let _ = within(stream.read_to_end(&mut Vec::new())).await;
        }
    });
}

#[test]
fn p129_an_attach_client_that_never_reads_delays_neither_the_log_nor_others() {
    let script = "read line; i=0; while [ $i -lt 20000 ]; do echo 0123456789012345678901234567890123456789; \
                  i=$((i+1)); done; echo done";
    with_pod(async |sandbox, _| {
        sandbox.run("c", &BundleSpec::shell(script).stdin()).await;
        let url = async |stdin| {
            let attach = ServeAttach { id: "c".to_owned(), stdin, stdout: true, ..ServeAttach::default() };
            sandbox.client().serve_attach(&attach).await.expect("the attach gets a URL")
        };
        // Half open: the client's end is there, and nobody reads it any more.
        let (_silent_spdy, _) = RawSpdy::session(&url(false).await, &["error", "stdout"]).await;
        let _silent_ws = RawSession::open(&url(false).await, V5).await;
        let (mut reading, ids) = RawSpdy::session(&url(true).await, &["error", "stdin", "stdout"]).await;
        reading.writer.data(ids["stdin"], b"go\n").await;
        let seen = reading.reader.until_ended(&ids).await;
        assert_eq!(seen.payload(ids["stdout"]).len(), 20_000 * 41 + 5);
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.logged("c", StdStream::Stdout).len(), 20_000 * 41 + 5);
    });
}

/// Runs `cat` over one of the transports, a line there and back.
async fn cat(sandbox: &Sandbox, number: usize) {
    let url = sandbox.exec_url("c", &["cat"]).await;
    let line = format!("session {number}\n");
    if number.is_multiple_of(2) {
        let mut session = RawSession::open(&url, V5).await;
        session.send(FIN | PING, b"alive").await;
        session.send(FIN | 2, format!("\0{line}").as_bytes()).await;
        session.send(FIN | 2, b"\xff\0").await;
        let frames = session.rest().await;
        assert_eq!(String::from_utf8_lossy(&channel(&frames, 1)), line);
        assert!(String::from_utf8_lossy(&channel(&frames, 3)).contains(r#""status":"Success""#), "{frames:?}");
    } else {
        let (mut session, ids) = RawSpdy::session(&url, &ALL).await;
        session.writer.data(ids["stdin"], line.as_bytes()).await;
        session.writer.fin(ids["stdin"]).await;
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["stderr"])), (line, String::new()));
        assert!(seen.text(ids["error"]).contains(r#""status":"Success""#), "{seen:?}");
    }
}

#[test]
fn p130_a_hundred_sessions_over_two_transports_at_once_are_all_right() {
    with_container(async |sandbox| {
        let sessions: Vec<_> = (0..100).map(|number| cat(sandbox, number)).collect();
        futures_util::future::join_all(sessions).await;
    });
}

#[test]
fn p131_when_the_monitor_is_killed_clients_see_the_end_at_once() {
    with_pod(async |sandbox, pod| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let mut ws = RawSession::open(&sandbox.exec_url("c", &["cat"]).await, V5).await;
        let (mut spdy, _) = RawSpdy::session(&sandbox.exec_url("c", &["cat"]).await, &ALL).await;
        let (listener, port) = pod.listen();
        let mut forward = forward(sandbox, pod).await;
        forward.open_pair(port, 0).await;
        let mut server = accept(&listener).await;
        sandbox.end_daemon(Signal::SIGKILL).await;
        while ws.next().await.is_some() {}
        spdy.reader.rest().await;
        forward.reader.rest().await;
        let _ = within(server.read(&mut [0])).await;
    });
}

/// Ticks of processor time that a process has used.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let fields: Vec<_> = stat.rsplit_once(") ").expect("a name in brackets").1.split(' ').collect();
    // utime and stime of proc(5), counted from the state.
    [11, 12].into_iter().map(|index: usize| fields[index].parse::<u64>().expect("a number")).sum()
}

#[test]
fn p132_idle_sessions_use_no_processor_also_with_their_stdin_at_its_end() {
    with_pod(async |sandbox, pod| {
        sandbox.run("c", &BundleSpec::idle().stdin()).await;
        let attach = ServeAttach { id: "c".to_owned(), stdin: true, stdout: true, ..ServeAttach::default() };
        let (mut web, mut spdy, mut forwards, mut servers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (listener, port) = pod.listen();
        for number in 0..34 {
            let url = sandbox.client().serve_attach(&attach).await.expect("the attach gets a URL");
            let (mut session, _) = RawSpdy::session(&url, &["error", "stdin", "stdout"]).await;
            if number % 8 == 0 {
                // Execs that ignore their input, whose end has come.
                let url = sandbox.exec_url("c", &["sleep", "1000"]).await;
                let mut session = RawSession::open(&url, V5).await;
                session.send(FIN | 2, b"\xff\0").await;
                web.push(session);
                let url = sandbox.exec_url("c", &["sleep", "1000"]).await;
                let (mut session, ids) = RawSpdy::session(&url, &ALL).await;
                session.writer.fin(ids["stdin"]).await;
                spdy.push(session);
            }
            session.writer.ping(1).await;
            session.reader.wait(&Frame::Ping(1)).await;
            spdy.push(session);
            let url = sandbox.client().serve_attach(&attach).await.expect("the attach gets a URL");
            web.push(RawSession::open(&url, V5).await);
            let mut session = forward(sandbox, pod).await;
            let pair = session.open_pair(port, 0).await;
            servers.push(accept(&listener).await);
            session.writer.fin(pair.data).await;
            forwards.push(session);
        }
        assert!(web.len() + spdy.len() + forwards.len() >= 100);
        let daemon = sandbox.daemon_pid();
        // What starting them took is not meant.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = ticks(daemon);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used = ticks(daemon) - before;
        // A loop would use 200 of them, or what this machine has left.
        assert!(used < 30, "{used} ticks in two seconds");
    });
}

#[test]
fn p001_the_url_has_the_address_and_the_port_that_were_set() {
    let address = |command: &mut Command| {
        command.env("HOLDFAST_STREAM_ADDRESS", "127.0.0.3");
    };
    e2e_with(address, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let url = sandbox.exec_url("c", &["echo", "hello"]).await;
        let port = url.strip_prefix("http://127.0.0.3:").and_then(|rest| rest.split('/').next());
        assert!(port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)), "{url}");
        let (session, ids) = RawSpdy::session(&url, &ALL).await;
        assert_eq!(session.finish(&ids).await.text(ids["stdout"]), "hello\n");
    });
    // All addresses are none that a client could dial.
    let everywhere = |command: &mut Command| {
        command.env("HOLDFAST_STREAM_ADDRESS", "::");
    };
    e2e_with(everywhere, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let url = sandbox.exec_url("c", &["echo", "hello"]).await;
        assert!(url.starts_with("http://[::1]:"), "{url}");
        let (session, ids) = RawSpdy::session(&url, &ALL).await;
        assert_eq!(session.finish(&ids).await.text(ids["stdout"]), "hello\n");
    });
}

#[test]
fn p001_a_port_that_is_taken_fails_the_call_clearly_and_works_once_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback");
    let port = taken.local_addr().expect("bound").port();
    let fixed = |command: &mut Command| {
        command.args(["--stream-port", &port.to_string()]);
    };
    e2e_with(fixed, async |sandbox| {
        let call = async || within(sandbox.client().serve_port_forward("".as_ref())).await;
        match call().await {
            Err(ClientError::Refused { reason, .. }) => {
                assert!(reason.contains("listen for streaming clients"), "{reason}");
                assert!(reason.contains(&format!("127.0.0.1:{port}")), "{reason}");
                assert!(reason.to_lowercase().contains("in use"), "{reason}");
            }
            other => panic!("not refused: {other:?}"),
        }
        drop(taken);
        let url = call().await.expect("the port is free");
        assert!(url.starts_with(&format!("http://127.0.0.1:{port}/")), "{url}");
    });
}

#[test]
fn p125_beyond_the_limit_of_sessions_a_client_is_told_and_its_url_stays_good() {
    with_pod_and(&[("HOLDFAST_SESSION_LIMIT", "1")], async |sandbox, pod| {
        let (listener, port) = pod.listen();
        echo(listener);
        let first = forward(sandbox, pod).await;
        let url = url(sandbox, pod).await;
        let (session, answer) = RawSpdy::upgrade(&url, "POST", &LINES, b"").await;
        assert_eq!((session.is_none(), answer.status), (true, 503));
        first.bye().await;
        let mut session = eventually_upgraded(&url).await;
        echoes(&mut session, port, 0).await;
        session.bye().await;
    });
}

/// The lines of an upgrade to a port forward.
const LINES: [&str; 3] = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: portforward.k8s.io"];

/// The place of an ended session is free soon after its client has seen the end.
async fn eventually_upgraded(url: &str) -> RawSpdy {
    within(async {
        loop {
            if let (Some(session), _) = RawSpdy::upgrade(url, "POST", &LINES, b"").await {
                return session;
            }
        }
    })
    .await
}
