//! The network of one connection as capnp-rpc sees it, with an eye on what stays behind of every message, and on what large
//! ones hold until they are sent.

use std::rc::Rc;

use capnp::{
    Error, any_pointer,
    capability::Promise,
    message::{Builder, HeapAllocator},
};
use capnp_rpc::{
    Connection as RpcConnection, IncomingMessage, OutgoingMessage, VatNetwork, rpc_capnp::message,
    rpc_twoparty_capnp::Side, twoparty,
};
use futures_util::{TryFutureExt as _, io::AsyncRead};

use super::gate::{Connection, Remnant};
use crate::io::task::Scope;

/// From this size on, in bytes, a message counts until it is sent: of the others a connection has 256.
const LARGE: usize = 64 * 1024;
const WORD: usize = 8;

/// Counts bootstraps and large replies. All else is capnp-rpc's.
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
        let watched = |inner| Box::new(Watched { inner, connection, scope }) as Box<dyn RpcConnection<Side>>;
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
}

impl RpcConnection<Side> for Watched {
    fn get_peer_vat_id(&self) -> Side {
        self.inner.get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, words: u32) -> Box<dyn OutgoingMessage> {
        let (connection, scope) = (self.connection.clone(), self.scope.clone());
        Box::new(Outgoing { inner: self.inner.new_outgoing_message(words), connection, scope })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, Error> {
        let connection = self.connection.clone();
        Promise::from_future(self.inner.receive_incoming_message().inspect_ok(move |message| {
            if message.as_ref().is_some_and(|message| is_bootstrap(&**message)) {
                drop(Remnant::of(&connection));
            }
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

/// What cannot be read is no bootstrap; capnp-rpc says what it thinks of it.
fn is_bootstrap(message: &dyn IncomingMessage) -> bool {
    let root = message.get_body().and_then(|body| body.get_as::<message::Reader<'_>>());
    root.is_ok_and(|root| matches!(root.which(), Ok(message::Bootstrap(_))))
}
