//! Slow, silent and dead clients; see the table in `main.rs`.
//!
//! A live client beside dead ones is in `tests/port_forward/dead.rs`, beginnings of a request that never ends are in
//! `tests/bad_input/http.rs`.

mod churn;
mod crowds;
mod dead;
mod slow;
mod stalled;
mod viewers;

use std::{
    fs::File,
    hash::{DefaultHasher, Hasher as _},
    io::{BufRead as _, BufReader},
};

use holdfast::client::ServeAttach;

use crate::support::{
    BundleSpec, Sandbox, procfs,
    raw_spdy::{Ids, RawSpdy},
    raw_ws::RawSession,
};

const V5: &str = "v5.channel.k8s.io";
/// The length of every line that the containers here write, the line end included.
const LINE: usize = 1000;
/// What the allocator may take beyond what is asked of it, in KiB: a thread of the pool more, a log buffer more. A client
/// that is not bounded costs ten times as much.
const NOISE: u64 = 2048;

/// What is the same in all lines: 8 digits and a blank go before it, the line end behind.
fn padding() -> String {
    "x".repeat(LINE - 10)
}

fn line(number: usize) -> String {
    format!("{number:08} {}\n", padding())
}

/// A container that writes so many lines, each with its number.
fn lines(count: usize) -> BundleSpec {
    let program = format!("BEGIN {{ for (i = 0; i < {count}; i++) printf \"%08d %s\\n\", i, \"{}\" }}", padding());
    BundleSpec::new(&["awk", &program])
}

/// Checks that these are the first bytes of the numbered lines.
fn assert_beginning(bytes: &[u8], of: usize) {
    assert!(bytes.len() <= of * LINE, "{} bytes", bytes.len());
    for (number, piece) in bytes.chunks(LINE).enumerate() {
        assert!(line(number).as_bytes().starts_with(piece), "line {number} is {:?}", String::from_utf8_lossy(piece));
    }
}

/// Checks that the log of a container has so many lines, without a gap, and nothing else; returns their digest.
fn assert_log(sandbox: &Sandbox, id: &str, count: usize) -> u64 {
    let log = BufReader::new(File::open(sandbox.log_path(id)).expect("the container has a log"));
    let mut digest = DefaultHasher::new();
    let mut seen = 0;
    for record in log.lines() {
        let record = record.expect("text");
        let text = record.split_once(" stdout F ").unwrap_or_else(|| panic!("{record:?}")).1;
        let expected = line(seen);
        assert!(text == expected.trim_end_matches('\n'), "record {seen} is {text:?}");
        digest.write(expected.as_bytes());
        seen += 1;
    }
    assert_eq!(seen, count, "lines in the log");
    digest.finish()
}

/// What is said to be missing at the end of the words that a client too slow gets.
fn missed(text: &str) -> usize {
    let number = text.split_once("attach client too slow: ").and_then(|(_, rest)| rest.split_once(" bytes not"));
    number.unwrap_or_else(|| panic!("{text:?}")).0.parse().expect("a number")
}

async fn attach_url(sandbox: &Sandbox, id: &str, stdin: bool) -> String {
    let attach = ServeAttach { id: id.to_owned(), stdin, stdout: true, stderr: true };
    sandbox.client().serve_attach(&attach).await.expect("the attach gets a URL")
}

/// A viewer over WebSocket, once the server has said that it is one.
async fn attach_ws(sandbox: &Sandbox, id: &str, stdin: bool) -> RawSession {
    let mut session = RawSession::open(&attach_url(sandbox, id, stdin).await, V5).await;
    session.next().await.expect("the empty message");
    session
}

/// A viewer over SPDY, once the server has said that it is one: it answers pings in the order of what it gets.
async fn attach_spdy(sandbox: &Sandbox, id: &str) -> (RawSpdy, Ids) {
    let (mut session, ids) =
        RawSpdy::session(&attach_url(sandbox, id, false).await, &["error", "stdout", "stderr"]).await;
    session.writer.ping(1).await;
    session.reader.wait(&crate::support::raw_spdy::Frame::Ping(1)).await;
    (session, ids)
}

/// Anonymous memory of a process in KiB.
fn anonymous(pid: u32) -> u64 {
    procfs::status_line(pid, "RssAnon").trim_end_matches(" kB").parse().expect("a number of KiB")
}
