//! The legacy attach socket (control-api 4.4): packets over a unix socket whose file the caller names.
//!
//! ```text
//! attachContainer ──▶ AttachSockets::listen ──▶ Listening (one per container and path) ──▶ session::attach ⇄ client
//! ```
//!
//! A listener goes with its container, or earlier when its file has gone: the contract's own client removes the file when
//! it is done. Clients that are connected by then are not concerned.

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use tokio::{sync::Semaphore, task::yield_now, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    attach_client::{Reader, Writer},
    socket_file::{self, Bound},
};
use crate::{
    container::{Container, Pod},
    io::{
        blocking::BlockingError,
        seqpacket::{SeqpacketListener, SeqpacketStream},
        task::Scope,
    },
    model::Outcome,
    session::{
        AtStdinEnd, Carrier, SessionTable, Subject,
        attach::{self, Books, Patience, Policy},
        client::ClientWriter as _,
    },
    stdio::Wants,
    sys::{
        SysError,
        fd::{NoRoom, room},
        socket_file::Identity,
    },
};

/// Listeners of one container. Full: those whose file has gone are closed; if none has, the call fails.
const LISTENERS_PER_CONTAINER: usize = 16;
/// How long a file system may take over a socket's file.
const FILE_LIMIT: Duration = Duration::from_secs(10);
/// The pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client removes the file about when it closes: so long after a session its file is looked for.
const REMOVAL_PAUSE: Duration = Duration::from_secs(1);
/// The most connections that can have waited for a listener that ends: the kernel's bound of listen(2).
const BACKLOG: usize = 4096;

