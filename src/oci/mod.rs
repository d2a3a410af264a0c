//! Running the OCI runtime. Returns the raw ends of what it started; knows nothing of logs or clients.

pub(crate) mod argv;
mod capture;
mod console;
mod launch;
mod probe;

use std::{
    cell::Cell,
    ffi::OsString,
    fmt,
    io::Read as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use tokio::{sync::OnceCell, time::Instant};

use self::{
    argv::{CgroupManager, Global},
    capture::Capture,
    console::ConsoleSocket,
    launch::{Plan, Ran},
};
use crate::{
    io::{
        blocking::{Blocking, BlockingError},
        fd::Output,
    },
    model::{Chunk, ContainerId, ExitStatus, WindowSize, one_line},
    process::{AdoptError, Process, Processes, exec_cgroup::CgroupOption},
    sys::{SysError, fd::NoRoom, fork::ChildSetup, pty, random::random_hex},
};

/// How long reading or removing one pidfile may take.
const PIDFILE_LIMIT: Duration = Duration::from_secs(10);
/// How long `delete` of a half-made container may take.
const DELETE_LIMIT: Duration = Duration::from_secs(30);
/// How long killing all processes of a container may take.
const KILL_LIMIT: Duration = Duration::from_secs(5);
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The OCI runtime and all that every call of it needs.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) path: PathBuf,
    pub(crate) root: Option<PathBuf>,
    /// Where pidfiles of execs go.
    pub(crate) directory: PathBuf,
    /// The most any call may take (`RUNTIME_LIMIT`).
    pub(crate) limit: Duration,
    pub(crate) setup: ChildSetup,
    pub(crate) processes: Rc<Processes>,
    pub(crate) blocking: Blocking,
    /// What its `exec --cgroup` takes, once it was asked.
    pub(crate) cgroup_option: OnceCell<CgroupOption>,
}

/// What to create.
#[derive(Debug)]
pub(crate) struct CreateSpec {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) global_args: Vec<String>,
    pub(crate) command_args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cgroup_manager: CgroupManager,
    /// Given to the runtime from descriptor 3 on; gone after the create.
    pub(crate) additional_fds: Vec<OwnedFd>,
}

/// What to run in a container.
#[derive(Debug)]
pub(crate) struct ExecSpec {
    pub(crate) id: ContainerId,
    /// Not empty.
    pub(crate) command: Vec<String>,
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    /// For the runtime, not the command.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cgroup_manager: CgroupManager,
    pub(crate) purpose: Purpose,
}

/// Which kind of exec: it names the pidfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Sync,
    Streaming,
}

