//! Exec, attach and port forward over HTTP; see the table in `main.rs`.

use std::fs;

use holdfast::{
    client::{ServeAttach, ServeExec, StreamClient},
    model::Outcome,
};

use crate::support::{
    self, BundleSpec, Sandbox, beside_a_neighbour, collect, eventually, procfs,
    raw_spdy::{self, RawSpdy, data},
    raw_ws::{ACCEPT, Answer, BINARY, FIN, Frame, Http, PING, RawSession, UPGRADE, channel},
    wait_output, with_container, within,
};

const V5: &str = "v5.channel.k8s.io";

/// One request on a connection of its own.
async fn request(url: &str, method: &str, headers: &[&str]) -> Answer {
    let mut http = Http::connect(url).await;
    let path = http.path.clone();
    http.request(method, &path, headers).await
}

fn attach(stdin: bool) -> ServeAttach {
    ServeAttach { id: "c".to_owned(), stdin, stdout: true, stderr: true }
}

/// Waits until nothing of a session is left in the daemon: no child but the container's init, no pidfile.
pub(crate) async fn assert_cleaned_up(sandbox: &Sandbox) {
    let alone = || (procfs::children(sandbox.daemon_pid()).len() == 1).then_some(());
    eventually("the command to be collected", alone).await;
}

async fn started(mut session: StreamClient) -> StreamClient {
    wait_output(&mut session, "up\n").await;
    session
}

#[test]
fn d9_opening_a_port_forward_does_not_end_the_daemon() {
    beside_a_neighbour(async |sandbox, neighbour| {
        for (upgrade, status) in [(&UPGRADE[..], 101), (&[], 400)] {
            let answer = neighbour
                .undisturbed("a port forward", async || {
                    let url = sandbox.client().serve_port_forward("/proc/self/ns/net".as_ref()).await.expect("a URL");
                    let exec = url.replace("/port-forward/", "/exec/");
                    assert_eq!(request(&exec, "GET", &UPGRADE).await.status, 404, "a token of another kind");
                    let answer = request(&url, "GET", upgrade).await;
                    assert_eq!(request(&url, "GET", upgrade).await.status, 404, "a used token");
                    answer
                })
                .await;
            assert_eq!(answer.status, status, "{answer:?}");
        }
        neighbour
            .undisturbed("a forwarded connection", async || {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
                let port = listener.local_addr().expect("bound").port();
                let url = sandbox.client().serve_port_forward("/proc/self/ns/net".as_ref()).await.expect("a URL");
                let mut session = RawSpdy::connect(&url, raw_spdy::FORWARD).await;
                let pair = session.open_pair(port, 0).await;
                let (mut pod, _) = within(listener.accept()).await.expect("the daemon dials");
                tokio::io::AsyncWriteExt::write_all(&mut pod, b"hello").await.expect("connected");
                session.reader.wait_output(pair.data, "hello").await;
                session.bye().await;
            })
            .await;
        for path in ["relative", "/"] {
            sandbox.client().serve_port_forward(path.as_ref()).await.expect_err("no path of a file");
        }
    });
}

#[test]
fn d18_the_last_output_before_the_end_is_not_lost() {
    with_container(async |sandbox| {
        let wanted: String = (1..=60_000).map(|number| format!("{number}\n")).collect();
        for round in 0..20 {
            let all = sandbox.exec("c", &["sh", "-c", "seq 1 60000; echo last >&2"]).await;
            assert!(all.stdout == wanted.as_bytes() && all.stderr == b"last\n"[..], "round {round}");
            assert_eq!((&all.statuses[..], all.close_code), (&[Outcome::Exited(0)][..], Some(1000)));
        }
        sandbox.create("attached", &BundleSpec::shell("seq 1 20000; echo last >&2")).await;
        let session = sandbox.attach_ws(ServeAttach { id: "attached".to_owned(), ..attach(false) }).await;
        sandbox.start("attached");
        let all = collect(session).await;
        assert!(all.stdout.ends_with(b"\n20000\n") && all.stderr == b"last\n"[..] && all.stdout[..2] == *b"1\n");
    });
}

#[test]
fn d19_the_end_of_stdin_does_not_end_the_output() {
    with_container(async |sandbox| {
        let mut session = sandbox.exec_ws("c", &["sh", "-c", "cat; echo after"]).await;
        session.send_stdin(b"hello\n").await.expect("open");
        wait_output(&mut session, "hello\n").await;
        session.close_stdin().await.expect("v5");
        let all = collect(session).await;
        assert_eq!((&all.stdout[..], &all.statuses[..]), (&b"after\n"[..], &[Outcome::Exited(0)][..]));
    });
}

