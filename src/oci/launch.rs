//! One run of the OCI runtime: spawn, watch its pipes and its terminal, wait for its end, within a limit.

use std::{
    cell::Cell,
    ffi::OsString,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    pin::pin,
    process::{Command, Stdio},
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::time::{Instant, sleep, sleep_until};

use super::{LaunchError, Said, capture::Capture, console::ConsoleSocket};
use crate::{
    io::{blocking::Blocking, fd::AsyncFile},
    model::{ExitStatus, StdStream, WindowSize},
    process::{Process, Processes, kill_late, tree},
    sys::{
        SysError,
        fd::{self, pipe_cloexec},
        fork::ChildSetup,
        pty,
    },
};

/// One read of a pipe.
const READ_CHUNK: usize = 16 * 1024;
/// How long a full [`Capture`] may wait for the runtime's end before the runtime itself is taken for the flood.
const FLOOD_LIMIT: Duration = Duration::from_secs(5);
/// How long a killed runtime may take to end. Only one stuck in the kernel takes longer: the log names it, and
/// it is reaped when it does end.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Starting a program means reading it from a file system, which may hang.
const SPAWN_LIMIT: Duration = Duration::from_secs(30);

/// What to run and how.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) program: &'a Path,
    pub(super) argv: Vec<OsString>,
    pub(super) env: &'a [(String, String)],
    pub(super) stdin: bool,
    /// Become descriptor 3 and up of the runtime.
    pub(super) fds: Vec<OwnedFd>,
    pub(super) console: Option<&'a ConsoleSocket>,
    /// The size that the terminal gets as soon as it is here.
    pub(super) size: Option<&'a Cell<Option<WindowSize>>>,
    pub(super) capture: Capture,
    pub(super) deadline: Instant,
    /// Else it ends what is there, for which descriptors are kept.
    pub(super) is_new: bool,
}

/// A runtime that ended well, and what it left in our hands.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) stdout: AsyncFile,
    pub(super) stderr: AsyncFile,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) capture: Capture,
}

/// Runs the runtime to its end.
pub(super) async fn run(
    plan: Plan<'_>,
    processes: &Rc<Processes>,
    blocking: &Blocking,
    setup: &ChildSetup,
) -> Result<Ran, LaunchError> {
    // Nothing is awaited until the pipes are there, so those who start at once see each other's.
    if plan.is_new {
        fd::room()?;
    }
    let (stdout, child_stdout) = pipe_cloexec().map_err(LaunchError::NotStarted)?;
    let (stderr, child_stderr) = pipe_cloexec().map_err(LaunchError::NotStarted)?;
    let mut command = Command::new(plan.program);
    command.args(&plan.argv).envs(plan.env.iter().map(|(k, v)| (k, v)));
    command.stdout(child_stdout).stderr(child_stderr).process_group(0);
    let stdin = if plan.stdin {
        let (child_stdin, stdin) = pipe_cloexec().map_err(LaunchError::NotStarted)?;
        command.stdin(child_stdin);
        Some(stdin)
    } else {
        // Not ours: the daemon's own standard input is nobody else's.
        command.stdin(Stdio::null());
        None
    };
    setup.fd_map(&mut command, plan.fds).map_err(LaunchError::NotStarted)?;
    setup.apply(&mut command);
    let runtime = spawn(command, plan.program, processes, blocking).await?;
    let mut watch = Watch {
        stdout: Source::new(stdout, StdStream::Stdout)?,
        stderr: Source::new(stderr, StdStream::Stderr)?,
        capture: plan.capture,
        terminal: None,
    };
    let status = watch.until_exit(&runtime, plan.console, plan.size, plan.deadline, blocking).await?;
    if status != ExitStatus::Exited(0) {
        watch.drain();
        return Err(LaunchError::Runtime { status, said: Said::new(watch.capture.text()) });
    }
    if plan.console.is_some() && watch.terminal.is_none() {
        return Err(LaunchError::NoTerminal);
    }
    Ok(Ran {
        stdout: watch.stdout.file,
        stderr: watch.stderr.file,
        stdin,
        terminal: watch.terminal,
        capture: watch.capture,
    })
}

/// A runtime process that does not outlive its launch.
struct Runtime(Process);

impl Drop for Runtime {
    fn drop(&mut self) {
        self.0.kill_group();
    }
}