/// Why a socket cannot be attached to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("the container has exited")]
    Exited,
    #[error("{} is in use: another process or another container listens there, choose another path", .0.display())]
    InUse(PathBuf),
    #[error("{} is in the way: it is no socket, so it is not removed", .0.display())]
    InTheWay(PathBuf),
    #[error(
        "the container has {LISTENERS_PER_CONTAINER} attach sockets already: remove the file of one that is not needed"
    )]
    TooMany,
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Sys(#[from] SysError),
    #[error(transparent)]
    Blocking(#[from] BlockingError),
}

/// The attach sockets of a pod.
#[derive(Debug)]
pub(crate) struct AttachSockets {
    pod: Rc<Pod>,
    sessions: Rc<SessionTable>,
    containers: RefCell<Vec<Rc<ContainerSockets>>>,
    /// Owns listeners and sessions, which end with their containers.
    scope: Scope,
    /// Owns looks at files, which nobody waits for.
    looks: Scope,
}

/// The attach sockets of one container.
#[derive(Debug)]
struct ContainerSockets {
    container: Rc<Container>,
    listeners: RefCell<Vec<Rc<Listening>>>,
    /// One call at a time changes them.
    turn: Semaphore,
    /// A look at the files is coming.
    look_pending: Cell<bool>,
}

/// One listener.
#[derive(Debug)]
struct Listening {
    path: PathBuf,
    identity: Identity,
    /// Of the latest call; counts for clients that connect from then on.
    stop_after_stdin_eof: Cell<bool>,
    /// Its file has gone.
    closed: CancellationToken,
}

impl AttachSockets {
    /// `sessions` counts clients of all transports together.
    pub(crate) fn new(pod: Rc<Pod>, sessions: Rc<SessionTable>) -> Rc<Self> {
        let (scope, looks) = (pod.scope.child(), pod.scope.child());
        Rc::new(Self { pod, sessions, containers: RefCell::default(), scope, looks })
    }

    /// Listens at `path` for clients of the container; a listener of it that is there already goes on.
    ///
    /// `stop_after_stdin_eof`: the end of what a client sends is the end of the container's stdin.
    pub(crate) async fn listen(
        self: &Rc<Self>,
        container: &Rc<Container>,
        path: PathBuf,
        stop_after_stdin_eof: bool,
    ) -> Result<(), AttachError> {
        if !container.is_live() {
            return Err(AttachError::Exited);
        }
        room()?;
        let sockets = self.of(container);
        // Never closed, so it cannot fail.
        let _turn = sockets.turn.acquire().await;
        let known = sockets.at(&path);
        if known.is_none() && sockets.is_full() {
            self.close_vanished(&sockets).await;
            if sockets.is_full() {
                return Err(AttachError::TooMany);
            }
        }
        let bound = self.bind(&path, known.as_ref().map(|known| known.identity)).await?;
        let Bound::New { listening, identity } = bound else {
            if let Some(known) = known {
                known.stop_after_stdin_eof.set(stop_after_stdin_eof);
            }
            return Ok(());
        };
        let listener = match SeqpacketListener::new(listening) {
            Ok(listener) => listener,
            Err(error) => {
                self.remove(path, identity).await;
                return Err(error.into());
            }
        };
        if let Some(replaced) = known {
            sockets.close(&replaced);
        }
        tracing::debug!(path = %path.display(), "listening for attach clients");
        let listening = Rc::new(Listening {
            path,
            identity,
            stop_after_stdin_eof: Cell::new(stop_after_stdin_eof),
            closed: CancellationToken::new(),
        });
        sockets.listeners.borrow_mut().push(listening.clone());
        let span = tracing::info_span!("attach", container = %container.id);
        self.scope.spawn(self.clone().serve(sockets.clone(), listening, listener).instrument(span));
        Ok(())
    }

    /// The sockets of a container, which are forgotten at its exit.
    fn of(self: &Rc<Self>, container: &Rc<Container>) -> Rc<ContainerSockets> {
        let mut all = self.containers.borrow_mut();
        if let Some(sockets) = all.iter().find(|sockets| Rc::ptr_eq(&sockets.container, container)) {
            return sockets.clone();
        }
        let sockets = Rc::new(ContainerSockets {
            container: container.clone(),
            listeners: RefCell::default(),
            turn: Semaphore::new(1),
            look_pending: Cell::new(false),
        });
        all.push(sockets.clone());
        let (server, forgotten) = (self.clone(), sockets.clone());
        self.scope.spawn(async move {
            forgotten.container.exited().await;
            server.containers.borrow_mut().retain(|other| !Rc::ptr_eq(other, &forgotten));
        });
        sockets
    }

    async fn bind(&self, path: &Path, known: Option<Identity>) -> Result<Bound, AttachError> {
        let (job_path, undo_path) = (path.to_owned(), path.to_owned());
        let undo = move |bound: Result<Bound, AttachError>| {
            if let Ok(Bound::New { identity, .. }) = bound {
                socket_file::remove(&undo_path, identity);
            }
        };
        let job = move || socket_file::bind(&job_path, known);
        self.pod.blocking.run("make the attach socket", path, FILE_LIMIT, job, undo).await?
    }

    /// Accepts until the file or the container is gone.
    async fn serve(self: Rc<Self>, sockets: Rc<ContainerSockets>, own: Rc<Listening>, listener: SeqpacketListener) {
        let accepting = async {
            loop {
                match listener.accept().await {
                    Ok(stream) => self.connected(&sockets, &own, stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept an attach client");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
                // A crowd must not have the thread for itself.
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = own.closed.cancelled() => {}
            _ = sockets.container.exited() => self.remove(own.path.clone(), own.identity).await,
            () = accepting => {}
        }
        sockets.close(&own);
        // Whoever connected before is a client like the others.
        for _ in 0..BACKLOG {
            let Ok(Some(stream)) = listener.accept_now() else { break };
            self.connected(&sockets, &own, stream);
            yield_now().await;
        }
    }

    /// Subscribes the client at once, so that it misses nothing that comes from now on.
    fn connected(self: &Rc<Self>, sockets: &Rc<ContainerSockets>, own: &Listening, stream: SeqpacketStream) {
        let (server, sockets) = (self.clone(), sockets.clone());
        let terminal = sockets.container.stdio.is_terminal();
        let refusal = match room() {
            _ if self.sessions.is_full() => Some("too many sessions: try again later".to_owned()),
            Err(short) => Some(short.to_string()),
            Ok(()) => None,
        };
        if let Some(reason) = refusal {
            self.pod.counters.sessions_refused.increment();
            self.scope.spawn(async move {
                // A new socket has room for this, so it does not wait.
                let _ = Writer::new(&stream, terminal).finish(&Outcome::Failed(reason)).await;
                stream.close();
            });
            return;
        }
        let guard = self.sessions.enter(self.sessions.opening(Subject::Attach(sockets.container.id.clone())));
        guard.session().connected(Carrier::AttachSocket, None);
        let lag = attach::lag(self.pod.config.streams.attach_lag);
        let output = sockets.container.stdio.subscribe(Wants { stdout: true, stderr: true }, lag);
        let at_stdin_end = match own.stop_after_stdin_eof.get() && !terminal {
            true => AtStdinEnd::HalfClose,
            false => AtStdinEnd::Ignore,
        };
        // Without stdin its queue is closed, which refuses what comes.
        let policy = Policy { stdin: true, at_stdin_end, patience: Patience::UntilExit };
        let session = async move {
            let (mut reader, mut writer) = (Reader::new(&stream), Writer::new(&stream, terminal));
            let books = Books { counters: &server.pod.counters, session: guard.session() };
            attach::serve(books, &sockets.container, output, policy, &mut reader, &mut writer).await;
            stream.close();
            drop(guard);
            server.look_later(&sockets);
        };
        self.scope.spawn(session.in_current_span());
    }

    /// Looks in a moment whether the files of the listeners are still there.
    fn look_later(self: &Rc<Self>, sockets: &Rc<ContainerSockets>) {
        if sockets.look_pending.replace(true) {
            return;
        }
        let (server, sockets) = (self.clone(), sockets.clone());
        self.looks.spawn(async move {
            sleep(REMOVAL_PAUSE).await;
            sockets.look_pending.set(false);
            server.close_vanished(&sockets).await;
        });
    }

    /// Closes the listeners whose file is no longer theirs: nobody can connect to them any more.
    async fn close_vanished(&self, sockets: &ContainerSockets) {
        let listeners = sockets.listeners.borrow().clone();
        for listening in listeners {
            let path = listening.path.clone();
            let job = move || Identity::at(&path);
            let found = self.pod.blocking.run("look at", &listening.path, FILE_LIMIT, job, drop).await;
            // Without an answer nothing is known of it.
            if found.is_ok_and(|found| found != Some(listening.identity)) {
                tracing::debug!(path = %listening.path.display(), "the file of an attach socket has gone: closed");
                sockets.close(&listening);
            }
        }
    }

    /// Removes a socket's file if it is still ours.
    async fn remove(&self, path: PathBuf, identity: Identity) {
        let job_path = path.clone();
        let job = move || socket_file::remove(&job_path, identity);
        if let Err(error) = self.pod.blocking.run("remove the attach socket", &path, FILE_LIMIT, job, drop).await {
            tracing::warn!(%error, "an attach socket is left behind");
        }
    }

    /// Waits for the sessions to end by themselves.
    pub(crate) async fn sessions_ended(&self) {
        self.scope.join().await;
    }
}

impl ContainerSockets {
    fn at(&self, path: &Path) -> Option<Rc<Listening>> {
        self.listeners.borrow().iter().find(|listening| listening.path == path).cloned()
    }

    fn is_full(&self) -> bool {
        self.listeners.borrow().len() >= LISTENERS_PER_CONTAINER
    }

    fn close(&self, listening: &Rc<Listening>) {
        listening.closed.cancel();
        self.listeners.borrow_mut().retain(|other| !Rc::ptr_eq(other, listening));
    }
}
