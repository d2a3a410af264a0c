//! What a daemon knows of: containers, sessions, and ends that nobody has collected yet.

use serde::Serialize;

use super::{
    Client, ClientError,
    holdfast_capnp::holdfast::{
        ContainerState as WireContainerState, SessionKind as WireKind, SessionState as WireSessionState,
        SessionTransport as WireTransport, container_entry, session_entry,
    },
    rpc::{answer, failed},
};

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ContainerState {
    /// The runtime is at work.
    Creating,
    /// Created or running.
    Live,
    /// Its process has ended; its log and files are not complete yet.
    Exiting,
    /// Complete; listed until it is forgotten, or until 256 later ones have exited.
    Exited,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerInfo {
    /// In the order of creation; never used twice by a daemon.
    pub number: u64,
    /// Its id, which a later container may have again.
    pub id: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether the kernel's OOM killer hit it; known once it has exited.
    pub oom_killed: bool,
    /// Its init process; 0 while it is created.
    pub pid: u32,
    /// As in its exit file; `None` until it has exited.
    pub exit_code: Option<i32>,
    /// When its creation was asked for, in nanoseconds since 1970.
    pub created_at: u64,
    /// When its process ended; `None` until it has exited.
    pub exited_at: Option<u64>,
    /// Bytes of its output in all its logs together.
    pub logged_bytes: u64,
    /// Bytes of its output that did not get into a log.
    pub lost_bytes: u64,
}

/// What a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionKind {
    /// A command with a streaming client.
    Exec,
    /// A client that watches a container.
    Attach,
    /// A client that reaches ports of a pod.
    PortForward,
    /// A call of `execSyncContainer`.
    ExecSync,
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionState {
    /// Its URL has been given out; nobody has come yet.
    Waiting,
    /// Its client is there.
    Active,
    /// Its client is gone; its command runs on.
    Detached,
    /// Its command has ended, and nobody was told.
    Ended,
}

/// How a session's client comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionTransport {
    /// It has not come, or the session is a call.
    None,
    /// A WebSocket.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
    /// SPDY/3.1 in the messages of a WebSocket.
    Tunnel,
    /// The attach socket of a container.
    AttachSocket,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    /// In the order of the calls and connections; never used twice by a daemon.
    pub number: u64,
    /// What it is.
    pub kind: SessionKind,
    /// Where it is in its life.
    pub state: SessionState,
    /// How its client comes.
    pub transport: SessionTransport,
    /// The container; empty for a port forward.
    pub id: String,
    /// Of a port forward, as its caller named it.
    pub pod_id: String,
    /// Address and port of its client, where it has one.
    pub peer: String,
    /// Of an exec; 0 until it has been started.
    pub pid: u32,
    /// Of an exec that has ended; as `execSyncContainer` answers it.
    pub exit_code: Option<i32>,
    /// When it was asked for, in nanoseconds since 1970.
    pub created_at: u64,
    /// When it ended; `None` before.
    pub ended_at: Option<u64>,
    /// Bytes that came from the client.
    pub received_bytes: u64,
    /// Bytes that went to the client.
    pub sent_bytes: u64,
}

/// A list, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listing<T> {
    /// By number.
    pub entries: Vec<T>,
    /// Ends that went for newer ones before anybody forgot them, since the daemon started.
    pub dropped: u64,
}

/// One answer.
struct Page<T> {
    entries: Vec<T>,
    /// What to ask for next; 0 if this was the last.
    next: u64,
    dropped: u64,
}

/// Asks for one page behind the other.
async fn whole<T>(page: impl AsyncFn(u64) -> Result<Page<T>, ClientError>) -> Result<Listing<T>, ClientError> {
    let (mut listing, mut after) = (Listing { entries: Vec::new(), dropped: 0 }, 0);
    loop {
        let Page { entries, next, dropped } = page(after).await?;
        listing.entries.extend(entries);
        listing.dropped = dropped;
        // One that does not go on would ask for ever.
        if next <= after {
            return Ok(listing);
        }
        after = next;
    }
}

