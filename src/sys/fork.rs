//! What holdfast does to processes: becoming a daemon, protecting itself, and giving children back what it took.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _, Write as _},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        stat::{Mode, umask},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid},
};

use super::{SysError, fd};

mod child_setup;

pub use child_setup::ChildSetup;

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// Never chosen by the OOM killer (proc_pid_oom_score_adj(5)).
const OOM_PROTECTED: &str = "-1000";

/// First byte on the readiness pipe; the reason of a failure follows `FAILED`.
const READY: u8 = b'+';
const FAILED: u8 = b'-';

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Daemonised {
    /// The process that the starter waits for, with how the start went; all that is left for it is to end.
    Parent(Result<(), StartFailure>),
    /// The daemon, which has to tell the parent how its start goes.
    Child(Readiness),
}

/// What the daemon said when it could not start, or how it ended without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure(String);

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartFailure {}

/// The daemon's promise to its waiting parent. Dropping it without a word means that the start failed.
#[derive(Debug)]
pub struct Readiness {
    pipe: File,
}

impl Readiness {
    /// Lets the parent end with success.
    pub fn ready(self) {
        self.tell(READY, "");
    }

    /// Lets the parent print why there is no daemon, and end with failure.
    pub fn failed(self, reason: &str) {
        self.tell(FAILED, reason);
    }

    fn tell(mut self, kind: u8, text: &str) {
        let mut message = vec![kind];
        message.extend_from_slice(text.as_bytes());
        // An error means that the parent was killed: then nobody waits for the answer.
        let _ = self.pipe.write_all(&message);
    }
}

/// Forks; the child goes to the background: its own session, working directory `/`, standard streams on `/dev/null`.
/// The parent waits until the child has said how its start went.
///
/// With `keep_stdio` (the daemon logs to standard output) only standard input is replaced.
///
/// To be called while there is one thread, so before any runtime. One fork is enough: a session leader without a
/// terminal gets one only by opening one without `O_NOCTTY`, which nothing here does.
///
/// # Errors
/// In the parent alone: no pipe or no process to be had. What fails in the child reaches the parent as a failed start.
pub fn daemonise(keep_stdio: bool) -> Result<Daemonised, SysError> {
    let (read, write) = fd::pipe_cloexec()?;
    // SAFETY: the process has one thread, so the child may do whatever it likes.
    match unsafe { fork() }.map_err(|errno| SysError::new("fork", errno))? {
        ForkResult::Parent { child } => {
            drop(write); // Else the read end would never see the end.
            Ok(Daemonised::Parent(await_readiness(File::from(read), child)))
        }
        ForkResult::Child => {
            drop(read);
            let readiness = Readiness { pipe: File::from(write) };
            if let Err(error) = detach(keep_stdio) {
                readiness.failed(&error.to_string());
                // SAFETY: always safe. Nothing here has anything to clean up, and the parent tells the reason.
                unsafe { libc::_exit(1) }
            }
            Ok(Daemonised::Child(readiness))
        }
    }
}

fn detach(keep_stdio: bool) -> Result<(), SysError> {
    const NULL: &str = "/dev/null";
    setsid().map_err(|errno| SysError::new("start a session", errno))?;
    // A working directory would keep its mount busy for as long as the pod lives.
    chdir("/").map_err(|errno| SysError::at("change directory to", "/", errno))?;
    let null = open(NULL, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    let null = null.map_err(|errno| SysError::at("open", NULL, errno))?;
    let error = |errno| SysError::new("replace a standard stream", errno);
    dup2_stdin(&null).map_err(error)?;
    if !keep_stdio {
        dup2_stdout(&null).map_err(error)?;
        dup2_stderr(&null).map_err(error)?;
    }
    Ok(())
}

fn await_readiness(mut pipe: File, child: Pid) -> Result<(), StartFailure> {
    let mut message = Vec::new();
    if let Err(error) = pipe.read_to_end(&mut message) {
        return Err(StartFailure(format!("cannot read how the start of the daemon went: {error}")));
    }
    match message.split_first() {
        Some((&READY, _)) => Ok(()),
        Some((_, reason)) => {
            // The daemon is about to end: who sees the failure shall not meet its remains.
            end_of(child);
            Err(StartFailure(String::from_utf8_lossy(reason).into_owned()))
        }
        None => Err(StartFailure(format!("the daemon {} before it was ready", end_of(child)))),
    }
}

fn end_of(child: Pid) -> String {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => return format!("ended with exit code {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => return format!("was killed by {signal}"),
            Ok(_) | Err(_) => return "ended".to_owned(),
        }
    }
}

/// What [`claim_process`] found and changed.
#[derive(Debug)]
pub struct Claimed {
    /// What the daemon's children get back.
    pub child_setup: ChildSetup,
    /// Whether the daemon is now protected from the OOM killer; the kernel may refuse, which is only worth a note.
    pub oom_protected: bool,
}