/// A process the runtime started for us.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Process,
    pub(crate) output: Output,
    /// The write end of its standard input pipe.
    pub(crate) stdin: Option<OwnedFd>,
    /// What it wrote while the runtime was still running.
    pub(crate) early: Vec<Chunk>,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The runtime refused.
    #[error("the runtime ended with {status}")]
    Runtime {
        status: ExitStatus,
        #[source]
        said: Option<Said>,
    },
    /// It never ran.
    #[error(transparent)]
    NotStarted(SysError),
    /// It did not end within the limit and was killed.
    #[error("the runtime did not answer in time and was killed")]
    TimedOut {
        #[source]
        said: Option<Said>,
    },
    /// It succeeded without sending the terminal it was asked for.
    #[error("the runtime did not send a terminal over the console socket")]
    NoTerminal,
    /// It succeeded, but what it wrote to the pidfile is no number.
    #[error("the runtime wrote no process number to {0}")]
    BadPidfile(PathBuf),
    /// It wrote so much before it ended that output of the process was dropped.
    #[error("the runtime wrote more than 1 MiB before it ended, so output was lost")]
    Flooded,
    #[error("the daemon is shutting down")]
    Closing,
    #[error("no process can be made for the runtime: the limit of processes (pids.max, RLIMIT_NPROC) is reached")]
    NoProcess,
    /// It was not even tried.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("the pidfile is wrong")]
    Adopt(#[from] AdoptError),
    #[error(transparent)]
    Blocking(#[from] BlockingError),
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl LaunchError {
    /// Whether there was a run of the runtime at all.
    fn has_run(&self) -> bool {
        !matches!(self, Self::NotStarted(_) | Self::NoProcess | Self::NoRoom(_) | Self::Closing)
    }

    /// For the daemon's own log: with its causes, but without what the runtime said, which may repeat the command or the
    /// environment of the process. Who made the call is told everything ([`one_line`]).
    pub(crate) fn without_words(&self) -> String {
        match self {
            Self::Runtime { .. } | Self::TimedOut { .. } => self.to_string(),
            other => one_line(other),
        }
    }
}

/// What the runtime said about its failure. Of an exec, no log may have it: see [`LaunchError::without_words`].
#[derive(thiserror::Error)]
#[error("{0}")]
pub(crate) struct Said(String);

impl Said {
    /// None if it said nothing.
    fn new(text: String) -> Option<Self> {
        (!text.is_empty()).then_some(Self(text))
    }

    pub(crate) fn contains(&self, text: &str) -> bool {
        self.0.contains(text)
    }
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Said({} bytes)", self.0.len())
    }
}

impl Runtime {
    /// Creates a container. It is *created*, not started: that is the engine's call.
    pub(crate) async fn create(&self, spec: &mut CreateSpec) -> Result<Started, LaunchError> {
        let launching = self.processes.launching();
        let pidfile = spec.bundle.join("pidfile");
        // One left from before would be believed.
        self.remove(&pidfile).await?;
        let console = spec.terminal.then(ConsoleSocket::listen).transpose()?;
        let socket = console.as_ref().map(ConsoleSocket::path);
        let global = self.global(spec.cgroup_manager);
        let argv = global.create(&spec.id, &spec.bundle, &pidfile, socket, &spec.global_args, &spec.command_args);
        let plan = Plan {
            program: &self.path,
            argv,
            env: &spec.env,
            stdin: spec.stdin && !spec.terminal,
            fds: std::mem::take(&mut spec.additional_fds),
            console: console.as_ref(),
            size: None,
            capture: Capture::of_runtime(),
            deadline: Instant::now() + self.limit,
            is_new: true,
        };
        let made = async {
            let ran = launch::run(plan, &self.processes, &self.blocking, &self.setup).await?;
            if let Some(terminal) = &ran.terminal {
                // Of an exec's terminal it is left to the kernel, whose default it is: that process may be running by now,
                // and have turned it off.
                pty::set_onlcr(terminal.as_fd())?;
            }
            let process = self.adopt(&pidfile).await?;
            Ok((ran, process))
        };
        let result = made.await;
        drop(launching);
        match result {
            Ok((ran, process)) => {
                let bytes = ran.capture.text().len();
                if bytes > 0 {
                    // Not what it said: a runtime told to be verbose repeats the environment.
                    tracing::debug!(bytes, "the runtime spoke while it created the container");
                }
                Ok(started(process, ran, Vec::new()))
            }
            Err(error) => {
                // A runtime that says no has cleaned up, and "exists already" must not cost anybody a container. One
                // that said yes, or was cut short, has made something that nobody will watch.
                let said_no = matches!(error, LaunchError::Runtime { status: ExitStatus::Exited(_), .. });
                if error.has_run() && !said_no {
                    self.delete(&spec.id, spec.cgroup_manager).await;
                }
                Err(error)
            }
        }
    }

    /// Starts a process in a container, by `deadline` at the latest, in the given sub-cgroup of the container's. A terminal
    /// gets the `size` that has been asked for by the time it is there.
    pub(crate) async fn exec(
        &self,
        spec: &ExecSpec,
        cgroup: Option<&str>,
        size: &Cell<Option<WindowSize>>,
        deadline: Option<Instant>,
    ) -> Result<Started, LaunchError> {
        let _launching = self.processes.launching();
        let purpose = match spec.purpose {
            Purpose::Sync => "exec_sync",
            Purpose::Streaming => "exec_streaming",
        };
        let pidfile = self.directory.join(format!("{purpose}{}pid", random_hex()?));
        let console = spec.terminal.then(ConsoleSocket::listen).transpose()?;
        let socket = console.as_ref().map(ConsoleSocket::path);
        let limit = Instant::now() + self.limit;
        let plan = Plan {
            program: &self.path,
            argv: self.global(spec.cgroup_manager).exec(&spec.id, &pidfile, socket, cgroup, &spec.command),
            env: &spec.env,
            stdin: spec.stdin && !spec.terminal,
            fds: Vec::new(),
            console: console.as_ref(),
            size: Some(size),
            capture: if spec.terminal { Capture::of_runtime() } else { Capture::of_exec() },
            deadline: deadline.map_or(limit, |d| d.min(limit)),
            is_new: true,
        };
        let result = launch::run(plan, &self.processes, &self.blocking, &self.setup).await;
        // Also after a failure: a runtime killed late may have started the process already.
        let process = self.adopt(&pidfile).await;
        if let Err(error) = self.remove(&pidfile).await {
            tracing::warn!(%error, "could not remove a pidfile");
        }
        match result {
            Ok(mut ran) => {
                let process = process?;
                if ran.terminal.is_none() && ran.capture.lost() {
                    process.kill_group();
                    return Err(LaunchError::Flooded);
                }
                let capture = std::mem::replace(&mut ran.capture, Capture::of_runtime());
                let early = if ran.terminal.is_some() { Vec::new() } else { capture.into_chunks() };
                Ok(started(process, ran, early))
            }
            Err(error) => {
                if let Ok(process) = process {
                    process.kill_group();
                }
                Err(error)
            }
        }
    }

    /// Deletes what a failed create may have left, as far as the runtime knows of it.
    pub(crate) async fn delete(&self, id: &ContainerId, cgroup_manager: CgroupManager) {
        if let Err(error) = self.plain_call(self.global(cgroup_manager).delete(id), DELETE_LIMIT).await {
            tracing::debug!(container = %id, error = one_line(&error), "could not delete a half-made container");
        }
    }

    /// Kills all processes of a container.
    pub(crate) async fn kill_all(&self, id: &ContainerId) {
        // The runtime knows how the cgroup is managed.
        if let Err(error) = self.plain_call(self.global(CgroupManager::Cgroupfs).kill_all(id), KILL_LIMIT).await {
            tracing::debug!(container = %id, error = one_line(&error), "could not kill all processes of a container");
        }
    }

    /// A call with neither input nor a process to take over.
    async fn plain_call(&self, argv: Vec<OsString>, limit: Duration) -> Result<Ran, LaunchError> {
        let plan = Plan {
            program: &self.path,
            argv,
            env: &[],
            stdin: false,
            fds: Vec::new(),
            console: None,
            size: None,
            capture: Capture::of_runtime(),
            deadline: Instant::now() + limit.min(self.limit),
            is_new: false,
        };
        launch::run(plan, &self.processes, &self.blocking, &self.setup).await
    }

    fn global(&self, cgroup_manager: CgroupManager) -> Global<'_> {
        let journal = Path::new(JOURNAL).exists();
        Global { runtime: &self.path, root: self.root.as_deref(), cgroup_manager, journal }
    }

    /// Takes over the process a pidfile names.
    async fn adopt(&self, pidfile: &Path) -> Result<Process, LaunchError> {
        let path = pidfile.to_owned();
        let text = self.blocking.run("read", pidfile, PIDFILE_LIMIT, move || read_pidfile(&path), drop).await?;
        let text = text.map_err(|error| SysError::io("read", pidfile, &error))?;
        let pid = text.trim().parse().ok().filter(|&pid: &u32| pid > 1);
        let pid = pid.ok_or_else(|| LaunchError::BadPidfile(pidfile.to_owned()))?;
        Ok(Process::adopt(&self.processes, pid)?)
    }

    async fn remove(&self, path: &Path) -> Result<(), LaunchError> {
        let target = path.to_owned();
        let done = self.blocking.run("remove", path, PIDFILE_LIMIT, move || std::fs::remove_file(target), drop).await?;
        match done {
            Err(e) if !matches!(e.kind(), std::io::ErrorKind::NotFound) => Err(SysError::io("remove", path, &e).into()),
            _ => Ok(()),
        }
    }
}

/// At most a few bytes, and never stuck on something that is no file: the runtime may have left anything there.
fn read_pidfile(path: &Path) -> std::io::Result<String> {
    let file = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    file.take(64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn started(process: Process, ran: Ran, early: Vec<Chunk>) -> Started {
    let Ran { stdout, stderr, stdin, terminal, .. } = ran;
    let output = match terminal {
        Some(master) => Output::Terminal(master),
        None => Output::Pipes { stdout, stderr },
    };
    Started { process, output, stdin, early }
}
