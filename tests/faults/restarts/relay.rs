use std::{cell::Cell, fs, io, path::PathBuf, rc::Rc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use crate::support::{Sandbox, raw_rpc::read_message};

/// Where a relay ends a connection for both its ends, as the death of a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Never,
    /// After so many messages of the client.
    Requests(usize),
    /// After so many messages of the client and so many sixteenths of the next.
    WithinRequest(usize, usize),
    /// After so many messages of the daemon: it has answered, and nobody has read that.
    Replies(usize),
}

/// Stands between a client and a daemon.
#[derive(Debug)]
pub(super) struct Relay {
    /// The runtime directory to connect to.
    pub(super) dir: PathBuf,
    requests: Rc<Cell<usize>>,
    replies: Rc<Cell<usize>>,
    task: JoinHandle<()>,
}

impl Relay {
    /// For one connection.
    pub(super) fn start(sandbox: &Sandbox, name: &str, cut: Cut) -> Self {
        let dir = sandbox.path().join(name);
        fs::create_dir(&dir).expect("a directory in the sandbox");
        let listener = UnixListener::bind(dir.join("conmon.sock")).expect("a short path");
        let (requests, replies) = (Rc::<Cell<usize>>::default(), Rc::<Cell<usize>>::default());
        let counts = (requests.clone(), replies.clone());
        let daemon = sandbox.runtime_dir().join("conmon.sock");
        let task = tokio::task::spawn_local(async move {
            let (client, _) = listener.accept().await.expect("a client comes");
            let daemon = UnixStream::connect(daemon).await.expect("the daemon listens");
            // However it ends: both connections end with it.
            let _ = relay(client, daemon, cut, counts).await;
        });
        Self { dir, requests, replies, task }
    }

    /// How many messages of the client and of the daemon have gone through.
    pub(super) fn counted(&self) -> (usize, usize) {
        (self.requests.get(), self.replies.get())
    }

    /// Waits until both connections have been closed.
    pub(super) async fn ended(self) {
        crate::support::within(self.task).await.expect("it does not panic");
    }
}

async fn relay(
    client: UnixStream,
    daemon: UnixStream,
    cut: Cut,
    (requests, replies): (Rc<Cell<usize>>, Rc<Cell<usize>>),
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_daemon, mut to_daemon) = daemon.into_split();
    let up = async {
        while cut != Cut::Requests(requests.get()) {
            let message = read_message(&mut from_client).await?;
            if let Cut::WithinRequest(request, part) = cut
                && request == requests.get()
            {
                // Messages are whole words: this is never a whole one, and seldom the end of a word.
                to_daemon.write_all(&message[..message.len() * part / 16]).await?;
                break;
            }
            to_daemon.write_all(&message).await?;
            requests.set(requests.get() + 1);
        }
        io::Result::Ok(())
    };
    let down = async {
        while cut != Cut::Replies(replies.get()) {
            let message = read_message(&mut from_daemon).await?;
            to_client.write_all(&message).await?;
            replies.set(replies.get() + 1);
        }
        // The next one has been sent.
        from_daemon.read_u8().await.map(drop)
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
