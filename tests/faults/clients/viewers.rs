//! Ten viewers of one container, of which one has stalled.

use std::{
    cell::Cell,
    fs,
    hash::{DefaultHasher, Hasher as _},
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::sync::Notify;

use super::{LINE, assert_beginning, assert_log, attach_spdy, attach_ws, missed, padding};
use crate::support::{
    self, BundleSpec, RawAttach, figure, long,
    raw_spdy::{Frame, RawSpdy},
    raw_ws::{BINARY, RawSession, channel},
};

/// Lines that the container writes at a time.
const BURST: usize = 64;
/// What the slowest viewer may lag behind, in bytes, before the next burst waits for it: with that burst it is still less
/// than the 256 KiB that a viewer's queue holds. Who keeps up is not cut, however slow the machine is.
const LAG: usize = 128 << 10;

/// A viewer that reads, with the digest of what it has got.
struct Viewer {
    session: Session,
    digest: DefaultHasher,
}

enum Session {
    WebSocket(RawSession),
    Spdy(RawSpdy, u32),
    /// The one that types.
    Socket(Rc<RawAttach>),
}

impl Viewer {
    fn new(session: Session) -> Self {
        Self { session, digest: DefaultHasher::new() }
    }

    async fn next(&mut self) -> Vec<u8> {
        match &mut self.session {
            Session::WebSocket(session) => {
                let frame = session.next_message().await.expect("the session goes on");
                assert!(frame.opcode == BINARY && frame.payload[0] == 1, "{frame:?}");
                frame.payload[1..].to_vec()
            }
            Session::Spdy(session, stdout) => match session.reader.next().await {
                Some(Frame::Data { id, bytes, .. }) if id == *stdout => bytes,
                other => panic!("{other:?}"),
            },
            Session::Socket(session) => session.next().await.expect("the session goes on").1,
        }
    }

    /// Reads so many bytes and tells all the time how many they are.
    async fn read(&mut self, total: usize, seen: &Cell<usize>, progress: &Notify) {
        while seen.get() < total {
            let bytes = self.next().await;
            self.digest.write(&bytes);
            seen.set(seen.get() + bytes.len());
            progress.notify_one();
        }
        assert_eq!(seen.get(), total, "no more than what was written");
    }
}

/// A container that writes one burst for every line that it gets.
fn container(bursts: usize) -> BundleSpec {
    let program = format!(
        "{{ for (i = 0; i < {BURST}; i++) printf \"%08d %s\\n\", n++, \"{}\"; fflush(); if (NR == {bursts}) exit }}",
        padding()
    );
    BundleSpec::new(&["awk", &program]).stdin()
}

/// Lets the container write at a pace, by the clock and not by who reads, unless one that reads would be cut. Returns how
/// many bursts had to wait for that.
async fn pace(typist: &RawAttach, bursts: usize, pace: f64, seen: &[Cell<usize>], progress: &Notify) -> usize {
    let mut tick = tokio::time::interval(Duration::from_secs_f64((BURST * LINE) as f64 / pace));
    let mut waited = 0;
    for burst in 0..bursts {
        tick.tick().await;
        let lags = || burst * BURST * LINE - seen.iter().map(Cell::get).min().expect("viewers") > LAG;
        waited += usize::from(lags());
        while lags() {
            progress.notified().await;
        }
        typist.send(b"\n").await;
    }
    waited
}

#[test]
fn of_ten_viewers_one_stalls_and_nine_get_what_is_in_the_log() {
    // Bytes per second.
    let (bursts, wanted) = if long() { (1600, 20e6) } else { (160, 5e6) };
    let total = bursts * BURST * LINE;
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
        let typist = Rc::new(sandbox.attach_raw("c", false).await);
        viewers.push(Viewer::new(Session::Socket(typist.clone())));
        let (seen, progress) = (vec![Cell::new(0); viewers.len()], Notify::new());
        let start = Instant::now();
        let readers = viewers.iter_mut().zip(&seen).map(|(viewer, seen)| viewer.read(total, seen, &progress));
        let (_, waited) = tokio::join!(join_all(readers), pace(&typist, bursts, wanted, &seen, &progress));
        figure("pace of a container with ten viewers, MB/s", total as f64 / 1e6 / start.elapsed().as_secs_f64());
        figure("bursts that waited for a viewer, of all", waited as f64 / bursts as f64);
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
