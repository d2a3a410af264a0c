//! A viewer that never reads, on each of the three ways to attach.

use std::{
    cell::Cell,
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

#[test]
fn a_viewer_that_never_reads_costs_the_container_nothing_and_is_told_to_the_byte_what_it_missed() {
    let count = if long() { 200_000 } else { 20_000 };
    support::e2e(async |sandbox| {
        // The first one grows what is kept: threads, buffers of the log.
        for id in ["first", "alone"] {
            sandbox.create(id, &lines(count)).await;
        }
        timed(sandbox, "first").await;
        let (alone, memory_alone) = timed(sandbox, "alone").await;
        assert_log(sandbox, "alone", count);
        for id in ["websocket", "spdy", "socket"] {
            sandbox.create(id, &lines(count)).await;
            let viewer = match id {
                "websocket" => Viewer::WebSocket(attach_ws(sandbox, id, false).await),
                "spdy" => {
                    let (session, ids) = attach_spdy(sandbox, id).await;
                    Viewer::Spdy(session, ids)
                }
                _ => Viewer::Socket(sandbox.attach_raw(id, false).await),
            };
            let (time, memory) = timed(sandbox, id).await;
            figure(&format!("run time beside a stalled {id} viewer, ratio"), time.as_secs_f64() / alone.as_secs_f64());
            figure(&format!("memory for a stalled {id} viewer, KiB"), memory.saturating_sub(memory_alone));
            // Its queue is given up after 60 s at the earliest.
            assert!(time < 3 * alone + Duration::from_secs(30), "{id}: {time:?} instead of {alone:?}");
            assert!(memory <= memory_alone + BOUND + NOISE, "{id}: {memory} KiB instead of {memory_alone} KiB");
            assert_log(sandbox, id, count);
            let (output, missed) = viewer.read().await;
            assert_beginning(&output, count);
            assert!(output.len() >= 256 << 10, "{id}: what its queue holds is delivered: {}", output.len());
            assert_eq!(output.len() + missed, count * LINE, "{id}");
        }
    });
}
