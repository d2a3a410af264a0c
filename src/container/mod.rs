//! The containers of a pod and the processes started in them.

mod bundle;
mod create;
mod exec;
mod exit_file;
mod finish;
mod records;
mod table;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    os::fd::OwnedFd,
    path::Path,
    rc::Rc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    create::{CreateRequest, LogSpec},
    exec::{Exec, ExecFacts},
    records::{Numbered, Records},
    table::{ContainerTable, Listed},
};
use crate::{
    config::Config,
    io::{
        blocking::{Blocking, BlockingError},
        heap::Heap,
        task::Scope,
    },
    log::{Log, LogError},
    model::{ContainerId, ExitStatus},
    oci::{LaunchError, Runtime},
    process::{Process, exec_cgroup::ExecCgroups, oom::Bells, stuck::Killed},
    stdio::{ReadAhead, ResizeError, Stdio},
    sys::SysError,
    telemetry::counters::Counters,
};

/// How long closing a client's descriptors is waited for.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What the containers of one daemon share.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) config: Rc<Config>,
    pub(crate) runtime: Runtime,
    pub(crate) blocking: Blocking,
    pub(crate) containers: Rc<ContainerTable>,
    pub(crate) read_ahead: Rc<ReadAhead>,
    pub(crate) oom_bells: Bells,
    pub(crate) counters: Rc<Counters>,
    pub(crate) heap: Rc<Heap>,
    /// Owns every task below, so that none depends on the client that caused it.
    pub(crate) scope: Scope,
    execs: RefCell<HashMap<u64, RunningExec>>,
    next_exec: Cell<u64>,
    closing: Cell<bool>,
}

/// An exec from its start until all its output has been read.
#[derive(Debug)]
struct RunningExec {
    process: Rc<Process>,
    /// Cancelled when the process has ended.
    gone: CancellationToken,
    stdio: Rc<Stdio>,
}

