//! What children of the daemon get back, and which descriptors they get.

use std::{
    ffi::CStr,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit},
};

use crate::sys::{
    SysError,
    fd::{self, FileLimit},
};

const OOM_SCORE: &CStr = c"/proc/self/oom_score_adj";

/// What the daemon changed about itself and its children shall not inherit.
#[derive(Debug, Clone)]
pub struct ChildSetup {
    nofile: FileLimit,
    /// Only if we changed it.
    oom_score_adj: Option<String>,
}

impl ChildSetup {
    /// From what the daemon had before it changed itself; a score only if it was changed.
    pub(crate) fn new(nofile: FileLimit, oom_score_adj: Option<String>) -> Self {
        Self { nofile, oom_score_adj }
    }

    /// For processes that changed nothing about themselves: children keep what they inherit.
    ///
    /// # Errors
    /// When the limits cannot be read.
    pub fn unchanged() -> Result<Self, SysError> {
        let limit = getrlimit(Resource::RLIMIT_NOFILE);
        let (soft, hard) = limit.map_err(|errno| SysError::new("read the descriptor limit", errno))?;
        Ok(Self { nofile: FileLimit { soft, hard }, oom_score_adj: None })
    }

    /// Gives the child back its descriptor limit and OOM score, just before it becomes another program.
    ///
    /// If that fails the program does not start: a container that may never be killed must not come to be.
    pub(crate) fn apply(&self, command: &mut Command) {
        let limit = libc::rlimit { rlim_cur: self.nofile.soft, rlim_max: self.nofile.hard };
        let score = self.oom_score_adj.clone();
        let restore = move || {
            if let Some(score) = &score {
                write_oom_score(score.as_bytes())?;
            }
            // SAFETY: reads one rlimit through a valid pointer.
            succeeded(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
        };
        // SAFETY: runs between fork and exec, where only async-signal-safe calls are allowed: open, write, close and
        // setrlimit are; nothing is allocated or locked.
        unsafe { command.pre_exec(restore) };
    }

    /// Passes descriptors on: the first becomes the child's number 3, the next 4, and so on, all open after exec.
    ///
    /// The command owns them from here: drop it after the spawn, or our copies stay open. Once per command.
    ///
    /// # Errors
    /// When no more descriptors are to be had. If another thread closes a low number in between, the spawn may fail with
    /// `EBUSY` (see [`FdMap::place`]).
    pub(crate) fn fd_map(&self, command: &mut Command, fds: Vec<OwnedFd>) -> Result<(), SysError> {
        if fds.is_empty() {
            return Ok(());
        }
        let map = FdMap::new(fds)?;
        // SAFETY: runs between fork and exec; `place` makes async-signal-safe calls only (fcntl, fstat, dup2), and
        // allocates or locks nothing.
        unsafe { command.pre_exec(move || map.place()) };
        Ok(())
    }
}

/// Descriptors on their way to the numbers 3, 4, … of a child.
///
/// std learns of a failed exec through a pipe that it opens at the lowest free numbers. If that were one of ours the
/// child would overwrite it, and a failed exec would look like success; so these numbers are all taken beforehand.
#[derive(Debug)]
struct FdMap {
    /// All numbered above the targets, so that no placement overwrites a source.
    sources: Vec<OwnedFd>,
    /// Which pipe each target is now, if it is one.
    found: Vec<Option<Pipe>>,
    _placeholders: Vec<OwnedFd>,
}

/// Which pipe a descriptor is an end of: device and inode.
type Pipe = (libc::dev_t, libc::ino_t);

impl FdMap {
    fn new(fds: Vec<OwnedFd>) -> Result<Self, SysError> {
        let end = i32::try_from(fds.len()).ok().and_then(|count| fd::FIRST.checked_add(count));
        let end = end.ok_or(SysError::new("pass descriptors on", Errno::EMFILE))?;
        let sources = fds.iter().map(|fd| fd::duplicate_from(fd, end)).collect::<Result<Vec<_>, _>>()?;
        drop(fds);
        let mut placeholders = Vec::new();
        loop {
            let placeholder = fd::duplicate_from(&sources[0], fd::FIRST)?;
            if placeholder.as_raw_fd() >= end {
                break;
            }
            placeholders.push(placeholder);
        }
        Ok(Self { sources, found: (fd::FIRST..end).map(pipe_at).collect(), _placeholders: placeholders })
    }

