//! The network of one connection as capnp-rpc sees it, with an eye on what stays behind of every message, and on what
//! large ones hold until they are sent.
//!
//! capnp-rpc keeps without bound what this contract has no use for: a call whose results shall stay here is never run, so
//! its message waits for ever; so does one for an object in the answer of a call that runs; and every capability of the
//! client is an entry of a table, which the client can tie to itself. Who sends one of these loses the connection.

use std::{cell::RefCell, collections::HashSet, rc::Rc};

use capnp::{
    Error, any_pointer,
    capability::Promise,
    message::{Builder, HeapAllocator},
};
use capnp_rpc::{
    Connection as RpcConnection, IncomingMessage, OutgoingMessage, VatNetwork,
    rpc_capnp::{call, message, message_target},
    rpc_twoparty_capnp::Side,
    twoparty,
};
use futures_util::{TryFutureExt as _, io::AsyncRead};

use super::gate::{Connection, Remnant};
use crate::io::task::Scope;

/// From this size on, in bytes, a message counts until it is sent: of the others a connection has 256.
const LARGE: usize = 64 * 1024;
const WORD: usize = 8;

/// Counts bootstraps and large replies, and refuses what would stay for ever. All else is capnp-rpc's.
pub(super) struct Network<T: AsyncRead + Unpin + 'static> {
    inner: twoparty::VatNetwork<T>,
    connection: Rc<Connection>,
    /// Owns what looks after large messages: capnp-rpc queues them without bound and forgets the promise of their sending.
    scope: Rc<Scope>,
}

impl<T: AsyncRead + Unpin + 'static> Network<T> {
    pub(super) fn new(inner: twoparty::VatNetwork<T>, connection: Rc<Connection>) -> Self {
        Self { inner, connection, scope: Rc::new(Scope::new()) }
    }
}

impl<T: AsyncRead + Unpin + 'static> VatNetwork<Side> for Network<T> {
    fn connect(&mut self, peer: Side) -> Option<Box<dyn RpcConnection<Side>>> {
        self.inner.connect(peer)
    }

    fn accept(&mut self) -> Promise<Box<dyn RpcConnection<Side>>, Error> {
        let (connection, scope) = (self.connection.clone(), self.scope.clone());
        let watched = |inner| {
            Box::new(Watched { inner, connection, scope, bootstraps: Rc::default() }) as Box<dyn RpcConnection<Side>>
        };
        Promise::from_future(self.inner.accept().map_ok(watched))
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        self.inner.drive_until_shutdown()
    }
}

struct Watched {
    inner: Box<dyn RpcConnection<Side>>,
    connection: Rc<Connection>,
    scope: Rc<Scope>,
    bootstraps: Rc<RefCell<Bootstraps>>,
}

/// The questions that asked for our object and are not finished: each of them is counted as a remnant, which bounds them.
type Bootstraps = HashSet<u32>;

impl RpcConnection<Side> for Watched {
    fn get_peer_vat_id(&self) -> Side {
        self.inner.get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, words: u32) -> Box<dyn OutgoingMessage> {
        let (connection, scope) = (self.connection.clone(), self.scope.clone());
        Box::new(Outgoing { inner: self.inner.new_outgoing_message(words), connection, scope })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, Error> {
        let (connection, bootstraps) = (self.connection.clone(), self.bootstraps.clone());
        Promise::from_future(self.inner.receive_incoming_message().and_then(async move |message| {
            if let Some(message) = &message {
                look_at(&**message, &connection, &mut bootstraps.borrow_mut())?;
            }
            Ok(message)
        }))
    }

    fn shutdown(&mut self, result: Result<(), Error>) -> Promise<(), Error> {
        self.inner.shutdown(result)
    }
}

struct Outgoing {
    inner: Box<dyn OutgoingMessage>,
    connection: Rc<Connection>,
    scope: Rc<Scope>,
}

impl OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.inner.get_body()
    }

    fn get_body_as_reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.inner.get_body_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), Error>, Rc<Builder<HeapAllocator>>) {
        let bytes = self.inner.size_in_words() * WORD;
        let (sent, message) = self.inner.send();
        if bytes < LARGE {
            return (sent, message);
        }
        let unsent = self.connection.owes(bytes);
        self.scope.spawn(async move {
            // An error is the end of the connection, with which the message goes too.
            let _ = sent.await;
            drop(unsent);
        });
        (Promise::ok(()), message)
    }

    fn take(self: Box<Self>) -> Builder<HeapAllocator> {
        self.inner.take()
    }

    fn size_in_words(&self) -> usize {
        self.inner.size_in_words()
    }
}