/// Why a container could not be made, found or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no container {0:?} is known here, or it has exited")]
    NotFound(ContainerId),
    #[error("container {0:?} exists already")]
    Exists(ContainerId),
    #[error("container {0:?} is still being created")]
    StillCreating(ContainerId),
    #[error("the daemon is shutting down")]
    Closing,
    #[error("the bundle cannot be read")]
    Bundle(#[source] SysError),
    #[error("the log cannot be opened")]
    Log(#[source] LogError),
    #[error("the log cannot be reopened")]
    Reopen(#[source] LogError),
    #[error("the container could not be created")]
    Launch(#[source] LaunchError),
    #[error("the container was created, but its streams could not be set up")]
    Streams(#[source] SysError),
    #[error(transparent)]
    Resize(#[from] ResizeError),
    #[error(transparent)]
    Blocking(#[from] BlockingError),
    /// The task that did the work was cancelled by the shutdown.
    #[error("the daemon ended before the work was done")]
    Abandoned,
}

/// ```text
/// Live ──init process ended──▶ Exiting ──log and files complete──▶ Exited
/// ```
/// *Created* and *running* cannot be told apart here: the engine itself runs the runtime's `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Live,
    Exiting,
    Exited(ExitStatus),
}

/// An OCI container created through us.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    birth: table::Birth,
    pub(crate) process: Rc<Process>,
    pub(crate) stdio: Rc<Stdio>,
    /// The container's stdin ends when the first attach client's does (the CRI's `stdin_once`).
    pub(crate) stdin_once: bool,
    log: Rc<Log>,
    /// `None` where none can be made.
    exec_cgroups: Option<ExecCgroups>,
    /// Of a pid namespace: whatever runs in it ends with its first process.
    leads_namespace: bool,
    told_to_end: Cell<bool>,
    state: watch::Sender<State>,
}

impl Container {
    /// Closes the log and opens its path anew, as after a rotation by the kubelet. Answers when every earlier line is in the
    /// old file and the new one is open.
    pub(crate) async fn reopen_log(&self) -> Result<(), Error> {
        self.log.reopen().await.map_err(Error::Reopen)
    }

    /// Whether its init process has not ended yet, as far as is known here.
    pub(crate) fn is_live(&self) -> bool {
        *self.state.borrow() == State::Live
    }

    /// Resolves with the exit status when everything that belongs to the exit is done.
    pub(crate) async fn exited(&self) -> ExitStatus {
        let mut state = self.state.subscribe();
        loop {
            if let State::Exited(status) = *state.borrow_and_update() {
                return status;
            }
            if state.changed().await.is_err() {
                return ExitStatus::Lost;
            }
        }
    }
}

impl Pod {
    pub(crate) fn new(config: Rc<Config>, runtime: Runtime, blocking: Blocking, counters: Rc<Counters>) -> Rc<Self> {
        Rc::new(Self {
            config,
            runtime,
            blocking,
            containers: Rc::default(),
            read_ahead: Rc::default(),
            oom_bells: Bells::default(),
            counters,
            heap: Rc::default(),
            scope: Scope::new(),
            execs: RefCell::default(),
            next_exec: Cell::new(0),
            closing: Cell::new(false),
        })
    }

    /// Closes descriptors that came from elsewhere. In the pool, since the last close of a file may wait for its file
    /// system; after a while nobody waits for that any more.
    pub(crate) async fn close_fds(&self, fds: Vec<OwnedFd>) {
        /// Whose file systems they are on is not known. This path is nowhere, so such jobs share a limit of their own.
        const ELSEWHERE: &str = "/dev/null/descriptors";
        if !fds.is_empty()
            && let Err(error) = self.blocking.run("close", Path::new(ELSEWHERE), CLOSE_LIMIT, || drop(fds), drop).await
        {
            tracing::warn!(%error, "descriptors of a client are not closed yet");
        }
    }

    /// Refuses new containers and execs from now on.
    pub(crate) fn close(&self) {
        self.closing.set(true);
    }

    /// Tells every container to end. Each is told once: another SIGTERM may mean haste to it.
    pub(crate) fn terminate_all(&self) {
        for container in self.containers.all() {
            if !container.told_to_end.replace(true) {
                container.process.signal(libc::SIGTERM);
            }
        }
    }

    /// Kills every container and exec at once.
    pub(crate) fn kill_all(&self) {
        for exec in self.execs.borrow().values() {
            exec.process.kill_group();
        }
        for container in self.containers.all() {
            container.process.kill_group();
        }
    }

    /// Kills what the end of a container's first process does not: all others, where that does not lead a pid namespace.
    /// Only the runtime knows which these are.
    pub(crate) async fn kill_strays(&self) {
        let sharing = self.containers.all().into_iter().filter(|container| !container.leads_namespace);
        join_all(sharing.map(async |container| self.runtime.kill_all(&container.id).await)).await;
    }

    /// Names in the log what is left of all that [`Pod::kill_all`] has killed.
    pub(crate) async fn name_left(&self) {
        let mut killed = Killed::default();
        killed.add_stuck_descendants();
        self.execs.borrow().values().for_each(|exec| killed.add_tree(&exec.process));
        for container in self.containers.all() {
            killed.add_tree(&container.process);
            container.exec_cgroups.iter().for_each(|cgroups| killed.add_cgroup(cgroups.directory()));
        }
        killed.name_left(&self.blocking, "of the pod").await;
    }

    /// Whether no container and no exec is left, nor a container being created. An exec that has ended counts no more when
    /// only its client holds it up, which may never read.
    pub(crate) fn is_empty(&self) -> bool {
        let over = |exec: &RunningExec| exec.gone.is_cancelled() && exec.stdio.is_held_up();
        self.containers.is_empty() && self.execs.borrow().values().all(over)
    }

    /// Pidfiles that an earlier daemon in the same directory left.
    pub(crate) fn is_stale_pidfile(name: &str) -> bool {
        (name.starts_with("exec_sync") || name.starts_with("exec_streaming")) && name.ends_with("pid")
    }
}
