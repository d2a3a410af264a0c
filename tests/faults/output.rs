//! Every byte arrives; see the table in `main.rs`.

mod many;
mod paused;
mod stdin;

use holdfast::{
    client::{SPDY_PROTOCOLS, STREAM_PROTOCOLS, ServeAttach, ServeExec, StreamClient},
    proto::stream_set::Requested,
};

use crate::support::{self, Sandbox, procfs};

/// How a client reaches a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Spdy,
}

impl Transport {
    async fn exec(self, sandbox: &Sandbox, stdin: bool, command: &[&str]) -> StreamClient {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let exec = ServeExec { id: "c".to_owned(), command, stdin, stdout: true, stderr: true, ..ServeExec::default() };
        let url = sandbox.client().serve_exec(&exec).await.expect("the exec gets a URL");
        self.connect(&url, stdin).await
    }

    async fn attach(self, sandbox: &Sandbox) -> StreamClient {
        let attach = ServeAttach { id: "c".to_owned(), stdin: true, stdout: true, stderr: true };
        let url = sandbox.client().serve_attach(&attach).await.expect("the attach gets a URL");
        self.connect(&url, true).await
    }

    async fn connect(self, url: &str, stdin: bool) -> StreamClient {
        let client = match self {
            Self::WebSocket => StreamClient::connect(url, &STREAM_PROTOCOLS).await,
            Self::Spdy => {
                let requested = Requested { stdin, stdout: true, stderr: true, tty: false };
                StreamClient::connect_spdy(url, &SPDY_PROTOCOLS, requested).await
            }
        };
        client.expect("the URL is good for either transport")
    }
}

/// The lines that `seq 1 LAST` writes.
fn numbers(last: u32) -> Vec<u8> {
    use std::io::Write as _;
    let mut lines = Vec::new();
    for number in 1..=last {
        writeln!(lines, "{number}").expect("memory");
    }
    lines
}

/// By how much the daemon's anonymous memory grew while something was under way.
struct Growth {
    daemon: u32,
    before: u64,
    most: u64,
}

impl Growth {
    /// What the allocator and the threads of the pool take besides the queues, in KiB.
    const NOISE: u64 = 2 << 10;

    fn since_now(sandbox: &Sandbox) -> Self {
        let mut growth = Self { daemon: sandbox.daemon_pid(), before: 0, most: 0 };
        growth.look();
        growth.before = growth.most;
        growth
    }

    fn look(&mut self) {
        let kib = procfs::status_line(self.daemon, "RssAnon");
        self.most = self.most.max(kib.trim_end_matches(" kB").parse().expect("a number of KiB"));
    }

    /// It must not be more than the queues on the way hold, in KiB.
    fn assert_within(&self, name: &str, queues: u64) {
        let grown = self.most - self.before;
        support::figure(&format!("output: {name}: the daemon's memory grew by, KiB"), grown);
        assert!(grown <= queues + Self::NOISE, "{name}: {grown} KiB, while the queues hold {queues} KiB");
    }
}
