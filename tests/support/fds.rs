//! Descriptors that a test hands to a daemon, seen by their other ends.

use std::{
    io::{PipeReader, PipeWriter, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use holdfast::client::{ClientError, CreateContainer, FdClient};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

use super::{BundleSpec, Sandbox, within};

/// A connection to the daemon's descriptor socket, which is started if need be.
pub(crate) async fn connect(sandbox: &Sandbox) -> FdClient {
    let path = sandbox.client().start_fd_socket().await.expect("the socket is made");
    FdClient::connect(&path).await.expect("it listens")
}

/// A pipe whose writing end can be handed over: its reading end tells when nobody holds it any more.
pub(crate) struct Held {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Held {
    pub(crate) fn new() -> Self {
        let (reader, writer) = std::io::pipe().expect("two descriptors");
        Self { reader, writer }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    /// Gives up the test's own copy.
    pub(crate) fn handed_over(self) -> Witness {
        Witness(self.reader)
    }
}

/// Sees whether what was handed over is still open somewhere.
pub(crate) struct Witness(PipeReader);

impl Witness {
    pub(crate) fn is_open(&self) -> bool {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).expect("a descriptor of ours");
        !polled[0].revents().expect("known flags").contains(PollFlags::POLLHUP)
    }

    /// Waits until nobody holds it.
    pub(crate) async fn closed(&self) {
        super::eventually("the close of what was handed over", || (!self.is_open()).then_some(())).await;
    }
}

/// A file with a text, to be read from its start.
pub(crate) fn file(text: &str) -> OwnedFd {
    use std::io::Seek as _;
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(text.as_bytes()).and_then(|()| file.rewind()).expect("a temporary file");
    file.into()
}

pub(crate) fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(|fd| fd.as_fd()).collect()
}

/// A request for a container that gets these slots from its descriptor 3 on.
pub(crate) fn with_fds(sandbox: &Sandbox, id: &str, spec: &BundleSpec, slots: &[u64]) -> CreateContainer {
    let mut request = sandbox.create_request(id, spec);
    request.command_args = vec![format!("--preserve-fds={}", slots.len())];
    request.additional_fds = slots.to_vec();
    request
}

/// What the refusal of a create says.
pub(crate) async fn refused(sandbox: &Sandbox, request: &CreateContainer) -> String {
    match within(sandbox.client().create_container(request)).await {
        Err(ClientError::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// Kills a container and waits for its exit file.
pub(crate) async fn end(sandbox: &Sandbox, id: &str) {
    sandbox.runtime(&["kill", id, Signal::SIGKILL.as_str()]);
    sandbox.wait_exit(id).await;
}