impl Client {
    /// The containers that are there, and those that have exited and are not forgotten yet; with an `id` only those of
    /// this id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_containers(&self, id: Option<&str>) -> Result<Listing<ContainerInfo>, ClientError> {
        const CALL: &str = "listContainers";
        whole(async |after| {
            let mut call = self.holdfast().list_containers_request();
            let mut request = call.get().init_request();
            request.set_id(id.unwrap_or_default());
            request.set_after(after);
            let reply = answer(CALL, call.send().promise).await?;
            let decode = || -> capnp::Result<_> {
                let response = reply.get()?.get_response()?;
                let entries = response.get_containers()?.iter().map(container).collect::<capnp::Result<_>>()?;
                Ok(Page { entries, next: response.get_next(), dropped: response.get_dropped() })
            };
            decode().map_err(|error| failed(CALL, &error))
        })
        .await
    }

    /// What clients do or may come and do, and ends of commands that nobody was told; with an `id` only those of this
    /// container.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_sessions(&self, id: Option<&str>) -> Result<Listing<SessionInfo>, ClientError> {
        const CALL: &str = "listSessions";
        whole(async |after| {
            let mut call = self.holdfast().list_sessions_request();
            let mut request = call.get().init_request();
            request.set_id(id.unwrap_or_default());
            request.set_after(after);
            let reply = answer(CALL, call.send().promise).await?;
            let decode = || -> capnp::Result<_> {
                let response = reply.get()?.get_response()?;
                let entries = response.get_sessions()?.iter().map(session).collect::<capnp::Result<_>>()?;
                Ok(Page { entries, next: response.get_next(), dropped: response.get_dropped() })
            };
            decode().map_err(|error| failed(CALL, &error))
        })
        .await
    }

    /// Says that the ends of these containers and sessions have been collected: they are listed no more. Returns how many
    /// of each there were.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn forget(&self, containers: &[u64], sessions: &[u64]) -> Result<(u32, u32), ClientError> {
        const CALL: &str = "forget";
        let mut call = self.holdfast().forget_request();
        let mut request = call.get().init_request();
        request.set_containers(containers).map_err(|error| failed(CALL, &error))?;
        request.set_sessions(sessions).map_err(|error| failed(CALL, &error))?;
        let reply = answer(CALL, call.send().promise).await?;
        let decode = || reply.get()?.get_response().map(|gone| (gone.get_containers(), gone.get_sessions()));
        decode().map_err(|error| failed(CALL, &error))
    }
}

fn container(entry: container_entry::Reader<'_>) -> capnp::Result<ContainerInfo> {
    let state = match entry.get_state()? {
        WireContainerState::Creating => ContainerState::Creating,
        WireContainerState::Live => ContainerState::Live,
        WireContainerState::Exiting => ContainerState::Exiting,
        WireContainerState::Exited => ContainerState::Exited,
    };
    let exited = state == ContainerState::Exited;
    Ok(ContainerInfo {
        number: entry.get_number(),
        id: entry.get_id()?.to_string()?,
        state,
        terminal: entry.get_terminal(),
        oom_killed: entry.get_oom_killed(),
        pid: entry.get_pid(),
        exit_code: exited.then(|| entry.get_exit_code()),
        created_at: entry.get_created_at(),
        exited_at: exited.then(|| entry.get_exited_at()),
        logged_bytes: entry.get_logged_bytes(),
        lost_bytes: entry.get_lost_bytes(),
    })
}

fn session(entry: session_entry::Reader<'_>) -> capnp::Result<SessionInfo> {
    Ok(SessionInfo {
        number: entry.get_number(),
        kind: match entry.get_kind()? {
            WireKind::Exec => SessionKind::Exec,
            WireKind::Attach => SessionKind::Attach,
            WireKind::PortForward => SessionKind::PortForward,
            WireKind::ExecSync => SessionKind::ExecSync,
        },
        state: match entry.get_state()? {
            WireSessionState::Waiting => SessionState::Waiting,
            WireSessionState::Active => SessionState::Active,
            WireSessionState::Detached => SessionState::Detached,
            WireSessionState::Ended => SessionState::Ended,
        },
        transport: match entry.get_transport()? {
            WireTransport::None => SessionTransport::None,
            WireTransport::WebSocket => SessionTransport::WebSocket,
            WireTransport::Spdy => SessionTransport::Spdy,
            WireTransport::Tunnel => SessionTransport::Tunnel,
            WireTransport::AttachSocket => SessionTransport::AttachSocket,
        },
        id: entry.get_id()?.to_string()?,
        pod_id: entry.get_pod_id()?.to_string()?,
        peer: entry.get_peer()?.to_string()?,
        pid: entry.get_pid(),
        exit_code: entry.get_exited().then(|| entry.get_exit_code()),
        created_at: entry.get_created_at(),
        ended_at: (entry.get_ended_at() > 0).then(|| entry.get_ended_at()),
        received_bytes: entry.get_received_bytes(),
        sent_bytes: entry.get_sent_bytes(),
    })
}
