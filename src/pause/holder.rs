//! The pause process as the daemon sees it: started, talked to, watched, stopped. See `init.rs` for the other side.

use std::{
    ffi::OsString,
    fs,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use bytes::BytesMut;

use super::{Error, init, request::Request};
use crate::{
    container::Pod,
    io::fd::AsyncFile,
    model::ExitStatus,
    process::{Foreign, Process, kill_late},
    sys::{
        SysError,
        fd::{self, pipe_cloexec},
    },
};

/// Ourselves, whatever has become of the file that we were started from.
const OURSELVES: &str = "/proc/self/exe";
/// How long starting it may take: that reads a file system.
const SPAWN_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take from its start until it holds the namespaces.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end after SIGTERM.
const TERM_GRACE: Duration = Duration::from_millis(500);
/// A longer line does not come from a pause process.
const LINE_LIMIT: usize = 4096;

/// A pause process.
#[derive(Debug)]
pub(super) enum Holder {
    /// Our child.
    Own(Process),
    /// An earlier daemon's, which did not live to stop it.
    Inherited(Foreign),
}

impl Holder {
    /// The pause process that an earlier daemon started for the same request, if this number is one.
    pub(super) fn inherited(pid: u32, request: &Request) -> Result<Option<Self>, Error> {
        let Some(process) = Foreign::open(pid)? else { return Ok(None) };
        // Held, so the number is still its own. What has ended has no command line.
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return Ok(None) };
        let words = |count: usize| line.split(|byte| *byte == 0).skip(1).take(count);
        let arguments = request.arguments();
        let begins = |with: &[OsString]| words(with.len()).eq(with.iter().map(|word| word.as_bytes()));
        // The first three name base path and pod.
        if !begins(&arguments[..3]) {
            return Ok(None);
        }
        let all = line.split(|byte| *byte == 0).count() == arguments.len() + 2;
        if all && begins(&arguments) { Ok(Some(Self::Inherited(process))) } else { Err(Error::HeldOtherwise(pid)) }
    }

    /// Waits for its end. Cancel safe.
    pub(super) async fn ended(&self) -> Option<ExitStatus> {
        match self {
            Self::Own(process) => Some(process.wait().await),
            Self::Inherited(process) => {
                process.ended().await;
                None
            }
        }
    }

    /// Ends it.
    pub(super) async fn stop(&self, grace: bool) {
        if grace {
            self.signal(libc::SIGTERM);
            if tokio::time::timeout(TERM_GRACE, self.ended()).await.is_ok() {
                return;
            }
        }
        self.signal(libc::SIGKILL);
        // Ends at once, unless the kernel has stuck.
        let _ = tokio::time::timeout(TERM_GRACE, self.ended()).await;
    }

    fn signal(&self, signal: i32) {
        match self {
            Self::Own(process) => process.signal(signal),
            Self::Inherited(process) => process.signal(signal),
        }
    }
}

/// A pause process whose namespaces are not pinned yet. Dropping it ends it.
pub(super) struct Starting {
    /// `None` once it has been let go.
    process: Option<Process>,
    commands: AsyncFile,
}

impl Starting {
    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Process::pid)
    }

    /// Tells it that it is needed.
    pub(super) async fn keep(mut self) -> Result<Holder, Error> {
        go(&self.commands).await?;
        self.process.take().map(Holder::Own).ok_or(Error::Silent)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            process.signal(libc::SIGKILL);
        }
    }
}

/// Ends with its group: what it has started, and has not been told to go on alone.
struct Helper(Process);

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.kill_group();
    }
}

