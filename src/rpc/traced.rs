//! Around every method, so that none of them knows of it: what a call is traced as, and what it leaves in capnp-rpc.

use std::{ops::Deref, rc::Rc};

use capnp::{
    any_pointer,
    capability::{self, Client, DispatchCallResult, FromServer, Params, Promise, Results},
    traits::HasTypeId as _,
};

use super::{conmon::Server, gate::Remnant};
use crate::{
    proto::traceparent::TraceParent,
    schema::{conmon_capnp::conmon, holdfast_capnp::holdfast},
};

/// What capnp-rpc hands calls to; the generated dispatch with the methods is inside.
#[derive(Clone)]
pub(super) struct Traced(holdfast::ServerDispatch<Server>);

/// Makes `capnp_rpc::new_client` wrap the methods.
impl FromServer<Server> for Client {
    type Dispatch = Traced;

    fn from_server(server: Rc<Server>) -> Traced {
        Traced(<holdfast::Client as FromServer<Server>>::from_server(server))
    }
}

impl Deref for Traced {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl capability::Server for Traced {
    fn dispatch_call(
        self,
        interface: u64,
        method: u16,
        params: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> DispatchCallResult {
        let call = (interface == conmon::Client::TYPE_ID).then(|| read(method, &params)).flatten();
        let call = call.and_then(|(name, parent)| self.services.traces.call(name, parent.as_ref()));
        let remnant = Remnant::of(&self.connection);
        let dispatched = self.0.dispatch_call(interface, method, params, results);
        let promise = Promise::from_future(async move {
            let result = match call {
                Some(call) => call.watch(dispatched.promise).await,
                None => dispatched.promise.await,
            };
            if result.is_ok() {
                remnant.none();
            }
            result
        });
        DispatchCallResult::new(promise, dispatched.is_streaming)
    }

    fn as_ptr(&self) -> usize {
        self.0.as_ptr()
    }
}

/// The method's name and what the caller traces it as. Metadata never fails a call: what cannot be read is not there.
fn read(method: u16, params: &Params<any_pointer::Owned>) -> Option<(&'static str, Option<TraceParent>)> {
    /// Text-map propagators send three entries at most; reading 100 000 would be work for nothing.
    const ENTRIES: u32 = 64;
    macro_rules! metadata {
        ($params:ident) => {
            params.get().and_then(|any| any.get_as::<conmon::$params::Reader<'_>>()?.get_request()?.get_metadata())
        };
    }
    // In the order of the schema; every request has metadata.
    let (name, metadata) = match method {
        0 => ("version", metadata!(version_params)),
        1 => ("createContainer", metadata!(create_container_params)),
        2 => ("execSyncContainer", metadata!(exec_sync_container_params)),
        3 => ("attachContainer", metadata!(attach_container_params)),
        4 => ("reopenLogContainer", metadata!(reopen_log_container_params)),
        5 => ("setWindowSizeContainer", metadata!(set_window_size_container_params)),
        6 => ("createNamespaces", metadata!(create_namespaces_params)),
        7 => ("startFdSocket", metadata!(start_fd_socket_params)),
        8 => ("serveExecContainer", metadata!(serve_exec_container_params)),
        9 => ("serveAttachContainer", metadata!(serve_attach_container_params)),
        10 => ("servePortForwardContainer", metadata!(serve_port_forward_container_params)),
        _ => return None,
    };
    let parent = metadata.ok().and_then(|entries| {
        let head = (0..entries.len().min(ENTRIES)).map(|index| entries.get(index));
        let mut named = head.filter(|entry| entry.get_key().is_ok_and(|key| key.as_bytes() == b"traceparent"));
        TraceParent::parse(named.next()?.get_value().ok()?.as_bytes())
    });
    Some((name, parent))
}
