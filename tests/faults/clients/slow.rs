//! A viewer that never reads, on each of the three ways to attach.

use std::{
    cell::Cell,
    fs,
    time::{Duration, Instant},
};

use super::{LINE, NOISE, anonymous, assert_beginning, assert_log, attach_spdy, attach_ws, lines, missed};
use crate::support::{
    self, Attached, RawAttach, Sandbox, figure, long,
    raw_spdy::{Ids, RawSpdy},
    raw_ws::{RawSession, channel},
};

/// What is kept for one viewer, in KiB: its queue, what its transport has queued (most over SPDY), and a piece on its way.
const BOUND: u64 = 256 + 128 + 32;

enum Viewer {
    WebSocket(RawSession),
    Spdy(RawSpdy, Ids),
    Socket(RawAttach),
}

impl Viewer {
    /// Reads at last: what came of the container's output, and how many bytes it was told that it missed.
    async fn read(self) -> (Vec<u8>, usize) {
        match self {
            Self::WebSocket(mut session) => {
                let frames = session.rest().await;
                assert_eq!(frames.last().and_then(support::raw_ws::Frame::close_code), Some(1000));
                let status = String::from_utf8(channel(&frames, 3)).expect("text");
                (channel(&frames, 1), missed(&status))
            }
            Self::Spdy(session, ids) => {
                let seen = session.finish(&ids).await;
                (seen.payload(ids["stdout"]), missed(&seen.text(ids["error"])))
            }
            Self::Socket(client) => {
                let Attached { stdout, stderr, done, .. } = client.collect().await;
                assert_eq!(done, 0, "no done packet for output that is not complete");
                (stdout, missed(&String::from_utf8(stderr).expect("text")))
            }
        }
    }
}

/// Starts a container, and returns how long it ran and how much anonymous memory the daemon had at most meanwhile, in KiB.
async fn timed(sandbox: &Sandbox, id: &str) -> (Duration, u64) {
    let (peak, daemon) = (Cell::new(anonymous(sandbox.daemon_pid())), sandbox.daemon_pid());
    let start = Instant::now();
    sandbox.start(id);
    let path = sandbox.exit_path(id);
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while !path.exists() {
        tick.tick().await;
        peak.set(peak.get().max(anonymous(daemon)));
        assert!(start.elapsed() < Duration::from_secs(20), "{id} does not end");
    }
    assert_eq!(sandbox.wait_exit(id).await, 0);
    (start.elapsed(), peak.get())
}

/// Attaches in the named way.
async fn attach(sandbox: &Sandbox, way: &str, id: &str) -> Viewer {
    match way {
        "websocket" => Viewer::WebSocket(attach_ws(sandbox, id, false).await),
        "spdy" => {
            let (session, ids) = attach_spdy(sandbox, id).await;
            Viewer::Spdy(session, ids)
        }
        _ => Viewer::Socket(sandbox.attach_raw(id, false).await),
    }
}

/// Runs a container that nobody watches, and says what [`timed`] says.
async fn alone(sandbox: &Sandbox, id: &str, count: usize) -> (Duration, u64) {
    sandbox.create(id, &lines(count)).await;
    let measured = timed(sandbox, id).await;
    assert_log(sandbox, id, count);
    forget_log(sandbox, id);
    measured
}

/// What waits to be written to the disk would hold up whoever comes next.
fn forget_log(sandbox: &Sandbox, id: &str) {
    fs::remove_file(sandbox.log_path(id)).expect("our log");
}

/// Several rounds of one container with and one without a viewer, alternately first: the times they took in all.
async fn compare(sandbox: &Sandbox, way: &str, rounds: usize, count: usize) -> [Duration; 2] {
    let (mut times, mut most) = ([Duration::ZERO; 2], 0);
    for round in 0..rounds {
        let (id, other) = (format!("{way}-{round}"), format!("{way}-{round}-alone"));
        // Whichever is first meets another machine than the second.
        let before = if round % 2 == 0 { Some(alone(sandbox, &other, count).await) } else { None };
        let (time, memory) = watched(sandbox, way, &id, count).await;
        let (without, memory_without) = match before {
            Some(before) => before,
            None => alone(sandbox, &other, count).await,
        };
        times = [times[0] + time, times[1] + without];
        most = most.max(memory.saturating_sub(memory_without));
        // Its queue is given up after 60 s at the earliest.
        assert!(time < 3 * without + Duration::from_secs(30), "{id}: {time:?} instead of {without:?}");
        assert!(memory <= memory_without + BOUND + NOISE, "{id}: {memory} KiB instead of {memory_without} KiB");
    }
    figure(&format!("memory for a stalled {way} viewer, KiB"), most);
    times
}

/// Runs a container with a viewer that reads only when it has ended, and says what [`timed`] says.
async fn watched(sandbox: &Sandbox, way: &str, id: &str, count: usize) -> (Duration, u64) {
    sandbox.create(id, &lines(count)).await;
    let viewer = attach(sandbox, way, id).await;
    let measured = timed(sandbox, id).await;
    assert_log(sandbox, id, count);
    forget_log(sandbox, id);
    let (output, missed) = viewer.read().await;
    assert_beginning(&output, count);
    assert!(output.len() >= 256 << 10, "{id}: what its queue holds is delivered: {}", output.len());
    assert_eq!(output.len() + missed, count * LINE, "{id}");
    measured
}

#[test]
fn a_viewer_that_never_reads_costs_the_container_nothing_and_is_told_to_the_byte_what_it_missed() {
    let (count, rounds) = if long() { (200_000, 12) } else { (20_000, 1) };
    support::e2e(async |sandbox| {
        // The first one grows what is kept: threads, buffers of the log.
        alone(sandbox, "first", count).await;
        for way in ["websocket", "spdy", "socket"] {
            let [with, without] = compare(sandbox, way, rounds, count).await;
            let ratio = with.as_secs_f64() / without.as_secs_f64();
            figure(&format!("run time beside a stalled {way} viewer, ratio"), format!("{ratio:.3} of {without:?}"));
        }
        if long() {
            let mut times = [Duration::ZERO; 2];
            for round in 0..2 * rounds {
                let (time, _) = alone(sandbox, &format!("nobody-{round}"), count).await;
                times[round % 2] += time;
            }
            let ratio = times[0].as_secs_f64() / times[1].as_secs_f64();
            figure("run time beside nobody, ratio of the same to the same", format!("{ratio:.3}"));
        }
    });
}
