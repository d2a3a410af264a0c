//! Clients that have stopped reading, beside others that want something of the same container, pod or daemon.

use std::{
    fs,
    time::{Duration, Instant},
};

use holdfast::client::ExecSync;
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt as _;

use super::{LINE, NOISE, V5, anonymous, assert_beginning, lines};
use crate::support::{
    Sandbox, eventually, figure, procfs,
    raw_rpc::{RawRpc, bootstrap, call},
    raw_spdy::{FORWARD, RawSpdy},
    raw_ws::RawSession,
    with_container, within,
};

/// What stalled clients of any kind wait for is limited in tens of seconds; a call that was held up by one takes longer.
const UNDISTURBED: Duration = Duration::from_secs(10);

fn exec_sync(command: &[&str]) -> ExecSync {
    ExecSync {
        id: "c".to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecSync::default()
    }
}

/// What an engine does is done as if there were no stalled client.
async fn engine_is_served(sandbox: &Sandbox, what: &str) {
    let start = Instant::now();
    let client = sandbox.connect().await;
    let reply = within(client.exec_sync(&exec_sync(&["seq", "1", "1000"]))).await.expect("a reply");
    assert_eq!((reply.exit_code, reply.stdout.len()), (0, 3893), "{what}");
    within(client.reopen_log("c")).await.expect("reopened");
    assert_eq!(sandbox.exec("c", &["echo", "hello"]).await.stdout, b"hello\n", "{what}");
    let time = start.elapsed();
    figure(&format!("execSync, reopen and exec beside {what}, ms"), time.as_millis());
    assert!(time < UNDISTURBED, "{what}: {time:?}");
}

/// What a session may take with all its queues full, in KiB: docs/RELIABILITY.md, "Memory".
const EXEC_WORST: u64 = 1024;

#[test]
fn execs_whose_clients_never_read_hold_up_neither_calls_nor_the_exit_nor_the_shutdown() {
    with_container(async |sandbox| {
        let before = anonymous(sandbox.daemon_pid());
        let mut sessions = Vec::new();
        let mut streams = Vec::new();
        for number in 0..5 {
            let word = format!("{}{number}", sandbox.daemon_pid());
            sessions.push(RawSession::open(&sandbox.exec_url("c", &["yes", &word]).await, V5).await);
            eventually("the command", || (!procfs::with_word(&word).is_empty()).then_some(())).await;
            let url = sandbox.exec_url("c", &["yes", &word]).await;
            streams.push(RawSpdy::session(&url, &["error", "stdin", "stdout", "stderr"]).await);
        }
        engine_is_served(sandbox, "ten stalled execs").await;
        let grown = anonymous(sandbox.daemon_pid()).saturating_sub(before);
        figure("memory for ten stalled execs, KiB", grown);
        assert!(grown < 10 * EXEC_WORST, "{grown} KiB");
        // Another container comes and goes, then the one with the execs ends, and so does the daemon.
        let start = Instant::now();
        sandbox.run("other", &lines(100)).await;
        assert_eq!(sandbox.wait_exit("other").await, 0);
        sandbox.runtime(&["kill", "c", "KILL"]);
        assert_eq!(sandbox.wait_exit("c").await, 137);
        assert!(start.elapsed() < UNDISTURBED, "{:?}", start.elapsed());
        let status = sandbox.end_daemon(Signal::SIGTERM).await;
        assert!(status.success(), "{status}");
        drop((sessions, streams));
    });
}

