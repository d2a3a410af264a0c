//! Output that its client does not read for a while, and then slowly.

use std::time::Duration;

use holdfast::client::ServeExec;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Growth, Transport, numbers};
use crate::support::{
    self, BundleSpec, Sandbox, eventually, figure, procfs,
    raw_spdy::{self, Ids, RawSpdy},
    raw_ws::{BINARY, Frame, RawSession},
};

/// What may lie in the daemon, in KiB: what came before the runtime had ended (`EARLY_OUTPUT`), the session's queue
/// (`SUBSCRIBER_QUEUE`), one read of the pump, the larger `OUT_QUEUE`.
const QUEUES: u64 = 1024 + 256 + 32 + 128;
/// How fast the client reads in the long form, in bytes a second.
const PACE: u32 = 5_000_000;

/// Frame by frame: a client that puts things in order would hide that they came in another.
enum Client {
    WebSocket(RawSession),
    Spdy(RawSpdy, Ids),
}

#[derive(Debug)]
enum Came {
    Stdout(Vec<u8>),
    Status(Vec<u8>),
}

impl Client {
    async fn open(sandbox: &Sandbox, transport: Transport, command: &[&str]) -> Self {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let exec = ServeExec { id: "c".to_owned(), command, stdout: true, ..ServeExec::default() };
        let url = sandbox.client().serve_exec(&exec).await.expect("a URL");
        match transport {
            Transport::WebSocket => Self::WebSocket(RawSession::open(&url, "v5.channel.k8s.io").await),
            Transport::Spdy => {
                let (session, ids) = RawSpdy::session(&url, &["error", "stdout"]).await;
                Self::Spdy(session, ids)
            }
        }
    }

    async fn next(&mut self) -> Came {
        match self {
            Self::WebSocket(session) => {
                let mut frame = session.next().await.expect("a status comes first");
                match (frame.opcode, frame.payload.first()) {
                    (BINARY, Some(1)) => Came::Stdout(frame.payload.split_off(1)),
                    (BINARY, Some(3)) => Came::Status(frame.payload.split_off(1)),
                    _ => panic!("{frame:?}"),
                }
            }
            Self::Spdy(session, ids) => match session.reader.next().await.expect("a status comes first") {
                raw_spdy::Frame::Data { id, bytes, .. } if id == ids["stdout"] => Came::Stdout(bytes),
                raw_spdy::Frame::Data { id, bytes, .. } if id == ids["error"] => Came::Status(bytes),
                other => panic!("{other:?}"),
            },
        }
    }

    /// Nothing may come behind the status but the good-bye.
    async fn end(self) {
        match self {
            Self::WebSocket(mut session) => {
                let frame = session.next().await;
                assert_eq!(frame.as_ref().and_then(Frame::close_code), Some(1000), "{frame:?}");
            }
            Self::Spdy(session, _) => session.bye().await,
        }
    }
}

/// Waits until the only process beside the container's has slept for a while without writing anything.
async fn stopped(sandbox: &Sandbox, container: u32) {
    let writer = || {
        let mut others = procfs::children(sandbox.daemon_pid());
        others.retain(|(pid, state)| *pid != container && *state != 'Z');
        if let [(writer, _)] = others[..] { Some(writer) } else { None }
    };
    let writer = eventually("nothing but one command to run", writer).await;
    let look = || (procfs::status_line(writer, "State"), procfs::written(writer));
    let (mut last, mut same) = (look(), 0);
    eventually("the process to be stopped", || {
        let now = look();
        same = if now == last && now.0.starts_with('S') { same + 1 } else { 0 };
        last = now;
        (same == 40).then_some(())
    })
    .await;
}

async fn pauses_and_then_gets_every_line(sandbox: &Sandbox, transport: Transport, container: u32) {
    // Of the 7 MB of the short form the kernel holds not half.
    let last = if support::long() { 3_000_000 } else { 1_000_000 };
    let wanted = numbers(last);
    let mut growth = Growth::since_now(sandbox);
    let mut client = Client::open(sandbox, transport, &["seq", "1", &last.to_string()]).await;
    let mut come = 0;
    let mut paused = None;
    let status = loop {
        let bytes = match client.next().await {
            Came::Stdout(bytes) => bytes,
            Came::Status(status) => break status,
        };
        let rest = &wanted[come..];
        assert!(rest.starts_with(&bytes), "{transport:?}: {} bytes at {come} are not the next lines", bytes.len());
        come += bytes.len();
        growth.look();
        if come > 0 && paused.is_none() {
            stopped(sandbox, container).await;
            if support::long() {
                sleep(Duration::from_secs(2)).await;
            }
            // Others go on meanwhile.
            assert_eq!(sandbox.exec("c", &["echo", "x"]).await.stdout, b"x\n");
            growth.look();
            paused = Some((Instant::now(), come));
        }
        if let Some((since, before)) = paused
            && support::long()
        {
            sleep_until(since + Duration::from_secs(1) * u32::try_from(come - before).expect("22 MB") / PACE).await;
        }
    };
    assert_eq!((come, &status[..]), (wanted.len(), &br#"{"metadata":{},"status":"Success"}"#[..]), "{transport:?}");
    client.end().await;
    growth.assert_within(&format!("{last} lines to a client that pauses, {transport:?}"), QUEUES);
    let (since, before) = paused.expect("there was output");
    let rate = (come - before) as f64 / since.elapsed().as_secs_f64() / 1e6;
    figure(&format!("output: {last} lines after a pause, {transport:?}, MB/s"), format!("{rate:.1}"));
}

#[test]
fn a_client_that_pauses_and_reads_slowly_gets_every_line_then_the_status() {
    support::e2e(async |sandbox| {
        let container = sandbox.run("c", &BundleSpec::idle()).await;
        // What the first one makes stays: the listener, threads.
        sandbox.exec("c", &["true"]).await;
        for transport in [Transport::WebSocket, Transport::Spdy] {
            pauses_and_then_gets_every_line(sandbox, transport, container).await;
        }
    });
}