/// Makes this process fit for its work: umask 022 whatever the starter had, reaper of its descendants, protected from the
/// OOM killer if the kernel allows, and with all the descriptors it may have.
///
/// That `SIGPIPE` is ignored needs no call: Rust does so before `main` (and gives children the default action back).
///
/// # Errors
/// When the kernel refuses one of them (but the OOM protection).
pub fn claim_process() -> Result<Claimed, SysError> {
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    become_subreaper()?;
    let oom_score_adj = protect_oom()?;
    let oom_protected = oom_score_adj.is_some();
    Ok(Claimed { child_setup: ChildSetup::new(fd::raise_nofile()?, oom_score_adj), oom_protected })
}

/// Makes orphaned descendants our children, so that their statuses reach us (PR_SET_CHILD_SUBREAPER, prctl(2)).
pub(crate) fn become_subreaper() -> Result<(), SysError> {
    nix::sys::prctl::set_child_subreaper(true).map_err(|errno| SysError::new("become the reaper of orphans", errno))
}

/// Takes this process off the OOM killer's list: containers shall die before what watches them.
///
/// Returns the old value if it was changed; `None` where that takes a privilege that we lack, or was so already.
pub(crate) fn protect_oom() -> Result<Option<String>, SysError> {
    let error = |op| move |error: io::Error| SysError::io(op, OOM_SCORE, &error);
    let old = std::fs::read_to_string(OOM_SCORE).map_err(error("read"))?.trim().to_owned();
    if old == OOM_PROTECTED {
        return Ok(None);
    }
    match std::fs::write(OOM_SCORE, OOM_PROTECTED) {
        Ok(()) => Ok(Some(old)),
        Err(refused) if refused.kind() == io::ErrorKind::PermissionDenied => Ok(None), // EACCES or EPERM
        Err(other) => Err(error("write")(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the parent learns of a daemon that runs `body` and ends with exit code 3.
    fn parent_of(keep_stdio: bool, body: impl FnOnce(Readiness)) -> Result<(), StartFailure> {
        match daemonise(keep_stdio).unwrap() {
            Daemonised::Parent(verdict) => verdict,
            Daemonised::Child(readiness) => {
                body(readiness);
                // SAFETY: always safe; skips the test harness' own exit.
                unsafe { libc::_exit(3) }
            }
        }
    }

    /// What `body` says when it runs in a process of its own, where no other test opens or closes descriptors.
    pub(super) fn alone(body: impl FnOnce() -> String) -> String {
        parent_of(true, |readiness| readiness.failed(&body())).unwrap_err().to_string()
    }

    fn reason(text: &str) -> Result<(), StartFailure> {
        Err(StartFailure(text.to_owned()))
    }

    #[test]
    fn the_parent_learns_how_the_start_went() {
        assert_eq!(parent_of(false, Readiness::ready), Ok(()));
        assert_eq!(parent_of(false, |readiness| readiness.failed("no socket")), reason("no socket"));
        assert_eq!(parent_of(false, drop), reason("the daemon ended with exit code 3 before it was ready"));
        let killed = parent_of(false, |_readiness| {
            let _ = nix::sys::signal::raise(nix::sys::signal::SIGKILL);
        });
        assert_eq!(killed, reason("the daemon was killed by SIGKILL before it was ready"));
    }

    #[test]
    fn the_daemon_leads_a_session_in_the_root_directory_without_the_starters_streams() {
        let facts = |readiness: Readiness| {
            let link = |fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
            let leads = nix::unistd::getsid(None) == Ok(nix::unistd::getpid());
            let streams = [0, 1, 2].map(link);
            readiness.failed(&format!("{leads} {:?} {streams:?}", std::env::current_dir().unwrap_or_default()));
        };
        let detached = parent_of(false, facts).unwrap_err().to_string();
        assert_eq!(detached, r#"true "/" ["/dev/null", "/dev/null", "/dev/null"]"#);
        let ours = [1, 2].map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap());
        let kept = parent_of(true, facts).unwrap_err().to_string();
        assert_eq!(kept, format!(r#"true "/" ["/dev/null", {:?}, {:?}]"#, ours[0], ours[1]));
    }

    #[test]
    fn protecting_tells_the_old_score_or_that_it_was_refused() {
        // In a child: the protection would hold for all tests.
        let body = |readiness: Readiness| {
            let before = std::fs::read_to_string(OOM_SCORE).unwrap_or_default();
            let outcome = protect_oom();
            let after = std::fs::read_to_string(OOM_SCORE).unwrap_or_default();
            readiness.failed(&format!("{} {} {outcome:?}", before.trim(), after.trim()));
        };
        let told = parent_of(false, body).unwrap_err().to_string();
        let mut words = told.splitn(3, ' ');
        let (before, after, outcome) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        match outcome {
            "Ok(None)" => assert_eq!(before, after),
            changed => {
                assert_eq!(changed, format!("Ok(Some({before:?}))"));
                assert_eq!(after, OOM_PROTECTED);
            }
        }
    }
}