/// What cannot be read passes: capnp-rpc says what it thinks of it.
fn look_at(
    message: &dyn IncomingMessage,
    connection: &Rc<Connection>,
    bootstraps: &mut Bootstraps,
) -> Result<(), Error> {
    let Ok(root) = message.get_body().and_then(|body| body.get_as::<message::Reader<'_>>()) else { return Ok(()) };
    match root.which() {
        Ok(message::Bootstrap(Ok(bootstrap))) => {
            drop(Remnant::of(connection));
            bootstraps.insert(bootstrap.get_question_id());
            Ok(())
        }
        Ok(message::Finish(Ok(finish))) => {
            bootstraps.remove(&finish.get_question_id());
            Ok(())
        }
        Ok(message::Call(Ok(call))) => match useless(call, bootstraps) {
            Ok(Some(reason)) => Err(Error::failed(format!("no call of this interface {reason}"))),
            Ok(None) | Err(_) => Ok(()),
        },
        // Of a promise that we were never given. One that is resolved to itself is never freed, nor is the connection.
        Ok(message::Resolve(_)) => Err(Error::failed("no call of this interface takes promises".to_owned())),
        _ => Ok(()),
    }
}

/// What of a call nobody here has a use for.
fn useless(call: call::Reader<'_>, bootstraps: &Bootstraps) -> capnp::Result<Option<&'static str>> {
    if !call.get_params()?.get_cap_table()?.is_empty() {
        return Ok(Some("takes capabilities"));
    }
    if !matches!(call.get_send_results_to().which(), Ok(call::send_results_to::Caller(()))) {
        return Ok(Some("keeps its results here"));
    }
    if let message_target::PromisedAnswer(answer) = call.get_target()?.which()?
        && !bootstraps.contains(&answer?.get_question_id())
    {
        return Ok(Some("answers with an object that could be called"));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use capnp::{message::Builder, serialize::write_message_to_words};

    use super::*;
    use crate::rpc::fuzzing::{CONMON, Edge};

    fn bootstrap(question: u32) -> Vec<u8> {
        let mut builder = Builder::new_default();
        builder.init_root::<message::Builder<'_>>().init_bootstrap().set_question_id(question);
        write_message_to_words(&builder)
    }

    /// A version call, changed.
    fn version(question: u32, change: impl FnOnce(call::Builder<'_>)) -> Vec<u8> {
        let mut builder = Builder::new_default();
        let mut call = builder.init_root::<message::Builder<'_>>().init_call();
        call.set_question_id(question);
        call.set_interface_id(CONMON);
        call.reborrow().init_target().init_promised_answer().set_question_id(0);
        change(call);
        write_message_to_words(&builder)
    }

    /// What came back for these messages.
    fn replies(messages: &[Vec<u8>]) -> String {
        let parts: Vec<_> = messages.iter().map(Vec::as_slice).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        let replies = runtime.unwrap().block_on(async { Edge::closing().await.client(&parts, |_| true).await });
        String::from_utf8_lossy(&replies).into_owned()
    }

    // Each of them stayed in memory for as long as the connection, up to 8 MiB a call, and no limit counted them.
    #[test]
    fn a_call_that_would_be_kept_for_ever_costs_its_client_the_connection() {
        let yourself = |mut call: call::Builder<'_>| call.reborrow().get_send_results_to().set_yourself(());
        let third = |mut call: call::Builder<'_>| _ = call.reborrow().get_send_results_to().init_third_party();
        let capability = |call: call::Builder<'_>| call.init_params().init_cap_table(1).get(0).set_sender_hosted(7);
        let on_answer = |mut call: call::Builder<'_>| {
            call.reborrow().init_target().init_promised_answer().set_question_id(1);
        };
        for (broken, says) in [
            (version(2, yourself), "keeps its results here"),
            (version(2, third), "keeps its results here"),
            (version(2, capability), "takes capabilities"),
            (version(2, on_answer), "answers with an object"),
        ] {
            let replies = replies(&[bootstrap(0), version(1, |_| {}), broken]);
            assert!(replies.contains(says), "{replies:?}");
        }
    }

    // The promise held itself, and with it the connection and all that belongs to it: for the life of the daemon.
    #[test]
    fn a_promise_resolved_to_itself_does_not_outlive_its_connection() {
        let mut builder = Builder::new_default();
        let mut resolve = builder.init_root::<message::Builder<'_>>().init_resolve();
        resolve.set_promise_id(7);
        resolve.init_cap().set_sender_promise(7);
        let replies = replies(&[bootstrap(0), version(1, |_| {}), write_message_to_words(&builder)]);
        assert!(replies.contains("takes promises"), "{replies:?}");
    }

    #[test]
    fn calls_on_the_bootstrap_object_pass_before_and_after_its_answer() {
        let imported = |mut call: call::Builder<'_>| call.reborrow().init_target().set_imported_cap(0);
        let replies = replies(&[bootstrap(0), version(1, |_| {}), version(2, imported), version(3, |_| {})]);
        let current = crate::version::Version::current().version;
        assert_eq!(replies.matches(current).count(), 3, "{replies:?}");
    }
}