#[test]
fn d20_a_command_that_cannot_be_started_is_no_success() {
    with_container(async |sandbox| {
        let all = sandbox.exec("c", &["invalid"]).await;
        let [Outcome::Failed(text)] = &all.statuses[..] else { panic!("{all:?}") };
        assert!(
            text.contains("error executing command in container: ") && text.contains("not found in $PATH"),
            "{text}"
        );
        assert_eq!(all.close_code, Some(1000));
        let tty = collect(sandbox.exec_tty_ws("c", &["invalid"]).await).await;
        assert!(matches!(&tty.statuses[..], [Outcome::Failed(_)]) && tty.close_code == Some(1000), "{tty:?}");
    });
}

#[test]
fn d21_a_resize_needs_no_stdin_and_a_bad_one_ends_no_session() {
    with_container(async |sandbox| {
        let session = async |tty: bool, script: &str| {
            let command = ["sh", "-c", script].map(str::to_owned).into();
            let exec = ServeExec { id: "c".to_owned(), command, tty, stdout: true, ..ServeExec::default() };
            RawSession::open(&sandbox.client().serve_exec(&exec).await.expect("a URL"), V5).await
        };
        let mut tty = session(true, "until [ \"$(stty size 2>/dev/null)\" = '33 77' ]; do :; done; echo resized").await;
        let mut pipes = session(false, "while [ ! -e /go ]; do sleep 0.05; done; echo unharmed").await;
        for session in [&mut tty, &mut pipes] {
            for size in [
                &b"nonsense"[..],
                b"{\"Width\":",
                b"{\"Width\":99999,\"Height\":1}",
                b"",
                b"{\"Width\":77,\"Height\":33}",
            ] {
                session.send(FIN | BINARY, &[b"\x04", size].concat()).await;
            }
        }
        fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        assert_eq!(channel(&tty.rest().await, 1), b"resized\r\n");
        assert_eq!(channel(&pipes.rest().await, 1), b"unharmed\n");
    });
}

#[test]
fn d22_two_clients_of_a_container_both_see_everything() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("read a; read b; seq 1 10000; echo $a $b").stdin()).await;
        let (mut one, mut two) = (sandbox.attach_ws(attach(true)).await, sandbox.attach_ws(attach(true)).await);
        sandbox.start("c");
        one.send_stdin(b"first\n").await.expect("open");
        // Its own input must have been read before the other's is sent, or the order of the two is nobody's.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        two.send_stdin(b"second\n").await.expect("open");
        let wanted: String = (1..=10_000).map(|number| format!("{number}\n")).collect::<String>() + "first second\n";
        for session in [one, two] {
            let all = collect(session).await;
            assert!(all.stdout == wanted.as_bytes() && all.statuses == [Outcome::Exited(0)], "{}", all.stdout.len());
        }
    });
}

