//! Clients whose packets are dropped: no FIN, no RST, no answer.
//!
//! The quick form sees that the kernel watches every kind of session as it is to be; that a silent peer is then taken for
//! dead, and when, is in the unit tests of `transport::socket` and `sys::socket`. The long form waits for it.

use std::{
    any::Any,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use holdfast::client::{SessionInfo, SessionState};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};

use super::{V5, attach_spdy, attach_ws};
use crate::support::{
    BundleSpec, Sandbox, e2e_with, eventually, figure, long,
    network::{Cable, Connection, Timer, connections, port_of},
    procfs,
    raw_spdy::{FORWARD, RawSpdy},
    raw_ws::RawSession,
    within,
};

/// After 30 s without a word the kernel asks, 3 times 10 s apart; and as long again.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
const BUSY_LIMIT: Duration = Duration::from_secs(180);
/// Of the keep-alive timer, in hundredths of a second.
const KEEP_ALIVE: u64 = 3000;

/// Clients whose ends of their connections are open and do nothing.
struct Clients<'a> {
    sandbox: &'a Sandbox,
    sessions: Vec<Dead>,
    held: Vec<Box<dyn Any>>,
}

#[derive(Debug)]
struct Dead {
    session: SessionInfo,
    /// Something is sent to it that it does not acknowledge.
    busy: bool,
    /// Address and port.
    port: u16,
}

/// The sessions whose clients the daemon believes in.
async fn active(sandbox: &Sandbox) -> Vec<SessionInfo> {
    let mut entries = within(sandbox.client().list_sessions(None)).await.expect("a list").entries;
    entries.retain(|entry| entry.state == SessionState::Active);
    entries
}

impl Clients<'_> {
    async fn hold(&mut self, busy: bool, client: impl Any) {
        self.held.push(Box::new(client));
        let session = active(self.sandbox).await.into_iter().max_by_key(|entry| entry.number).expect("the new one");
        let port = session.peer.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("address and port");
        self.sessions.push(Dead { session, busy, port });
    }

    /// One of each kind over each transport; those that are busy have something sent to them, now or after the cut.
    async fn come(&mut self, busy: bool, listener: &TcpListener) -> Vec<TcpStream> {
        let sandbox = self.sandbox;
        let port = listener.local_addr().expect("bound").port();
        let (command, id) = if busy { (["yes"], "says") } else { (["cat"], "c") };
        self.hold(busy, RawSession::open(&sandbox.exec_url("c", &command).await, V5).await).await;
        let url = sandbox.exec_url("c", &command).await;
        self.hold(busy, RawSpdy::session(&url, &["error", "stdin", "stdout", "stderr"]).await).await;
        self.hold(busy, attach_ws(sandbox, id, false).await).await;
        self.hold(busy, attach_spdy(sandbox, id).await).await;
        let url = async || sandbox.client().serve_port_forward("".as_ref()).await.expect("a URL");
        let mut channels = RawSession::open(&format!("{}?ports={port}", url().await), "v4.channel.k8s.io").await;
        for _ in ["data", "error"] {
            channels.next().await.expect("the number of the port");
        }
        self.hold(busy, channels).await;
        let mut pairs = RawSpdy::connect(&url().await, FORWARD).await;
        pairs.open_pair(port, 0).await;
        self.hold(busy, pairs).await;
        let mut ends = Vec::new();
        for _ in 0..2 {
            ends.push(within(listener.accept()).await.expect("a listener").0);
        }
        ends
    }

    /// Waits until this holds of the connections of all that are busy, or of all that are not.
    async fn watched(&self, what: &str, busy: bool, port: u16, good: impl Fn(&Connection) -> bool) {
        let daemon = self.sandbox.daemon_pid();
        let wanted = |peer| self.sessions.iter().any(|dead| dead.busy == busy && dead.port == peer);
        let look =
            || (connections(daemon, port).iter().filter(|is| wanted(is.peer) && good(is)).count() == 6).then_some(());
        eventually(what, look).await;
    }

    /// How long it takes until each one is found, with the longest for those that are idle and those that are not.
    async fn found(&self) -> [Duration; 2] {
        let start = Instant::now();
        let mut longest = [Duration::ZERO; 2];
        loop {
            let left = active(self.sandbox).await;
            let now = start.elapsed();
            for dead in self.sessions.iter().filter(|dead| left.iter().any(|is| is.number == dead.session.number)) {
                let limit = if dead.busy { BUSY_LIMIT } else { IDLE_LIMIT };
                assert!(now < limit, "{now:?}: {dead:?}");
                longest[usize::from(dead.busy)] = now;
            }
            if left.is_empty() {
                return longest;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

#[test]
fn clients_whose_packets_are_dropped_are_found_idle_or_not_whatever_they_are() {
    let Some(cable) = Cable::new() else { return };
    let inside = |command: &mut Command| cable.enter(command);
    // The clients are on the other side.
    cable.client.inside(|| e2e_with(inside, async |sandbox| all_kinds(sandbox, &cable).await));
}

async fn all_kinds(sandbox: &Sandbox, cable: &Cable) {
    sandbox.run("c", &BundleSpec::idle()).await;
    let script = "until [ -e /say ]; do sleep 0.02; done; echo hello; while :; do sleep 1000; done";
    sandbox.run("says", &BundleSpec::shell(script)).await;
    // The first session opens what stays open.
    sandbox.exec("c", &["true"]).await;
    let (daemon, open) = (sandbox.daemon_pid(), procfs::descriptors(sandbox.daemon_pid()));
    let port = port_of(&sandbox.exec_url("c", &["true"]).await);
    let mut clients = Clients { sandbox, sessions: Vec::new(), held: Vec::new() };
    let listener = cable.daemon.listen().0;
    let quiet = clients.come(false, &listener).await;
    let mut ends = clients.come(true, &listener).await;
    let keep_alive = |is: &Connection| is.timer.0 == Timer::KeepAlive && is.timer.1 <= KEEP_ALIVE;
    clients.watched("keep-alive of six idle ones", false, port, keep_alive).await;

    cable.cut();
    fs::write(sandbox.in_rootfs("say"), "").expect("our directory");
    for end in &mut ends {
        within(end.write_all(b"hello\n")).await.expect("the daemon reads");
    }
    let waits = |is: &Connection| is.timer.0 == Timer::Acknowledgement && is.unacknowledged > 0;
    clients.watched("output that waits for six", true, port, waits).await;
    clients.watched("keep-alive of six idle ones", false, port, keep_alive).await;
    assert_eq!(active(sandbox).await.len(), 12, "nobody is taken for dead so soon");
    if long() {
        let [idle, busy] = clients.found().await;
        figure("dead idle clients are found after, s", idle.as_secs());
        figure("dead clients with unacknowledged data are found after, s", busy.as_secs());
        assert!(idle > Duration::from_secs(20) && busy > Duration::from_secs(100), "{idle:?} {busy:?}");
        assert_eq!(sandbox.daemon_log().matches("acknowledges nothing any more").count(), 6);
        // With them go their commands and their connections to the pod.
        let back = || (procfs::descriptors(daemon) <= open).then_some(());
        eventually("the descriptors of dead clients to be closed", back).await;
    }
    drop((clients, quiet, ends));
}
