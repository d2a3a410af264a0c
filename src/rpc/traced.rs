//! Around every method, so that none of them knows of it: what a call is traced as, and what it leaves in capnp-rpc.

use std::{ops::Deref, rc::Rc};

use capnp::{
    any_pointer,
    capability::{self, Client, DispatchCallResult, FromServer, Params, Promise, Results},
    struct_list,
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
        let call = read(interface, method, &params);
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
fn read(
    interface: u64,
    method: u16,
    params: &Params<any_pointer::Owned>,
) -> Option<(&'static str, Option<TraceParent>)> {
    macro_rules! metadata {
        ($interface:ident, $params:ident) => {
            params.get().and_then(|any| any.get_as::<$interface::$params::Reader<'_>>()?.get_request()?.get_metadata())
        };
    }
    const CONMON: u64 = conmon::Client::TYPE_ID;
    const HOLDFAST: u64 = holdfast::Client::TYPE_ID;
    // In the order of the schema; every request has metadata.
    let (name, metadata) = match (interface, method) {
        (CONMON, 0) => ("version", metadata!(conmon, version_params)),
        (CONMON, 1) => ("createContainer", metadata!(conmon, create_container_params)),
        (CONMON, 2) => ("execSyncContainer", metadata!(conmon, exec_sync_container_params)),
        (CONMON, 3) => ("attachContainer", metadata!(conmon, attach_container_params)),
        (CONMON, 4) => ("reopenLogContainer", metadata!(conmon, reopen_log_container_params)),
        (CONMON, 5) => ("setWindowSizeContainer", metadata!(conmon, set_window_size_container_params)),
        (CONMON, 6) => ("createNamespaces", metadata!(conmon, create_namespaces_params)),
        (CONMON, 7) => ("startFdSocket", metadata!(conmon, start_fd_socket_params)),
        (CONMON, 8) => ("serveExecContainer", metadata!(conmon, serve_exec_container_params)),
        (CONMON, 9) => ("serveAttachContainer", metadata!(conmon, serve_attach_container_params)),
        (CONMON, 10) => ("servePortForwardContainer", metadata!(conmon, serve_port_forward_container_params)),
        (HOLDFAST, 0) => ("servePortForward", metadata!(holdfast, serve_port_forward_params)),
        (HOLDFAST, 1) => ("listContainers", metadata!(holdfast, list_containers_params)),
        (HOLDFAST, 2) => ("listSessions", metadata!(holdfast, list_sessions_params)),
        (HOLDFAST, 3) => ("forget", metadata!(holdfast, forget_params)),
        _ => return None,
    };
    Some((name, metadata.ok().and_then(parent)))
}

pub(super) fn parent(entries: struct_list::Reader<'_, conmon::text_text_map_entry::Owned>) -> Option<TraceParent> {
    /// Text-map propagators send three entries at most; reading 100 000 would be work for nothing.
    const ENTRIES: u32 = 64;
    let head = (0..entries.len().min(ENTRIES)).map(|index| entries.get(index));
    let mut named = head.filter(|entry| entry.get_key().is_ok_and(|key| key.as_bytes() == b"traceparent"));
    TraceParent::parse(named.next()?.get_value().ok()?.as_bytes())
}