#[test]
fn d22_a_client_gets_no_output_of_before_it_came() {
    support::e2e(async |sandbox| {
        let script = "echo before; while [ ! -e /go ]; do sleep 0.05; done; echo out; echo err >&2";
        sandbox.run("c", &BundleSpec::shell(script)).await;
        sandbox.wait_log("c", "before").await;
        let session = sandbox.attach_ws(attach(false)).await;
        fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        let all = collect(session).await;
        assert_eq!((&all.stdout[..], &all.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!((&all.statuses[..], all.close_code), (&[Outcome::Exited(0)][..], Some(1000)));
    });
}

#[test]
fn d23_not_only_v5_is_served_and_nothing_is_spoken_without_agreement() {
    with_container(async |sandbox| {
        let offer = |names: &str| format!("Sec-WebSocket-Protocol: {names}");
        let cases = [
            (vec![offer("v5.channel.k8s.io, v4.channel.k8s.io")], Some("v5.channel.k8s.io")),
            (vec![offer("v5.channel.k8s.io"), offer("v4.channel.k8s.io")], Some("v5.channel.k8s.io")),
            (vec![offer("v9.foo"), offer("v4.channel.k8s.io,v5.channel.k8s.io")], Some("v4.channel.k8s.io")),
            (vec![offer("channel.k8s.io")], Some("channel.k8s.io")),
            (vec!["Sec-WebSocket-Extensions: permessage-deflate".to_owned()], None),
        ];
        for (lines, chosen) in cases {
            let lines: Vec<&str> = UPGRADE.into_iter().chain(lines.iter().map(String::as_str)).collect();
            let answer = request(&sandbox.exec_url("c", &["true"]).await, "GET", &lines).await;
            assert_eq!((answer.status, answer.header("sec-websocket-protocol")), (101, chosen), "{lines:?}");
            assert_eq!(
                (answer.header("connection"), answer.header("sec-websocket-accept")),
                (Some("Upgrade"), Some(ACCEPT))
            );
            assert_eq!(answer.header("sec-websocket-extensions"), None);
        }
        let unknown = [&UPGRADE[..], &["Sec-WebSocket-Protocol: v9.foo"]].concat();
        let answer = request(&sandbox.exec_url("c", &["true"]).await, "GET", &unknown).await;
        assert!(answer.status == 403 && answer.body.contains("server accepts"), "{answer:?}");
    });
}

#[test]
fn d23_the_same_url_serves_spdy() {
    with_container(async |sandbox| {
        for kind in ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
            let url = sandbox.exec_url("c", &["sh", "-c", "cat; echo err >&2"]).await;
            let mut session = RawSpdy::connect(&url, kind).await;
            let ids = session.open_all(&["error", "stdin", "stdout", "stderr"]).await;
            session.writer.raw(&data(ids["stdin"], raw_spdy::FIN, b"hello")).await;
            let seen = session.finish(&ids).await;
            assert_eq!((seen.text(ids["stdout"]), seen.text(ids["stderr"])), ("hello".into(), "err\n".into()));
        }
        // Nothing is spoken without agreement here either.
        let unknown = [&raw_spdy::UPGRADE[..], &["X-Stream-Protocol-Version: v9.foo"]].concat();
        let answer = request(&sandbox.exec_url("c", &["true"]).await, "POST", &unknown).await;
        assert!(answer.status == 403 && answer.body.contains("server accepts"), "{answer:?}");
    });
}

#[test]
fn d24_a_status_that_is_no_exit_code_is_not_sent_as_one() {
    with_container(async |sandbox| {
        let url = sandbox.exec_url("c", &["no-such-program"]).await;
        let frames = RawSession::open(&url, V5).await.rest().await;
        let status: serde_json::Value = serde_json::from_slice(&channel(&frames, 3)).expect("JSON");
        assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"InternalError".into()));
        assert!(!status.to_string().contains("ExitCode"), "{status}");
    });
}

// That a URL ends by itself after a minute is tested in `session/pending.rs`, where time is cheap.
#[test]
fn d25_a_waiting_url_is_not_dropped_for_the_next_25() {
    with_container(async |sandbox| {
        let mut urls = Vec::new();
        for _ in 0..1001 {
            urls.push(sandbox.exec_url("c", &["true"]).await);
        }
        for (number, status) in [(0, 404), (1, 101), (1000, 101)] {
            assert_eq!(request(&urls[number], "GET", &UPGRADE).await.status, status, "{number}");
        }
        assert!(sandbox.daemon_log().contains("the oldest was dropped"));
        let token = urls[1].rsplit('/').next().expect("a path");
        assert!(token.len() >= 32 && !sandbox.daemon_log().contains(token), "tokens are secret");
    });
}

#[test]
fn d25_a_token_is_good_for_its_own_path_alone() {
    with_container(async |sandbox| {
        let url = sandbox.exec_url("c", &["cat"]).await;
        for other in ["/attach/", "/port-forward/", "/portforward/"] {
            assert_eq!(request(&url.replace("/exec/", other), "GET", &UPGRADE).await.status, 404);
        }
        for method in ["PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"] {
            let answer = request(&url, method, &[]).await;
            assert_eq!(answer.status, 405, "{method}");
            let allowed = answer.header("allow").expect("required by HTTP");
            assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
        }
        assert_eq!(request(&url, "GET", &UPGRADE).await.status, 101);
    });
}

#[test]
fn d25_the_command_of_a_session_is_not_in_the_daemons_log() {
    with_container(async |sandbox| {
        assert_eq!(sandbox.exec("c", &["echo", "pass", "word"]).await.stdout, b"pass word\n");
        sandbox.exec_url("c", &["echo", "unused", "pass"]).await;
        assert!(!["word", "pass"].iter().any(|secret| sandbox.daemon_log().contains(secret)));
    });
}

