//! Network namespaces of a test, and a cable between two of them that can be cut.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{setsockopt, sockopt},
};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{require, require_e2e};

const DAEMON: &str = "198.18.0.1";
const CLIENT: &str = "198.18.0.2";
const CLIENT_MAC: &str = "02:00:00:00:00:02";

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

/// A daemon's side and a client's side, joined.
#[derive(Debug)]
pub(crate) struct Cable {
    pub(crate) daemon: Pod,
    pub(crate) client: Pod,
    /// Where both are pinned.
    _dir: TempDir,
}

/// A connection as the daemon's kernel has it (proc(5)).
#[derive(Debug)]
pub(crate) struct Connection {
    /// The client's port.
    pub(crate) peer: u16,
    /// Bytes that are sent and not acknowledged, or not sent yet.
    pub(crate) unacknowledged: u64,
    /// What the kernel waits for, and after how many hundredths of a second it acts.
    pub(crate) timer: (Timer, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    KeepAlive,
    /// Sends again, or asks whether there is room.
    Acknowledgement,
    Other,
}

impl Cable {
    /// Skips a test where it cannot run.
    pub(crate) fn new() -> Option<Self> {
        if !(require_e2e() && require("ip") && require("nsenter")) {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (daemon, client) = (Pod::new(dir.path().join("daemon")), Pod::new(dir.path().join("client")));
        let peer = client.path.to_str().expect("a temporary path");
        daemon.inside(|| {
            let ends =
                ["link", "add", "va", "type", "veth", "peer", "name", "vb", "address", CLIENT_MAC, "netns", peer];
            ip(&ends);
            ip(&["addr", "add", &format!("{DAEMON}/24"), "dev", "va"]);
            ip(&["link", "set", "va", "up"]);
            // Or the kernel would notice that nobody answers, and tell.
            ip(&["neigh", "replace", CLIENT, "lladdr", CLIENT_MAC, "dev", "va", "nud", "permanent"]);
        });
        client.inside(|| {
            ip(&["addr", "add", &format!("{CLIENT}/24"), "dev", "vb"]);
            ip(&["link", "set", "vb", "up"]);
        });
        Some(Self { daemon, client, _dir: dir })
    }

    /// Lets the daemon be started on its side, on its address there.
    pub(crate) fn enter(&self, command: &mut Command) {
        let mut entered = Command::new("nsenter");
        entered.arg(format!("--net={}", self.daemon.path.display()));
        entered.arg(command.get_program()).args(command.get_args()).env("HOLDFAST_STREAM_ADDRESS", DAEMON);
        *command = entered;
    }

    /// From now on nobody answers on the client's side, not even with a refusal.
    pub(crate) fn cut(&self) {
        self.client.inside(|| ip(&["addr", "del", &format!("{CLIENT}/24"), "dev", "vb"]));
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("looked for before");
    assert!(status.success(), "ip {arguments:?}");
}

/// The connections of a port of the daemon.
pub(crate) fn connections(daemon: u32, port: u16) -> Vec<Connection> {
    let sockets = fs::read_to_string(format!("/proc/{daemon}/net/tcp")).expect("procfs");
    let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let local = format!(":{port:04X}");
    // 0A is the state of a listener.
    fields.filter(|f| f[1].ends_with(&local) && f[3] != "0A").map(|f| connection(&f)).collect()
}

fn connection(fields: &[&str]) -> Connection {
    let pair = |field: &str| {
        let (first, second) = field.split_once(':').expect("two numbers");
        let number = |text| u64::from_str_radix(text, 16).expect("a number");
        (number(first), number(second))
    };
    let (_, peer) = pair(fields[2]);
    let (unacknowledged, _) = pair(fields[4]);
    let timer = match pair(fields[5]) {
        (2, when) => (Timer::KeepAlive, when),
        (1 | 4, when) => (Timer::Acknowledgement, when),
        (_, when) => (Timer::Other, when),
    };
    Connection { peer: u16::try_from(peer).expect("a port"), unacknowledged, timer }
}

/// The port of a URL of the daemon.
pub(crate) fn port_of(url: &str) -> u16 {
    url.split([':', '/']).nth(4).and_then(|port| port.parse().ok()).expect("a URL with a port")
}
