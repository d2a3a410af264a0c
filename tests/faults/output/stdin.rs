//! Much input, and output that comes when it has ended.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use holdfast::{client::StreamClient, model::Outcome};
use serde_json::json;
use tokio::time::Instant;

use super::{Growth, Transport};
use crate::support::{self, BundleSpec, Sandbox, figure, within};

/// Says what came when all has come, and something more, on both streams.
const SCRIPT: &str = "sha256sum; echo after; echo err >&2; exit 3";
/// The largest piece that a client sends at once.
const LARGEST: usize = 128 << 10;
/// What may lie in the daemon, in KiB: `STDIN_QUEUE`, and of SPDY `STREAM_BACKLOG` before it.
const QUEUES: u64 = 1024 + 256;

/// Pseudo-random bytes (xorshift64), so that a failure can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }
}

/// Sends random bytes in pieces of all sizes. Returns what SCRIPT must write to stdout then.
async fn send_random(sandbox: &Sandbox, name: &str, mut send: impl AsyncFnMut(&[u8])) -> String {
    let total: usize = if support::long() { 1 << 30 } else { 32 << 20 };
    let hash = Command::new("busybox").arg("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut hash = hash.expect("busybox is there");
    let mut sink = hash.stdin.take().expect("asked for");
    let (mut random, mut buffer, mut left) = (Random(total as u64), vec![0; LARGEST], total);
    let (mut growth, begin) = (Growth::since_now(sandbox), Instant::now());
    while left > 0 {
        let most = left.min(LARGEST) as u64;
        let length = usize::try_from(1 + random.next() % most).expect("small");
        let piece = &mut buffer[..length];
        random.fill(piece);
        sink.write_all(piece).expect("it reads to the end");
        send(piece).await;
        left -= length;
        growth.look();
    }
    let rate = total as f64 / begin.elapsed().as_secs_f64() / 1e6;
    figure(&format!("output: {} MiB of stdin, {name}, MB/s", total >> 20), format!("{rate:.0}"));
    growth.assert_within(&format!("{} MiB of stdin, {name}", total >> 20), QUEUES);
    drop(sink);
    let digest = hash.wait_with_output().expect("our child").stdout;
    String::from_utf8(digest).expect("text") + "after\n"
}

async fn through(sandbox: &Sandbox, name: &str, session: StreamClient, outcome: Outcome) {
    let (mut sender, mut receiver) = session.split();
    let send = async |piece: &[u8]| within(sender.send_stdin(piece)).await.expect("open");
    let wanted = send_random(sandbox, name, send).await;
    sender.close_stdin().await.expect("v5, or SPDY");
    let all = within(receiver.collect()).await.expect("the server keeps to the protocol");
    assert_eq!((String::from_utf8_lossy(&all.stdout), &all.stderr[..]), (wanted.into(), &b"err\n"[..]), "{name}");
    assert_eq!(all.statuses, [outcome], "{name}");
}

fn exec(transport: Transport) {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let session = transport.exec(sandbox, true, &["sh", "-c", SCRIPT]).await;
        through(sandbox, &format!("exec, {transport:?}"), session, Outcome::Exited(3)).await;
    });
}

#[test]
fn every_byte_of_stdin_and_the_output_after_its_end_pass_through_an_exec() {
    exec(Transport::WebSocket);
}

#[test]
fn every_byte_of_stdin_and_the_output_after_its_end_pass_through_an_exec_over_spdy() {
    exec(Transport::Spdy);
}

fn attach(transport: Transport) {
    support::e2e(async |sandbox| {
        let once = json!({ "annotations": { "io.kubernetes.cri-o.StdinOnce": "true" } });
        sandbox.run("c", &BundleSpec::shell(SCRIPT).stdin().with(once)).await;
        let session = transport.attach(sandbox).await;
        through(sandbox, &format!("attach, {transport:?}"), session, Outcome::Exited(0)).await;
        assert_eq!(sandbox.wait_exit("c").await, 3);
    });
}

#[test]
fn every_byte_of_stdin_and_the_output_after_its_end_pass_through_an_attach() {
    attach(Transport::WebSocket);
}

#[test]
fn every_byte_of_stdin_and_the_output_after_its_end_pass_through_an_attach_over_spdy() {
    attach(Transport::Spdy);
}

#[test]
fn every_byte_of_stdin_and_the_output_after_its_end_pass_through_an_attach_socket() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell(SCRIPT).stdin()).await;
        let client = sandbox.attach_raw("c", true).await;
        let name = "attach socket";
        let wanted = send_random(sandbox, name, async |piece| client.send_all(piece, LARGEST / 2).await).await;
        client.half_close();
        let all = client.collect().await;
        assert_eq!((String::from_utf8_lossy(&all.stdout), &all.stderr[..]), (wanted.into(), &b"err\n"[..]));
        assert_eq!((all.done, sandbox.wait_exit("c").await), (1, 3));
    });
}
