//! Ten viewers of one container, of which one has stalled.

use std::{
    fs,
    hash::{DefaultHasher, Hasher as _},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{LINE, assert_beginning, assert_log, attach_spdy, attach_ws, missed, padding};
use crate::support::{
    self, BundleSpec, figure, long,
    raw_spdy::{Frame, RawSpdy},
    raw_ws::{BINARY, RawSession, channel},
};

/// Lines that the container writes at a time: fewer bytes than a viewer's queue holds.
const BURST: usize = 128;
/// The pace, in bytes per second.
const PACE: f64 = 20e6;

/// A viewer that reads, with the digest of what it has got.
struct Viewer {
    session: Session,
    digest: DefaultHasher,
}

enum Session {
    WebSocket(RawSession),
    Spdy(RawSpdy, u32),
}

impl Viewer {
    fn new(session: Session) -> Self {
        Self { session, digest: DefaultHasher::new() }
    }

    async fn read(&mut self, mut count: usize) {
        while count > 0 {
            let bytes = match &mut self.session {
                Session::WebSocket(session) => {
                    let frame = session.next_message().await.expect("the session goes on");
                    assert!(frame.opcode == BINARY && frame.payload[0] == 1, "{frame:?}");
                    frame.payload[1..].to_vec()
                }
                Session::Spdy(session, stdout) => match session.reader.next().await {
                    Some(Frame::Data { id, bytes, .. }) if id == *stdout => bytes,
                    other => panic!("{other:?}"),
                },
            };
            self.digest.write(&bytes);
            count = count.checked_sub(bytes.len()).expect("no more than what was written");
        }
    }
}

/// A container that writes one burst for every file `/go.N`, or the next after a moment if it is not to wait.
fn container(bursts: usize) -> BundleSpec {
    let program = format!(
        "{{ for (i = 0; i < {BURST}; i++) printf \"%08d %s\\n\", n++, \"{}\"; fflush(); if (NR == {bursts}) exit }}",
        padding()
    );
    BundleSpec::new(&["awk", &program]).stdin()
}

#[test]
fn of_ten_viewers_one_stalls_and_nine_get_what_is_in_the_log() {
    let bursts = if long() { 1600 } else { 80 };
    support::e2e(async |sandbox| {
        sandbox.run("c", &container(bursts)).await;
        let mut viewers = Vec::new();
        for _ in 0..4 {
            viewers.push(Viewer::new(Session::WebSocket(attach_ws(sandbox, "c", false).await)));
        }
        for _ in 0..5 {
            let (session, ids) = attach_spdy(sandbox, "c").await;
            viewers.push(Viewer::new(Session::Spdy(session, ids["stdout"])));
        }
        let mut stalled = attach_ws(sandbox, "c", false).await;
        let typist = sandbox.attach_raw("c", false).await;
        let start = Instant::now();
        let mut next = tokio::time::interval(Duration::from_secs_f64((BURST * LINE) as f64 / PACE));
        for _ in 0..bursts {
            next.tick().await;
            typist.send(b"\n").await;
            // On a machine that is too slow for the pace the next burst waits: who keeps up is not cut.
            let reading = join_all(viewers.iter_mut().map(|viewer| viewer.read(BURST * LINE)));
            let typists = async {
                let mut left = BURST * LINE;
                while left > 0 {
                    left -= typist.next().await.expect("the session goes on").1.len();
                }
            };
            tokio::join!(reading, typists);
        }
        let total = bursts * BURST * LINE;
        figure("pace of ten viewers, MB/s", total as f64 / 1e6 / start.elapsed().as_secs_f64());
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let digest = assert_log(sandbox, "c", bursts * BURST);
        for viewer in viewers {
            assert_eq!(viewer.digest.finish(), digest);
        }
        let frames = stalled.rest().await;
        let output = channel(&frames, 1);
        assert_beginning(&output, bursts * BURST);
        let status = String::from_utf8(channel(&frames, 3)).expect("text");
        assert_eq!(output.len() + missed(&status), total, "{status}");
        assert!(fs::metadata(sandbox.log_path("c")).expect("a log").len() > total as u64);
    });
}