/// Starts a pause process in its new namespaces.
pub(super) async fn start(request: &Request, pod: &Pod) -> Result<Starting, Error> {
    // Its number is only known when it has told it.
    let _launching = pod.runtime.processes.launching();
    fd::room()?;
    let (stdin, commands) = pipe_cloexec()?;
    let (reports, stdout) = pipe_cloexec()?;
    let helper = spawn(request, pod, stdin, stdout).await?;
    let commands = AsyncFile::pipe_writer(commands)?;
    let reports = Reports { pipe: AsyncFile::pipe_reader(reports)?, rest: BytesMut::new() };
    let started = tokio::time::timeout(START_LIMIT, enter(request, pod, &helper.0, &commands, reports)).await;
    let process = started.map_err(|_| Error::Silent)??;
    Ok(Starting { process: Some(process), commands })
}

async fn spawn(request: &Request, pod: &Pod, stdin: OwnedFd, stdout: OwnedFd) -> Result<Helper, Error> {
    let program = Path::new(OURSELVES);
    let mut command = Command::new(program);
    // By the name that we have ourselves, so that who looks for our processes finds it too.
    command.arg0(std::env::args_os().next().unwrap_or_else(|| "holdfast".into()));
    // Variables are options too, and not meant for it.
    command.args(request.arguments()).env_clear().process_group(0);
    command.stdin(stdin).stdout(stdout).stderr(Stdio::null());
    pod.runtime.setup.apply(&mut command);
    let undo = |spawned: std::io::Result<std::process::Child>| {
        if let Ok(late) = spawned {
            kill_late(&late);
        }
    };
    let child = pod.blocking.run("start", program, SPAWN_LIMIT, move || command.spawn(), undo).await?;
    let child = child.map_err(|error| SysError::io("start the pause process", program, &error))?;
    Ok(Helper(Process::adopt(&pod.runtime.processes, child.id())?))
}

/// Everything until the namespaces are held.
async fn enter(
    request: &Request,
    pod: &Pod,
    helper: &Process,
    commands: &AsyncFile,
    mut reports: Reports,
) -> Result<Process, Error> {
    if reports.next().await? != init::UNSHARED {
        return Err(Error::Silent);
    }
    map_ids(request, helper.pid())?;
    go(commands).await?;
    let line = reports.next().await?;
    let pid = line.strip_prefix(init::HOLDING).and_then(|pid| pid.parse().ok()).ok_or(Error::Silent)?;
    // Only when its parent has ended it is ours.
    helper.wait().await;
    Ok(Process::adopt(&pod.runtime.processes, pid)?)
}

/// Groups first: the other order needs `setgroups` to be denied where the writer has no privilege (user_namespaces(7)).
fn map_ids(request: &Request, pid: u32) -> Result<(), Error> {
    for (file, mappings) in [("gid_map", &request.gid_mappings), ("uid_map", &request.uid_mappings)] {
        if mappings.is_empty() {
            continue;
        }
        let lines: Vec<_> = mappings.iter().map(ToString::to_string).collect();
        let path = format!("/proc/{pid}/{file}");
        // In one write: the kernel takes no second one.
        fs::write(&path, lines.join("\n")).map_err(|error| Error::Mapping(SysError::io("write", path, &error)))?;
    }
    Ok(())
}

async fn go(commands: &AsyncFile) -> Result<(), Error> {
    // A pipe has room for one byte: an error means that nobody will read it.
    commands.write(b"+").await.map(drop).map_err(|_| Error::Silent)
}

/// What the pause process says, line by line.
struct Reports {
    pipe: AsyncFile,
    rest: BytesMut,
}

impl Reports {
    async fn next(&mut self) -> Result<String, Error> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.rest) {
                let line = String::from_utf8_lossy(&self.rest.split_to(end + 1)[..end]).into_owned();
                return match line.strip_prefix(init::FAILED) {
                    Some(reason) => Err(Error::Refused(reason.to_owned())),
                    None => Ok(line),
                };
            }
            let read = self.pipe.read(&mut self.rest, LINE_LIMIT).await;
            if self.rest.len() > LINE_LIMIT || !read.is_ok_and(|count| count > 0) {
                return Err(Error::Silent);
            }
        }
    }
}
