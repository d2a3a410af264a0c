//! A pod as a port forward sees it: a network namespace of its own, in which the test listens.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use holdfast::client::Client;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{setsockopt, sockopt},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::support::{
    Sandbox, e2e_with,
    raw_spdy::{FORWARD, Frame, Pair, RawSpdy, Seen},
    within,
};

/// A network namespace with its loopback up, pinned at a path. Dropping it removes both.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) path: PathBuf,
}

impl Pod {
    pub(crate) fn new(path: PathBuf) -> Self {
        File::create(&path).expect("a file under a temporary directory");
        let pin = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may");
            busybox(&["ip", "link", "set", "lo", "up"]);
            let none = None::<&str>;
            mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none).expect("root may");
        };
        thread::scope(|scope| scope.spawn(pin).join().expect("a namespace"));
        Self { path }
    }

    /// Does something inside, on a thread of its own, and hands out what that made: sockets stay where they were made.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let namespace = File::open(&self.path).expect("pinned");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may");
            work()
        };
        thread::scope(|scope| scope.spawn(enter).join().expect("it works inside"))
    }

    /// Listens inside, on a port the kernel chooses unless one is named.
    pub(crate) fn listen_on(&self, address: &str) -> (TcpListener, u16) {
        let listener = self.inside(|| std::net::TcpListener::bind(address).expect("an address of the loopback"));
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("bound").port();
        (TcpListener::from_std(listener).expect("a listener"), port)
    }

    pub(crate) fn listen(&self) -> (TcpListener, u16) {
        self.listen_on("127.0.0.1:0")
    }

    /// The same with sockets that take little before they are read.
    pub(crate) fn listen_narrow(&self) -> (TcpListener, u16) {
        let (listener, port) = self.listen();
        // Connections inherit it.
        setsockopt(&listener, sockopt::RcvBuf, &4096).expect("a socket");
        (listener, port)
    }

    /// A port on which nobody listens.
    pub(crate) fn closed_port(&self) -> u16 {
        self.listen().1
    }

    /// Removes the pin, as the end of a pod does.
    pub(crate) fn remove(&self) {
        umount2(&self.path, MntFlags::MNT_DETACH).expect("pinned");
        fs::remove_file(&self.path).expect("ours");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // A test may have removed it.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// Runs an applet, which must succeed.
pub(crate) fn busybox(arguments: &[&str]) {
    let status = Command::new("busybox").args(arguments).status().expect("checked by require_e2e");
    assert!(status.success(), "busybox {arguments:?}");
}

/// Runs a test with a pod.
pub(crate) fn with_pod(test: impl AsyncFnOnce(&Sandbox, &Pod)) {
    with_pod_and(&[], test);
}

/// The same with environment variables of the daemon.
pub(crate) fn with_pod_and(variables: &[(&str, &str)], test: impl AsyncFnOnce(&Sandbox, &Pod)) {
    let configure = |command: &mut Command| {
        command.envs(variables.iter().copied());
    };
    e2e_with(configure, async |sandbox| {
        let pod = Pod::new(sandbox.path().join("netns"));
        Box::pin(test(sandbox, &pod)).await;
    });
}

/// The URL at which the pod's ports can be reached.
pub(crate) async fn url(sandbox: &Sandbox, pod: &Pod) -> String {
    url_of(&sandbox.client(), &pod.path).await
}

pub(crate) async fn url_of(client: &Client, namespace: &Path) -> String {
    within(client.serve_port_forward(namespace)).await.expect("a port forward gets a URL")
}

/// A connection that speaks SPDY.
pub(crate) async fn forward(sandbox: &Sandbox, pod: &Pod) -> RawSpdy {
    RawSpdy::connect(&url(sandbox, pod).await, FORWARD).await
}

pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    within(listener.accept()).await.expect("a listener").0
}

/// What comes until the other end says that no more will.
pub(crate) async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(stream.read_to_end(&mut bytes)).await.expect("no reset");
    bytes
}

/// Runs a server of the test beside it.
#[allow(clippy::disallowed_methods)] // The runtime ends with the test, and with it all its tasks.
pub(crate) fn serving<T: 'static>(server: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    tokio::task::spawn_local(server)
}

/// Sends back what comes on every connection, until its end.
pub(crate) fn echo(listener: TcpListener) -> JoinHandle<()> {
    serving(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a listener");
            serving(async move {
                let (mut reader, mut writer) = stream.split();
                // The other end may break it: that is what tests are about.
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    })
}

/// Reads until both streams of a pair have ended.
pub(crate) async fn pair_ended(session: &mut RawSpdy, pair: Pair) -> Seen {
    let mut seen = Seen::default();
    while !(seen.has_ended(pair.data) && seen.has_ended(pair.error)) {
        let frame = session.reader.next().await.unwrap_or_else(|| panic!("the end before that of {pair:?}: {seen:?}"));
        assert!(!matches!(frame, Frame::GoAway { .. }), "GOAWAY before the end of {pair:?}: {seen:?}");
        seen.frames.push(frame);
    }
    seen
}

/// Sends a line over a new connection and receives it back.
pub(crate) async fn echoes(session: &mut RawSpdy, port: u16, request: u32) {
    let pair = session.open_pair(port, request).await;
    let line = format!("request {request}\n");
    session.writer.data(pair.data, line.as_bytes()).await;
    session.writer.fin(pair.data).await;
    let seen = pair_ended(session, pair).await;
    assert_eq!((seen.text(pair.data), seen.text(pair.error)), (line, String::new()));
    let resets = seen.frames.iter().filter(|frame| matches!(frame, Frame::Reset { .. })).count();
    assert_eq!(resets, 0, "{seen:?}");
}