#[test]
fn a_stalled_exec_goes_on_where_it_was_when_its_client_reads_again() {
    with_container(async |sandbox| {
        let program =
            format!("BEGIN {{ for (i = 0; i < 12000; i++) printf \"%08d %s\\n\", i, \"{}\" }}", super::padding());
        let url = sandbox.exec_url("c", &["awk", &program]).await;
        let (session, ids) = RawSpdy::session(&url, &["error", "stdin", "stdout", "stderr"]).await;
        engine_is_served(sandbox, "a stalled exec").await;
        let seen = session.finish(&ids).await;
        let output = seen.payload(ids["stdout"]);
        assert_eq!(output.len(), 12_000 * LINE);
        assert_beginning(&output, 12_000);
        assert!(seen.text(ids["error"]).contains(r#""status":"Success""#));
    });
}

/// A control client that does not read its replies, of 8 MiB each.
async fn not_reading(sandbox: &Sandbox, name: &str, calls: u32) -> RawRpc {
    let mut stalled = RawRpc::connect(&sandbox.runtime_dir()).await;
    stalled.send(&bootstrap(0)).await;
    // All are in flight, since nothing more is read of a client that does not read, and they end one by one.
    for number in 1..=calls {
        let wait = format!("until [ -e /{name}{number} ]; do sleep 0.02; done");
        let script = format!("{wait}; head -c 8388608 /dev/zero; echo >>/{name}");
        stalled
            .send(&call(number, 2, |params| {
                use holdfast::client::conmon_capnp::conmon::exec_sync_container_params::Builder;
                let mut request = params.init_as::<Builder<'_>>().init_request();
                request.set_id("c");
                let mut command = request.init_command(3);
                for (index, word) in (0..).zip(["sh", "-c", &script]) {
                    command.set(index, word);
                }
            }))
            .await;
    }
    for number in 1..=calls as usize {
        fs::write(sandbox.in_rootfs(&format!("{name}{number}")), "").expect("our directory");
        sandbox.wait_file(name, &"\n".repeat(number)).await;
    }
    stalled
}

#[test]
fn a_control_client_that_never_reads_its_replies_holds_up_nobody_and_is_answered_or_closed() {
    with_container(async |sandbox| {
        engine_is_served(sandbox, "nothing").await;
        let before = anonymous(sandbox.daemon_pid());
        let mut stalled = not_reading(sandbox, "few", 4).await;
        engine_is_served(sandbox, "32 MiB of replies that nobody reads").await;
        // The answers of the bootstrap and of every call, in any order.
        for number in 0..=4 {
            within(stalled.receive()).await.unwrap_or_else(|error| panic!("reply {number}: {error}"));
        }
        let mut stalled = not_reading(sandbox, "many", 16).await;
        engine_is_served(sandbox, "128 MiB of replies that nobody reads").await;
        stalled.closed().await;
        assert!(sandbox.daemon_log().contains("leaves too much unread"));
        // Two of the replies: what an allocator keeps in pieces is less.
        let back = || (anonymous(sandbox.daemon_pid()) < before + (16 << 10)).then_some(());
        eventually("the memory to be given back", back).await;
    });
}

#[test]
fn forwards_whose_clients_never_read_hold_up_no_other_forward() {
    with_container(async |sandbox| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        let server = async {
            let mut held = Vec::new();
            for _ in 0..40 {
                let (stream, _) = listener.accept().await.expect("a listener");
                held.push(async move {
                    let mut stream = stream;
                    // Until the other end is gone.
                    while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
                });
            }
            futures_util::future::join_all(held).await;
        };
        let url = async || sandbox.client().serve_port_forward("".as_ref()).await.expect("a URL");
        let before = anonymous(sandbox.daemon_pid());
        let clients = async {
            let mut stalled = Vec::new();
            for _ in 0..4 {
                let mut session = RawSpdy::connect(&url().await, FORWARD).await;
                // Without waiting for answers, which come behind output that it does not read.
                for request in 0..10 {
                    let (port, request) = (port.to_string(), request.to_string());
                    for name in ["error", "data"] {
                        let headers = [("streamtype", name), ("port", &port[..]), ("requestid", &request)];
                        session.writer.offer(&headers).await;
                    }
                }
                stalled.push(session);
            }
            let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let mut good = RawSpdy::connect(&url().await, FORWARD).await;
            let start = Instant::now();
            let pair = good.open_pair(other.local_addr().expect("bound").port(), 0).await;
            let (mut end, _) = within(other.accept()).await.expect("a listener");
            end.write_all(b"hello\n").await.expect("open");
            good.reader.wait_output(pair.data, "hello\n").await;
            assert!(start.elapsed() < UNDISTURBED, "{:?}", start.elapsed());
            engine_is_served(sandbox, "forty stalled forwards").await;
            let grown = anonymous(sandbox.daemon_pid()).saturating_sub(before);
            figure("memory for forty stalled forwards, KiB", grown);
            // For each connection what is queued, for each pair one read.
            assert!(grown < 4 * 128 + 40 * (16 + 16) + NOISE, "{grown} KiB");
            drop(stalled);
        };
        tokio::select! {
            () = clients => {}
            () = server => {}
        }
    });
}