/// Starts the program. In the pool, because exec reads the file system; the child is collected by pidfd all the same.
async fn spawn(
    mut command: Command,
    program: &Path,
    processes: &Rc<Processes>,
    blocking: &Blocking,
) -> Result<Runtime, LaunchError> {
    let undo = |spawned: std::io::Result<std::process::Child>| {
        if let Ok(late) = spawned {
            kill_late(&late);
        }
    };
    // It may end before we learn its number: until then it must not be taken for an orphan.
    let _launching = processes.launching();
    let child = blocking.run("start", program, SPAWN_LIMIT, move || command.spawn(), undo).await?;
    let child = child.map_err(|error| match error.raw_os_error() {
        Some(libc::EAGAIN) => LaunchError::NoProcess,
        _ => LaunchError::NotStarted(SysError::io("start the runtime", program, &error)),
    })?;
    Ok(Runtime(Process::adopt(processes, child.id())?))
}

/// One of the runtime's two output pipes.
struct Source {
    file: AsyncFile,
    stream: StdStream,
    open: bool,
}

impl Source {
    fn new(fd: OwnedFd, stream: StdStream) -> Result<Self, SysError> {
        Ok(Self { file: AsyncFile::pipe_reader(fd)?, stream, open: true })
    }

    async fn read(&self) -> (StdStream, BytesMut) {
        let mut bytes = BytesMut::new();
        // An error here ends the pipe like its end does: the runtime's status decides what it means.
        let _ = self.file.read(&mut bytes, READ_CHUNK).await;
        (self.stream, bytes)
    }
}

struct Watch {
    stdout: Source,
    stderr: Source,
    capture: Capture,
    terminal: Option<OwnedFd>,
}

impl Watch {
    async fn until_exit(
        &mut self,
        runtime: &Runtime,
        console: Option<&ConsoleSocket>,
        size: Option<&Cell<Option<WindowSize>>>,
        deadline: Instant,
        blocking: &Blocking,
    ) -> Result<ExitStatus, LaunchError> {
        let mut exited = pin!(async {
            // What a failed runtime had started must not outlive it; once collected, its group's number is nobody's.
            if runtime.0.ended_uncollected().await.is_some_and(|status| status != ExitStatus::Exited(0)) {
                runtime.0.kill_group();
            }
            runtime.0.wait().await
        });
        let mut expired = pin!(sleep_until(deadline));
        let mut terminal = pin!(async {
            match console {
                Some(console) => console.receive().await,
                None => std::future::pending().await,
            }
        });
        let mut received = false;
        loop {
            let room = self.capture.has_room();
            tokio::select! {
                biased;
                result = &mut terminal, if !received => {
                    received = true;
                    let master = result?;
                    // Now, not when the runtime has ended: the process may be running by then.
                    if let Some(size) = size.and_then(Cell::get) {
                        let _ = pty::set_window_size(master.as_fd(), size);
                    }
                    self.terminal = Some(master);
                }
                status = &mut exited => return Ok(status),
                () = &mut expired => {
                    // Not its group alone: what it has started may be stuck while it is not.
                    let killed = tree::kill(&runtime.0, blocking).await;
                    killed.ended(KILL_LIMIT, blocking, "of the runtime").await;
                    self.drain();
                    return Err(LaunchError::TimedOut { said: Said::new(self.capture.text()) });
                }
                read = self.stdout.read(), if room && self.stdout.open => self.took(read).await,
                read = self.stderr.read(), if room && self.stderr.open => self.took(read).await,
                () = sleep(FLOOD_LIMIT), if !room => self.capture.give_up(),
            }
        }
    }

    async fn took(&mut self, (stream, bytes): (StdStream, BytesMut)) {
        if bytes.is_empty() {
            match stream {
                StdStream::Stdout => self.stdout.open = false,
                StdStream::Stderr => self.stderr.open = false,
            }
        } else {
            self.capture.push(stream, bytes);
            // tokio does not meter these reads: a runtime that never stops printing would have the thread for itself, and
            // not even its own deadline would be noticed.
            tokio::task::yield_now().await;
        }
    }

    /// Takes what an ended runtime left in its pipes, for the error text, without waiting for whoever else holds them.
    fn drain(&mut self) {
        self.capture.give_up();
        for source in [&self.stdout, &self.stderr] {
            // A pipe holds 64 KiB; whoever refills it while we read is not the runtime.
            for _ in 0..8 {
                let mut bytes = BytesMut::new();
                match source.file.read_now(&mut bytes, READ_CHUNK) {
                    Ok(Some(count)) if count > 0 => self.capture.push(source.stream, bytes),
                    _ => break,
                }
            }
        }
    }
}
