//! The root owner: builds, runs and shuts down everything.

use std::{
    fs::{self, File},
    os::unix::net::UnixListener as StdUnixListener,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::{
    net::UnixListener,
    runtime::{Builder, LocalOptions},
    signal::unix::{SignalKind, signal},
    sync::OnceCell,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    config::Config,
    container::Pod,
    io::blocking::Blocking,
    oci::Runtime,
    pause::Namespaces,
    process::Processes,
    rpc::{ControlServer, Services},
    session::SessionTable,
    shutdown::{Phase, ShutdownHandle},
    sys::{
        self, SysError, socket,
        socket_file::{SocketFile, remove_stale},
    },
    telemetry::{counters::Counters, traces::Traces},
    transport::{AttachSockets, FdSocket, StreamError, StreamServer},
};

// What the sub-command `pause` does instead.
pub use crate::pause::{HoldError, hold as hold_namespaces};
// What a binary does to its process before there is a daemon in it.
pub use crate::sys::{
    fd::close_inherited,
    fork::{ChildSetup, Claimed, Daemonised, Readiness, StartFailure, claim_process, daemonise},
};

/// The control socket is the pod's alone: whoever may connect may run anything in its containers.
const SOCKET_MODE: u32 = 0o700;
/// How long the exits of killed containers may take, within the total deadline.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How often containers that came to be meanwhile are looked for.
const KILL_PASS: Duration = Duration::from_millis(50);
/// How long sessions may take to tell their clients the end.
const SESSIONS_LIMIT: Duration = Duration::from_secs(1);
/// How long jobs of the pool that are still stuck are waited for.
const POOL_SHUTDOWN: Duration = Duration::from_millis(100);

/// What a daemon starts with.
#[derive(Debug)]
pub struct Start {
    /// Its settings.
    pub config: Config,
    /// What its children get back.
    pub child_setup: ChildSetup,
}

/// Why a daemon did not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another one serves the directory.
    #[error(
        "another daemon already serves {}: use it, stop it first (SIGTERM), or choose another --runtime-dir",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something that is no socket has the control socket's name.
    #[error("{} is in the way: it is no socket, so it is not removed", .0.display())]
    InTheWay(PathBuf),
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Streams cannot be served as they were asked for.
    #[error(transparent)]
    Streams(#[from] StreamError),
    /// It listens, but its starter cannot be told.
    #[error("{0}")]
    Ready(String),
    /// Containers or sessions were still there at the deadline.
    #[error("the shutdown did not finish within {} s", .0.as_secs_f32())]
    Deadline(Duration),
}

/// Runs a daemon until it has shut down; calls `ready` once the control socket listens.
///
/// # Errors
/// When it could not start, or not shut down in time.
pub fn run(start: Start, ready: impl FnOnce() -> Result<(), String>) -> Result<(), StartError> {
    sys::heap::one_arena();
    let config = Rc::new(start.config);
    // Held until the end: two daemons that start at once must not both find the directory free.
    let _lock = lock(&config.runtime_dir)?;
    let socket = ControlSocket::bind(config.control_socket())?;
    sweep(&config);
    let mut builder = Builder::new_current_thread();
    builder.enable_all();
    let runtime = builder.build_local(LocalOptions::default());
    let runtime = runtime.map_err(|e| SysError::from_io("start the event loop", &e))?;
    let blocking = Blocking::new();
    let result = runtime.block_on(serve(&config, start.child_setup, blocking.clone(), socket, ready));
    drop(runtime);
    // Those that hang end with the process.
    blocking.finish(POOL_SHUTDOWN);
    result
}

async fn serve(
    config: &Rc<Config>,
    setup: ChildSetup,
    blocking: Blocking,
    socket: ControlSocket,
    ready: impl FnOnce() -> Result<(), String>,
) -> Result<(), StartError> {
    let counters = Rc::<Counters>::default();
    let processes = Processes::new(counters.clone());
    let runtime = Runtime {
        path: config.runtime.clone(),
        root: config.runtime_root.clone(),
        directory: config.runtime_dir.clone(),
        limit: config.runtime_limit,
        setup,
        processes: processes.clone(),
        blocking: blocking.clone(),
        cgroup_option: OnceCell::new(),
    };
    let pod = Pod::new(config.clone(), runtime, blocking, counters.clone());
    pod.scope.spawn(processes.reap_orphans());
    pod.scope.spawn(pod.heap.clone().give_back());
    let sessions = SessionTable::new(config.streams.session_limit, pod.heap.clone());
    let streams = StreamServer::new(pod.clone(), sessions.clone())?;
    let attach = AttachSockets::new(pod.clone(), sessions.clone());
    let namespaces = Namespaces::new(pod.clone());
    let fds = FdSocket::new(pod.clone());
    let traces = Rc::new(Traces::start(config.tracing.as_deref()));
    let services = Services {
        pod: pod.clone(),
        streams: streams.clone(),
        attach: attach.clone(),
        sessions,
        captures: Rc::default(),
        namespaces: namespaces.clone(),
        fds: fds.clone(),
        traces: traces.clone(),
    };
    let control = ControlServer::new(Rc::new(services));
    let shutdown = ShutdownHandle::new();
    watch_signals(&pod, &shutdown)?;
    let listener = socket.listener()?;
    ready().map_err(StartError::Ready)?;
    tracing::info!(pid = std::process::id(), directory = %config.runtime_dir.display(), "serving");
    tokio::select! {
        () = control.run(&listener) => {}
        () = shutdown.reached(Phase::Draining) => {}
    }
    drop(listener);
    fds.close();
    let stopped = stop(config, &pod, (&streams, &attach), &namespaces, &shutdown).await;
    control.close();
    drop(socket);
    shutdown.advance(Phase::Closed);
    if !shutdown.is_hurried() {
        traces.flush().await;
    }
    for (name, value) in counters.entries().into_iter().filter(|(_, value)| *value > 0) {
        tracing::info!(value, "counted in all: {name}");
    }
    tracing::info!("stopped");
    stopped
}

/// SIGTERM and SIGINT ask for the shutdown, and a second one for haste.
fn watch_signals(pod: &Rc<Pod>, shutdown: &ShutdownHandle) -> Result<(), StartError> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(|e| SysError::from_io("watch for signals", &e))?;
        let shutdown = shutdown.clone();
        pod.scope.spawn(async move {
            while signals.recv().await.is_some() {
                shutdown.request();
            }
        });
    }
    Ok(())
}

