//! Killing a process with what it has started, where no cgroup says what that is: its descendants, and whoever is in a
//! session that one of them leads. What has left both, by a new session *and* the end of its parent, is not found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use super::{Process, stuck::Killed};
use crate::{io::blocking::Blocking, sys::process};

/// How often to look for more. Each pass stops what it finds, so only what was forked meanwhile is left for the next.
const PASSES: u32 = 16;
/// How long one pass through /proc may take. It is no sick file system, but there may be many processes.
const PASS_LIMIT: Duration = Duration::from_secs(10);

/// A process as a line of /proc tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: char,
    parent: u32,
    session: u32,
    pub(super) threads: u64,
    /// With the pid, what tells it from a later process of the same number.
    pub(super) start: u64,
}

/// Kills the tree of a process: stops all of it first, so that nothing is orphaned or forked between looking and killing.
/// Returns what it was.
pub(crate) async fn kill(root: &Process, blocking: &Blocking) -> Killed {
    let mut stopped = BTreeMap::new();
    for _ in 0..PASSES {
        let Ok(all) = blocking.run("look through", Path::new("/proc/self"), PASS_LIMIT, processes, drop).await else {
            break;
        };
        let mut new = family(&all, root.pid());
        new.retain(|pid| stopped.get(pid) != Some(&all[pid].start));
        if new.is_empty() {
            break;
        }
        for pid in new {
            signal(pid, all[&pid].start, libc::SIGSTOP);
            stopped.insert(pid, all[&pid].start);
        }
    }
    for (&pid, &start) in &stopped {
        signal(pid, start, libc::SIGKILL);
    }
    root.kill_group();
    Killed::of(stopped.into_iter().collect())
}

/// By pidfd, and only if it is still the one that was seen.
fn signal(pid: u32, start: u64, signal: i32) {
    let Ok(pidfd) = process::pidfd_open(pid) else { return };
    if entry(pid).is_some_and(|entry| entry.start == start) {
        // It may have ended, which is as good.
        let _ = process::pidfd_send_signal(pidfd.as_fd(), signal);
    }
}

pub(super) fn processes() -> BTreeMap<u32, Entry> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(|pid| Some((pid, entry(pid)?))).collect()
}

pub(super) fn entry(pid: u32) -> Option<Entry> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc_pid_stat(5). The name may hold anything, also blanks and brackets.
pub(super) fn parse(stat: &str) -> Option<Entry> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some(Entry {
        state: fields.first()?.chars().next()?,
        parent: number(1)?,
        session: number(3)?,
        threads: fields.get(17)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// The root, if it is there, its descendants, and the members of sessions that one of these leads or led.
pub(super) fn family(all: &BTreeMap<u32, Entry>, root: u32) -> BTreeSet<u32> {
    let mut family: BTreeSet<u32> = all.keys().copied().filter(|pid| *pid == root).collect();
    loop {
        let belongs =
            |entry: &Entry| [entry.parent, entry.session].iter().any(|pid| *pid == root || family.contains(pid));
        let new: Vec<u32> =
            all.iter().filter(|(pid, entry)| !family.contains(pid) && belongs(entry)).map(|(p, _)| *p).collect();
        if new.is_empty() {
            return family;
        }
        family.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read_past_any_name() {
        let stat = "42 (a) b (c) S 7 42 41 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 9 9";
        assert_eq!(parse(stat), Some(Entry { state: 'S', parent: 7, session: 41, threads: 1, start: 12345 }));
        assert_eq!((parse("42 (a) S 7"), parse("")), (None, None));
        assert!(entry(std::process::id()).is_some_and(|own| own.start > 0 && own.parent > 0));
    }

    #[test]
    fn a_family_is_descendants_and_sessions_and_nobody_else() {
        let all = [
            (1, 0, 1),
            (10, 1, 10),  // the daemon
            (20, 10, 20), // a container
            (30, 10, 30), // the exec
            (31, 30, 30),
            (32, 31, 32), // its grandchild in a session of its own
            (33, 32, 32),
            (34, 20, 30), // orphaned, still in its session
            (35, 20, 32), // orphaned, in the grandchild's session
            (36, 20, 36), // the container's own
            (40, 10, 10),
        ];
        let all =
            all.map(|(pid, parent, session)| (pid, Entry { state: 'S', parent, session, threads: 1, start: 1 })).into();
        assert_eq!(family(&all, 30), BTreeSet::from([30, 31, 32, 33, 34, 35]));
        assert_eq!(family(&all, 36), BTreeSet::from([36]));
        let without_root = all.into_iter().filter(|(pid, _)| *pid != 30).collect();
        assert_eq!(family(&without_root, 30), BTreeSet::from([31, 32, 33, 34, 35]));
    }
}
