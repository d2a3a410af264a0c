//! A thousand connections that send nothing, at all doors at once.

use std::{os::unix::net::UnixStream, time::Instant};

use holdfast::client::FdClient;
use tokio::net::TcpStream;

use crate::support::{BundleSpec, RawAttach, beside_a_neighbour, fds, figure, raise_file_limit, raw_ws::RawSession};

/// At each door of connections. Those of the descriptor socket and of an attach socket have lower limits, see the queue
/// table of docs/ARCHITECTURE.md.
const CROWD: usize = 1000;
const FD_CROWD: usize = 250;
/// Beside the sessions of the test itself.
const VIEWERS: usize = 500;

#[test]
fn a_thousand_connections_that_send_nothing_at_each_door_keep_nobody_out_and_leave_nothing() {
    raise_file_limit();
    beside_a_neighbour(async |sandbox, neighbour| {
        // Three thousand connections at once; those of the streaming server have a buffer each.
        neighbour.growth_kib = 24 << 10;
        sandbox.run("c", &BundleSpec::shell("while read line; do echo got $line; done").stdin()).await;
        let attach = sandbox.listen("c", false).await;
        // The first session opens what stays open, and so does the descriptor socket.
        sandbox.exec("c", &["true"]).await;
        drop(fds::connect(sandbox).await);
        let url = sandbox.exec_url("c", &["echo", "hello"]).await;
        let address = url.split('/').nth(2).expect("absolute").to_owned();
        let mut silent = Vec::new();
        let mut held = Vec::new();
        for _ in 0..CROWD {
            silent.push(UnixStream::connect(sandbox.runtime_dir().join("conmon.sock")).expect("it listens"));
            held.push(TcpStream::connect(&address).await.expect("it listens"));
        }
        let mut senders = Vec::new();
        while senders.len() < FD_CROWD {
            match FdClient::connect(&sandbox.runtime_dir().join("conmon-fd.sock")).await {
                Ok(client) => senders.push(client),
                // More than the kernel lets wait.
                Err(_) => tokio::task::yield_now().await,
            }
        }
        let viewers: Vec<_> = (0..VIEWERS).map(|_| RawAttach::connect(&attach).expect("it listens")).collect();
        let start = Instant::now();
        let mut session = RawSession::open(&url, super::V5).await;
        session.wait_output(1, "hello\n").await;
        let typist = sandbox.attach_raw("c", false).await;
        typist.send(b"line\n").await;
        typist.wait_output("got line\n").await;
        fds::connect(sandbox).await.send(&fds::borrowed(&[fds::file("x")])).await.expect("kept");
        sandbox.connect().await.version(false).await.expect("an answer");
        figure("four clients beside 2750 silent ones, ms", start.elapsed().as_millis());
        // All of them still see what is theirs: a viewer that reads late is a viewer.
        viewers[VIEWERS - 1].wait_output("got line\n").await;
        drop((silent, held, senders, viewers, typist, session));
        fds::end(sandbox, "c").await;
        sandbox.runtime(&["delete", "--force", "c"]);
    });
}