/// The phases of the shutdown, in this order, within the total deadline.
async fn stop(
    config: &Config,
    pod: &Rc<Pod>,
    (streams, attach): (&StreamServer, &AttachSockets),
    namespaces: &Namespaces,
    shutdown: &ShutdownHandle,
) -> Result<(), StartError> {
    tracing::info!(phase = ?Phase::Draining, "shutting down");
    pod.close();
    streams.stop_accepting();
    if !config.stop_grace.is_zero() {
        tokio::select! {
            ended = timeout(config.stop_grace, passes(pod, Pod::terminate_all)) => {
                tracing::info!(grace = ?config.stop_grace, complete = ended.is_ok(), "containers told to end");
            }
            () = shutdown.hurried() => {}
        }
    }
    // Who could not wait for the grace wants the containers killed, not left behind.
    let grace_skipped = shutdown.is_hurried();
    let deadline = Instant::now() + config.shutdown_timeout;
    shutdown.advance(Phase::Killing);
    let killing = async { tokio::join!(passes(pod, Pod::kill_all), pod.kill_strays()) };
    let limit = deadline.min(Instant::now() + KILL_LIMIT);
    let killed = tokio::select! {
        done = timeout_at(limit, killing) => done.is_ok(),
        () = shutdown.hurried(), if !grace_skipped => false,
    };
    tracing::info!(phase = ?Phase::Killing, complete = killed, "containers and execs ended");
    if !killed {
        pod.name_left().await;
    }
    if !shutdown.is_hurried() {
        let ended = async { tokio::join!(streams.sessions_ended(), attach.sessions_ended()) };
        let _ = timeout(SESSIONS_LIMIT, ended).await;
    }
    namespaces.close(!shutdown.is_hurried()).await;
    pod.scope.cancel();
    if killed { Ok(()) } else { Err(StartError::Deadline(config.shutdown_timeout)) }
}

/// Does it again and again until nothing is left: a create that was under way may only now have a container.
async fn passes(pod: &Pod, end: impl Fn(&Pod)) {
    while !pod.is_empty() {
        end(pod);
        sleep(KILL_PASS).await;
    }
}

/// Locks the directory itself, so that no further file is needed and nothing stale can remain.
fn lock(directory: &Path) -> Result<Option<Flock<File>>, StartError> {
    let file = File::open(directory).map_err(|e| SysError::io("open", directory, &e))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Err(StartError::InUse(directory.to_owned())),
        // A file system without locks: the probe of the socket has to do.
        Err((_, errno)) => {
            tracing::warn!(error = %SysError::at("lock", directory, errno), "going on without a lock");
            Ok(None)
        }
    }
}

/// The descriptor socket and the pidfiles of execs that an earlier daemon did not live to remove.
fn sweep(config: &Config) {
    match remove_stale(&config.fd_socket()) {
        Ok(true) => {}
        Ok(false) => tracing::warn!(path = %config.fd_socket().display(), "no socket, so it is not removed"),
        Err(error) => tracing::warn!(%error, "there will be no descriptor socket"),
    }
    let Ok(entries) = fs::read_dir(&config.runtime_dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(Pod::is_stale_pidfile) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The control socket; its file is removed at the end if it is still ours.
#[derive(Debug)]
struct ControlSocket {
    file: SocketFile,
    listener: StdUnixListener,
}

impl ControlSocket {
    fn bind(path: PathBuf) -> Result<Self, StartError> {
        match socket::connect_stream(&path) {
            Ok(_) => return Err(StartError::InUse(path.parent().unwrap_or(&path).to_owned())),
            Err(error) if error.errno() == Errno::ENOENT => {}
            Err(_) if remove_stale(&path)? => {}
            Err(_) => return Err(StartError::InTheWay(path)),
        }
        let listener = socket::listen_stream(&path, SOCKET_MODE)?;
        Ok(Self { file: SocketFile::bound(path), listener })
    }

    fn listener(&self) -> Result<UnixListener, SysError> {
        let listener = self.listener.try_clone().and_then(UnixListener::from_std);
        listener.map_err(|e| SysError::io("listen on", self.file.path(), &e))
    }
}
