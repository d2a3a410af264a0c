use std::{io, path::Path};

use capnp::{any_pointer, message::Builder, message::ReaderOptions, serialize};
use capnp_rpc::rpc_capnp::{message, return_};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use super::DEADLINE;

/// The type id of the interface `Conmon`.
const CONMON: u64 = 0xb737_e899_dd66_33f1;
/// The type id of the interface `Holdfast`.
const HOLDFAST: u64 = 0xc5dd_afa7_dbcf_92ea;
/// Methods of `Holdfast` are numbered from here on.
pub(crate) const OWN: u16 = 100;

/// A client of the control socket that sends any bytes.
#[derive(Debug)]
pub(crate) struct RawRpc {
    stream: UnixStream,
}

/// What came back for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Results,
    /// The exception's reason.
    Refused(String),
    /// The server gave up the connection, with this reason.
    Aborted(String),
    /// The connection ended without a word.
    Closed,
}

impl RawRpc {
    pub(crate) async fn connect(runtime_dir: &Path) -> Self {
        let stream = UnixStream::connect(runtime_dir.join("conmon.sock")).await.expect("the daemon listens");
        Self { stream }
    }

    /// Sends bytes; that the server has closed meanwhile is no failure here.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let sent = timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("the server reads or closes");
        drop(sent);
    }

    /// Says that nothing more will come.
    pub(crate) async fn finish(&mut self) {
        // The server may have closed before.
        let _ = self.stream.shutdown().await;
    }

    /// The answer to a question; what comes for others is skipped.
    pub(crate) async fn reply(&mut self, question: u32) -> Reply {
        timeout(DEADLINE, self.next_reply(question)).await.expect("an answer or the end")
    }

    /// Waits for the end of the connection. What comes before it is not looked at.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        let ended = timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await;
        // An error is a reset: the server had not read everything.
        drop(ended.expect("the server closes"));
    }

    async fn next_reply(&mut self, question: u32) -> Reply {
        loop {
            let Ok(bytes) = self.receive().await else { return Reply::Closed };
            let reader = serialize::read_message_from_flat_slice(&mut &bytes[..], ReaderOptions::new());
            let reader = reader.expect("the server's messages are well formed");
            let root: message::Reader<'_> = reader.get_root().expect("they have a root");
            match root.which() {
                Ok(message::Return(ret)) => {
                    let ret = ret.expect("a return");
                    if ret.get_answer_id() == question {
                        return match ret.which() {
                            Ok(return_::Exception(exception)) => Reply::Refused(reason(exception)),
                            _ => Reply::Results,
                        };
                    }
                }
                Ok(message::Abort(exception)) => return Reply::Aborted(reason(exception)),
                _ => {}
            }
        }
    }

    /// The next message, with its segment table.
    pub(crate) async fn receive(&mut self) -> io::Result<Vec<u8>> {
        read_message(&mut self.stream).await
    }
}

/// The next message of a stream, with its segment table.
pub(crate) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let mut bytes = vec![0; 4];
    stream.read_exact(&mut bytes).await?;
    let segments = word(&bytes) + 1;
    bytes.resize(4 * (segments + 1).next_multiple_of(2), 0);
    stream.read_exact(&mut bytes[4..]).await?;
    let words: usize = (1..=segments).map(|n| word(&bytes[4 * n..])).sum();
    let table = bytes.len();
    bytes.resize(table + 8 * words, 0);
    stream.read_exact(&mut bytes[table..]).await?;
    Ok(bytes)
}

fn reason(exception: capnp::Result<capnp_rpc::rpc_capnp::exception::Reader<'_>>) -> String {
    let reason = exception.expect("an exception").get_reason().expect("a reason");
    reason.to_string().expect("reasons are UTF-8")
}

/// One message of the RPC protocol.
pub(crate) fn message(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut builder = Builder::new_default();
    fill(builder.init_root());
    serialize::write_message_to_words(&builder)
}

/// The first message of every client.
pub(crate) fn bootstrap(question: u32) -> Vec<u8> {
    message(|root| root.init_bootstrap().set_question_id(question))
}

/// A call on the answer of question 0, which need not have come: what the contract's own client sends.
pub(crate) fn call(question: u32, method: u16, fill: impl FnOnce(any_pointer::Builder<'_>)) -> Vec<u8> {
    message(|root| {
        let mut call = root.init_call();
        call.set_question_id(question);
        call.set_interface_id(if method < OWN { CONMON } else { HOLDFAST });
        call.set_method_id(method % OWN);
        call.reborrow().init_target().init_promised_answer().set_question_id(0);
        fill(call.init_params().get_content());
    })
}
