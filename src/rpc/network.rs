//! The network of one connection as capnp-rpc sees it, with an eye on what stays behind of every message.

use std::rc::Rc;

use capnp::{Error, capability::Promise};
use capnp_rpc::{
    Connection as RpcConnection, IncomingMessage, OutgoingMessage, VatNetwork, rpc_capnp::message,
    rpc_twoparty_capnp::Side, twoparty,
};
use futures_util::{TryFutureExt as _, io::AsyncRead};

use super::gate::{Connection, Remnant};

/// Counts bootstraps. All else is capnp-rpc's.
pub(super) struct Network<T: AsyncRead + Unpin + 'static> {
    inner: twoparty::VatNetwork<T>,
    connection: Rc<Connection>,
}

impl<T: AsyncRead + Unpin + 'static> Network<T> {
    pub(super) fn new(inner: twoparty::VatNetwork<T>, connection: Rc<Connection>) -> Self {
        Self { inner, connection }
    }
}

impl<T: AsyncRead + Unpin + 'static> VatNetwork<Side> for Network<T> {
    fn connect(&mut self, peer: Side) -> Option<Box<dyn RpcConnection<Side>>> {
        self.inner.connect(peer)
    }

    fn accept(&mut self) -> Promise<Box<dyn RpcConnection<Side>>, Error> {
        let connection = self.connection.clone();
        let watched = |inner| Box::new(Watched { inner, connection }) as Box<dyn RpcConnection<Side>>;
        Promise::from_future(self.inner.accept().map_ok(watched))
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        self.inner.drive_until_shutdown()
    }
}

struct Watched {
    inner: Box<dyn RpcConnection<Side>>,
    connection: Rc<Connection>,
}

impl RpcConnection<Side> for Watched {
    fn get_peer_vat_id(&self) -> Side {
        self.inner.get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, words: u32) -> Box<dyn OutgoingMessage> {
        self.inner.new_outgoing_message(words)
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

/// What cannot be read is no bootstrap; capnp-rpc says what it thinks of it.
fn is_bootstrap(message: &dyn IncomingMessage) -> bool {
    let root = message.get_body().and_then(|body| body.get_as::<message::Reader<'_>>());
    root.is_ok_and(|root| matches!(root.which(), Ok(message::Bootstrap(_))))
}
