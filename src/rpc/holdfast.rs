//! Our own interface: what a caller that knows this monitor can ask beyond the contract.

use std::{
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

use capnp::Error;

use super::{conmon::Server, decode, error};
use crate::{
    container::{Listed, Numbered as _, State},
    schema::holdfast_capnp::holdfast::{
        self, ContainerState, ForgetParams, ForgetResults, ListContainersParams, ListContainersResults,
        ListSessionsParams, ListSessionsResults, ServePortForwardParams, ServePortForwardResults, SessionKind,
        SessionState as WireState, SessionTransport, container_entry, session_entry,
    },
    session::{Carrier, ListedSession, SessionState, Subject},
};

impl holdfast::Server for Server {
    async fn serve_port_forward(
        self: Rc<Self>,
        params: ServePortForwardParams,
        mut results: ServePortForwardResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let (destination, ports) =
            decode::ports::forward(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let url = self.services.streams.offer_port_forward(destination, ports).map_err(|e| error::world(&e))?;
        results.get().init_response().set_url(url);
        Ok(())
    }

    async fn list_containers(
        self: Rc<Self>,
        params: ListContainersParams,
        mut results: ListContainersResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let page = decode::lists::containers(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let table = &self.services.pod.containers;
        let mut listed = table.list(page.id.as_ref(), page.after);
        let mut response = results.get().init_response();
        response.set_next(page.cut(&mut listed, Listed::number));
        response.set_dropped(table.dropped_exits());
        let mut list = response.init_containers(length(&listed));
        for (index, listed) in (0..).zip(&listed) {
            container(listed, list.reborrow().get(index));
        }
        Ok(())
    }

    async fn list_sessions(
        self: Rc<Self>,
        params: ListSessionsParams,
        mut results: ListSessionsResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let page = decode::lists::sessions(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let mut listed = self.services.streams.list(page.id.as_ref(), page.after);
        let mut response = results.get().init_response();
        response.set_next(page.cut(&mut listed, ListedSession::number));
        response.set_dropped(self.services.sessions.dropped_ends());
        let mut list = response.init_sessions(length(&listed));
        for (index, listed) in (0..).zip(&listed) {
            session(listed, list.reborrow().get(index));
        }
        Ok(())
    }

    async fn forget(self: Rc<Self>, params: ForgetParams, mut results: ForgetResults) -> Result<(), Error> {
        let _call = self.connection.call();
        let request = params.get()?.get_request()?;
        let (containers, sessions) = (request.get_containers()?, request.get_sessions()?);
        let mut response = results.get().init_response();
        response.set_containers(self.services.pod.containers.forget(containers.iter()));
        response.set_sessions(self.services.sessions.forget(sessions.iter()));
        self.services.pod.heap.freed();
        Ok(())
    }
}

fn container(listed: &Listed, mut entry: container_entry::Builder<'_>) {
    entry.set_number(listed.birth.number);
    entry.set_id(listed.id.as_str());
    entry.set_state(match listed.state {
        None => ContainerState::Creating,
        Some(State::Live) => ContainerState::Live,
        Some(State::Exiting) => ContainerState::Exiting,
        Some(State::Exited(_)) => ContainerState::Exited,
    });
    entry.set_terminal(listed.terminal);
    entry.set_pid(listed.pid);
    entry.set_created_at(nanoseconds(listed.birth.time));
    entry.set_logged_bytes(listed.log.written.bytes);
    entry.set_lost_bytes(listed.log.lost.bytes);
    if let Some(end) = &listed.end {
        entry.set_oom_killed(end.oom_killed);
        entry.set_exit_code(end.status.code());
        entry.set_exited_at(nanoseconds(end.time));
    }
}

fn session(listed: &ListedSession, mut entry: session_entry::Builder<'_>) {
    entry.set_number(listed.opening.number);
    let (kind, id, pod) = match &listed.opening.subject {
        Subject::Exec(id) => (SessionKind::Exec, id.as_str(), ""),
        Subject::ExecSync(id) => (SessionKind::ExecSync, id.as_str(), ""),
        Subject::Attach(id) => (SessionKind::Attach, id.as_str(), ""),
        Subject::PortForward(pod) => (SessionKind::PortForward, "", pod.as_str()),
    };
    entry.set_kind(kind);
    entry.set_id(id);
    entry.set_pod_id(pod);
    entry.set_state(match listed.state {
        SessionState::Waiting => WireState::Waiting,
        SessionState::Active => WireState::Active,
        SessionState::Detached => WireState::Detached,
        SessionState::Ended => WireState::Ended,
    });
    entry.set_transport(match listed.carrier {
        None => SessionTransport::None,
        Some(Carrier::WebSocket) => SessionTransport::WebSocket,
        Some(Carrier::Spdy) => SessionTransport::Spdy,
        Some(Carrier::Tunnel) => SessionTransport::Tunnel,
        Some(Carrier::AttachSocket) => SessionTransport::AttachSocket,
    });
    if let Some(peer) = listed.peer {
        entry.set_peer(peer.to_string());
    }
    entry.set_pid(listed.pid);
    if let Some(code) = listed.code {
        entry.set_exited(true);
        entry.set_exit_code(code);
    }
    entry.set_created_at(nanoseconds(listed.opening.time));
    entry.set_ended_at(listed.ended.map_or(0, nanoseconds));
    entry.set_received_bytes(listed.received);
    entry.set_sent_bytes(listed.sent);
}

/// A page has 256 entries at most.
fn length<T>(page: &[T]) -> u32 {
    u32::try_from(page.len()).unwrap_or(u32::MAX)
}

/// Since 1970; such a number lasts until the year 2554.
fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