    /// In the child: puts each source at its number, which leaves it open across exec.
    ///
    /// A target that has become another pipe was closed by another thread in the meantime, and may be std's pipe now: then
    /// nothing is started.
    fn place(&self) -> io::Result<()> {
        for ((source, found), target) in self.sources.iter().zip(&self.found).zip(fd::FIRST..) {
            if has_changed(*found, target) {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            // SAFETY: takes no pointers; what it closes belongs to this child alone.
            let done = unsafe { libc::dup2(source.as_raw_fd(), target) };
            if done < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Async-signal-safe, as all that follows.
fn has_changed(found: Option<Pipe>, raw: RawFd) -> bool {
    let now = pipe_at(raw);
    now.is_some() && now != found
}

fn pipe_at(raw: RawFd) -> Option<Pipe> {
    // Asked first: fstat alone may wait for a file system that does not answer.
    // SAFETY: takes no pointers; what is no pipe answers EBADF.
    if unsafe { libc::fcntl(raw, libc::F_GETPIPE_SZ) } < 0 {
        return None;
    }
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is valid for one stat.
    if unsafe { libc::fstat(raw, stat.as_mut_ptr()) } < 0 {
        return None;
    }
    // SAFETY: fstat succeeded, so it has filled the struct.
    let stat = unsafe { stat.assume_init() };
    Some((stat.st_dev, stat.st_ino))
}

fn write_oom_score(score: &[u8]) -> io::Result<()> {
    // SAFETY: the path is a C string.
    let file = unsafe { libc::open(OOM_SCORE.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the buffer is valid for its length. The file takes a score whole or not at all.
    let written = unsafe { libc::write(file, score.as_ptr().cast(), score.len()) };
    let result = if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: ours, and not used again.
    unsafe { libc::close(file) };
    result
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Seek as _, Write as _},
        process::Stdio,
    };

    use super::*;
    use crate::sys::fork::tests::alone;

    const UNCHANGED: FileLimit = FileLimit { soft: 77, hard: 1000 };

    fn setup(oom_score_adj: Option<&str>) -> ChildSetup {
        ChildSetup { nofile: UNCHANGED, oom_score_adj: oom_score_adj.map(str::to_owned) }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn output(mut command: Command) -> String {
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A file that holds `text`, to be read from its start.
    fn file(text: &str) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file.into()
    }

    #[test]
    fn children_get_the_old_limit_and_score_back() {
        let mut command = shell("ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj");
        setup(Some("1000")).apply(&mut command);
        assert_eq!(output(command), "77\n1000\n1000");
    }

    #[test]
    fn a_score_that_we_did_not_change_is_left_alone() {
        let ours = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let mut command = shell("cat /proc/self/oom_score_adj");
        setup(None).apply(&mut command);
        assert_eq!(output(command), ours.trim());
    }

    #[test]
    fn a_child_whose_score_cannot_be_restored_is_not_started() {
        let mut command = shell("true");
        setup(Some("nonsense")).apply(&mut command);
        assert_eq!(command.spawn().unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn sigpipe_is_ignored_by_us_and_not_by_children() {
        // The bit of SIGPIPE (13) in the mask of proc_pid_status(5).
        let ignored = |status: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
            u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << 12) != 0
        };
        assert!(ignored(&std::fs::read_to_string("/proc/self/status").unwrap()));
        assert!(!ignored(&output(shell("cat /proc/self/status"))));
    }

    #[test]
    fn passed_descriptors_arrive_in_order_at_three_and_up_and_nothing_else_does() {
        let told = alone(|| {
            // The shell's own descriptors, one a line: what the tests were started with, if anything, and what we add.
            let list = "ls /proc/$$/fd";
            let mut expected: Vec<_> = output(shell(list)).lines().map(str::to_owned).collect();
            expected.extend(["3", "4", "5"].map(str::to_owned));
            expected.sort();
            expected.dedup();
            let mut command = shell(&format!("cat <&3; cat <&4; cat <&5; {list}"));
            let setup = setup(None);
            setup.fd_map(&mut command, ["a\n", "b\n", "c\n"].map(file).into()).unwrap();
            setup.apply(&mut command);
            let output = output(command);
            if output == format!("a\nb\nc\n{}", expected.join("\n")) { "as expected".to_owned() } else { output }
        });
        assert_eq!(told, "as expected");
    }

    #[test]
    fn descriptors_whose_numbers_are_also_targets_are_not_mixed_up() {
        let texts: Vec<_> = (3..40).map(|n| format!("{n}\n")).collect();
        let read = alone(|| {
            // High numbers to low targets and the other way round.
            let mut fds: Vec<_> = texts.iter().rev().map(|text| file(text)).collect();
            fds.reverse();
            let mut command = shell("for n in $(seq 3 39); do cat /proc/self/fd/$n; done");
            setup(None).fd_map(&mut command, fds).unwrap();
            output(command)
        });
        assert_eq!(read, texts.concat().trim());
    }

    #[test]
    fn a_failed_exec_is_seen_although_descriptors_are_placed_over_low_numbers() {
        let error = alone(|| {
            let mut command = Command::new("/nonexistent");
            setup(None).fd_map(&mut command, (0..30).map(|_| file("x")).collect()).unwrap();
            format!("{:?}", command.spawn().map_err(|error| error.kind()))
        });
        assert_eq!(error, "Err(NotFound)");
    }

    #[test]
    fn a_target_that_became_another_pipe_is_not_overwritten() {
        let (read, other) = (fd::pipe_cloexec().unwrap().0, fd::pipe_cloexec().unwrap().0);
        let [at, elsewhere] = [&read, &other].map(|pipe| pipe_at(pipe.as_raw_fd()));
        assert!(at.is_some() && at != elsewhere);
        assert!(!has_changed(at, read.as_raw_fd()));
        assert!(has_changed(elsewhere, read.as_raw_fd()) && has_changed(None, read.as_raw_fd()));
        assert!(!has_changed(None, file("x").as_raw_fd()), "only a pipe can be std's");
    }
}
