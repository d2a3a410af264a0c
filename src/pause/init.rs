//! `holdfast pause`: the process that is the first in a pod's namespaces and holds them open.
//!
//! The daemon starts it with a pipe as standard input and one as standard output; each line below is one message.
//!
//! ```text
//! daemon                                helper (its child)                  pause process (the helper's child)
//!                      ◀── unshared ──  unshare(2)
//! writes uid_map, gid_map
//! go (1 byte)                      ──▶  becomes root of the user namespace
//!                   ◀── holding PID ──  forks, ends                         PID 1 where that is new
//! adopts PID, pins its namespaces
//! go (1 byte)                      ──────────────────────────────────────▶  closes both pipes, waits for signals
//! ```
//!
//! Whatever fails here is said as `failed REASON`. The end of standard input means that the daemon has given up or died:
//! then this ends too. Once the second go is there it outlives a daemon that dies, as the containers do.

use std::io::Write as _;

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::CloneFlags,
    sys::stat::Mode,
    unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, read, setsid},
};

use super::request::{Kind, Mapping, lowest_id};
use crate::{
    args::Pause,
    sys::{SysError, fd, namespace},
};

pub(super) const UNSHARED: &str = "unshared";
pub(super) const HOLDING: &str = "holding ";
pub(super) const FAILED: &str = "failed ";

/// Why the namespaces are not held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The command line is not the daemon's.
    #[error("--uid-mappings and --gid-mappings take \"CONTAINER_ID HOST_ID SIZE\"")]
    Mapping,
    /// Nobody is at the other end.
    #[error("nobody is at the other end of standard input: only a daemon uses this command")]
    Alone,
}

/// Makes the namespaces and holds them until a signal comes.
///
/// # Errors
/// When they could not be made, or the daemon went away before they were pinned. The daemon has been told.
pub fn hold(options: &Pause) -> Result<(), HoldError> {
    fd::close_inherited()?;
    let held = enter_and_wait(options);
    if let Err(error) = &held {
        tell(format_args!("{FAILED}{error}"));
    }
    held
}

fn enter_and_wait(options: &Pause) -> Result<(), HoldError> {
    let ids = |texts: &[String]| {
        let mappings = texts.iter().map(|text| text.parse()).collect::<Result<Vec<Mapping>, _>>();
        mappings.map(|mappings| lowest_id(&mappings)).map_err(|_| HoldError::Mapping)
    };
    let user = ids(&options.uid_mappings)?.zip(ids(&options.gid_mappings)?);
    namespace::unshare(flags(options))?;
    tell(format_args!("{UNSHARED}"));
    await_go()?;
    if let (true, Some((uid, gid))) = (options.user, user) {
        namespace::become_user(uid, gid)?;
    }
    // Always a further process, also without a new PID namespace: one way for all.
    if let Some(pid) = namespace::fork_single_threaded()? {
        tell(format_args!("{HOLDING}{pid}"));
        return Ok(());
    }
    namespace::block_signals()?;
    namespace::set_name(c"holdfast-pause")?;
    await_go()?;
    detach()?;
    Ok(namespace::serve_as_init()?)
}

fn flags(options: &Pause) -> CloneFlags {
    let asked = [options.ipc, options.pid, options.net, options.user, options.uts];
    let kinds = Kind::ALL.into_iter().zip(asked).filter(|(_, asked)| *asked);
    kinds.map(|(kind, _)| kind.flag()).collect()
}

fn tell(message: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout();
    // If nobody reads it, nobody waits for it either: standard input tells.
    let _ = writeln!(out, "{message}").and_then(|()| out.flush());
}

fn await_go() -> Result<(), HoldError> {
    loop {
        match read(std::io::stdin(), &mut [0]) {
            Err(Errno::EINTR) => {}
            Ok(1) => return Ok(()),
            Ok(_) | Err(_) => return Err(HoldError::Alone),
        }
    }
}

/// Leaves everything that is the daemon's: its session, its working directory, its pipes.
fn detach() -> Result<(), SysError> {
    const NULL: &str = "/dev/null";
    namespace::hide_memory()?;
    setsid().map_err(|errno| SysError::new("start a session", errno))?;
    chdir("/").map_err(|errno| SysError::at("change directory to", "/", errno))?;
    let null = open(NULL, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    let null = null.map_err(|errno| SysError::at("open", NULL, errno))?;
    let replaced = dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&null));
    replaced.map_err(|errno| SysError::new("replace a standard stream", errno))
}