#[test]
fn d26_without_its_client_a_process_that_reads_sees_the_end_of_stdin() {
    with_container(async |sandbox| {
        let script = "echo up; cat; echo eof >/seen";
        drop(started(sandbox.exec_ws("c", &["sh", "-c", script]).await).await);
        sandbox.wait_file("seen", "eof\n").await;
        assert_cleaned_up(sandbox).await;
    });
}

#[test]
fn d26_without_its_client_a_process_that_writes_gets_sigpipe() {
    with_container(async |sandbox| {
        let script = "echo up; sh -c 'while :; do echo y; done'; echo $? >/seen";
        drop(started(sandbox.exec_ws("c", &["sh", "-c", script]).await).await);
        sandbox.wait_file("seen", "141\n").await;
        assert_cleaned_up(sandbox).await;
    });
}

#[test]
fn d26_without_its_client_a_process_with_a_terminal_gets_sighup() {
    with_container(async |sandbox| {
        let script = "trap 'echo hup >/seen; exit' HUP; stty -onlcr; echo up; while :; do sleep 0.1; done";
        drop(started(sandbox.exec_tty_ws("c", &["sh", "-c", script]).await).await);
        sandbox.wait_file("seen", "hup\n").await;
        assert_cleaned_up(sandbox).await;
    });
}

#[test]
fn d26_a_client_that_says_close_is_gone_too() {
    with_container(async |sandbox| {
        let session = started(sandbox.exec_ws("c", &["sh", "-c", "echo up; cat; echo eof >/seen"]).await).await;
        let (mut sender, _receiver) = session.split();
        sender.close().await.expect("open");
        sandbox.wait_file("seen", "eof\n").await;
        assert_cleaned_up(sandbox).await;
    });
}

#[test]
fn d65_a_message_has_a_limit_and_is_not_kept_whole() {
    with_container(async |sandbox| {
        let mut session = RawSession::open(&sandbox.exec_url("c", &["wc", "-c"]).await, V5).await;
        let mut large = vec![b'x'; 16 << 20];
        large[0] = 0;
        session.send(FIN | BINARY, &large).await;
        session.send(FIN | BINARY, b"\xff\0").await;
        assert_eq!(channel(&session.rest().await, 1), format!("{}\n", (16 << 20) - 1).as_bytes());
        let mut session = RawSession::open(&sandbox.exec_url("c", &["cat"]).await, V5).await;
        session.send_raw(&[&[FIN | BINARY, 0xff][..], &(33_u64 << 20).to_be_bytes(), &[0; 4]].concat()).await;
        assert_eq!(session.rest().await.last().and_then(Frame::close_code), Some(1009));
    });
}

#[test]
fn d65_an_idle_session_ends_where_a_limit_is_set() {
    let limited = |daemon: &mut std::process::Command| {
        daemon.env("HOLDFAST_IDLE_TIMEOUT", "1");
    };
    support::e2e_with(limited, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let mut session = RawSession::open(&sandbox.exec_url("c", &["cat"]).await, V5).await;
        session.send(FIN | PING, b"alive").await;
        let frames = session.rest().await;
        assert!(String::from_utf8_lossy(&channel(&frames, 3)).contains("idle for too long"), "{frames:?}");
        assert_eq!(frames.last().and_then(Frame::close_code), Some(1000));
    });
}

#[test]
fn d65_a_client_that_vanished_without_a_word_is_noticed() {
    with_container(async |sandbox| {
        let url = sandbox.exec_url("c", &["cat"]).await;
        let _session = RawSession::open(&url, V5).await;
        let port: u16 = url.split([':', '/']).nth(4).and_then(|port| port.parse().ok()).expect("a URL with a port");
        // Fields of proc(5): local address, peer, state (1: established), queues, timer (2: keep-alive).
        let keeps_alive = || {
            let sockets = fs::read_to_string("/proc/net/tcp").expect("procfs");
            let mut fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let local = format!(":{port:04X}");
            fields.any(|is| is[1].ends_with(&local) && is[3] == "01" && is[5].starts_with("02:")).then_some(())
        };
        eventually("a keep-alive timer", keeps_alive).await;
    });
}

#[test]
fn d66_a_session_with_a_terminal_that_nobody_opens_costs_nothing() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("30 unused URLs", async || {
                for _ in 0..30 {
                    let command = vec!["true".to_owned()];
                    let exec = ServeExec {
                        id: "neighbour".to_owned(),
                        command,
                        tty: true,
                        stdout: true,
                        ..ServeExec::default()
                    };
                    sandbox.client().serve_exec(&exec).await.expect("a URL");
                }
            })
            .await;
    });
}
