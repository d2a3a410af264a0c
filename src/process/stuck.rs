//! Names in the log what was killed and does not end: a process that waits in the kernel, for a disk or a server that does not
//! answer, takes no signal, and whoever looks for the culprit must know which one it is and what it waits for.
//!
//! Of a process only what is safe to tell and to read: its number, the kernel's name for it (`comm`), its state, and the place
//! in the kernel where it waits (`wchan`). Its command line and its environment may hold secrets, and reading them waits for
//! a lock that a stuck process may hold.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{
    Process, exec_cgroup,
    tree::{self, Entry},
};
use crate::io::blocking::Blocking;

/// How many are named. Of the others only their number is told.
const NAMED: usize = 16;
/// The most threads of one process that are looked at.
const THREADS: usize = 256;
/// How long looking through /proc may take.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long to wait before looking again, first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// Where to look for what may be left of something that was killed.
#[derive(Debug, Default)]
pub(crate) struct Killed {
    /// By number and start.
    processes: Vec<(u32, u64)>,
    /// The roots of trees, not collected yet, so that the numbers are theirs.
    trees: Vec<u32>,
    cgroups: Vec<PathBuf>,
    /// Also whoever of our descendants waits in the kernel.
    ours: Option<u32>,
}

/// A process that is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Left {
    pid: u32,
    name: String,
    state: char,
    /// Empty where the kernel does not tell.
    waits_in: String,
}

impl Killed {
    pub(super) fn of(processes: Vec<(u32, u64)>) -> Self {
        Self { processes, ..Self::default() }
    }

    /// Whatever is in a cgroup and in those inside of it.
    pub(crate) fn in_cgroup(directory: &Path) -> Self {
        Self { cgroups: vec![directory.to_owned()], ..Self::default() }
    }

    /// Adds a process and all that it has started; nothing once it is collected, for its number may be another's then.
    pub(crate) fn add_tree(&mut self, root: &Process) {
        if root.status.get().is_none() {
            self.trees.push(root.pid());
        }
    }

    /// Adds whatever is in a cgroup and in those inside of it.
    pub(crate) fn add_cgroup(&mut self, directory: &Path) {
        self.cgroups.push(directory.to_owned());
    }

    /// Adds those of our descendants that wait in the kernel, whoever started them.
    pub(crate) fn add_stuck_descendants(&mut self) {
        self.ours = Some(std::process::id());
    }

    /// Waits until all of them have ended; after `limit` names in the log who has not, and goes on.
    pub(crate) async fn ended(self, limit: Duration, blocking: &Blocking, whose: &'static str) {
        let ended = async {
            let mut pause = FIRST_PAUSE;
            // Few processes and short files of /proc: not worth a thread.
            while self.look().1 > 0 {
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        };
        if timeout(limit, ended).await.is_err() {
            self.name_left(blocking, whose).await;
        }
    }

    /// Looks who is left and names them in the log. `whose` says what they belong to.
    pub(crate) async fn name_left(self, blocking: &Blocking, whose: &'static str) {
        // Nothing to look at is the usual case: the cgroup has been emptied and removed.
        if self.processes.is_empty() && self.trees.is_empty() && self.ours.is_none() && !self.has_cgroup() {
            return;
        }
        let look = move || self.look();
        match blocking.run("look through", Path::new("/proc/self"), LOOK_LIMIT, look, drop).await {
            Ok((_, 0)) => {}
            Ok((left, count)) => {
                let processes = describe(&left, count);
                tracing::warn!(count, %processes, "processes {whose} were killed and do not end");
            }
            Err(error) => tracing::warn!(%error, "cannot tell which processes {whose} do not end"),
        }
    }

    fn has_cgroup(&self) -> bool {
        self.cgroups.iter().any(|directory| directory.exists())
    }

    /// The first of them, and how many there are.
    fn look(&self) -> (Vec<Left>, usize) {
        let mut all = BTreeSet::new();
        if !self.trees.is_empty() || self.ours.is_some() {
            let processes = tree::processes();
            all.extend(self.trees.iter().flat_map(|root| tree::family(&processes, *root)));
            if let Some(ours) = self.ours {
                let stuck = |pid: &u32| *pid != ours && processes[pid].state == 'D';
                all.extend(tree::family(&processes, ours).into_iter().filter(stuck));
            }
        }
        all.extend(self.cgroups.iter().flat_map(|directory| exec_cgroup::processes_within(directory)));
        let is_same = |(pid, start): &&(u32, u64)| tree::entry(*pid).is_some_and(|entry| entry.start == *start);
        all.extend(self.processes.iter().filter(is_same).map(|(pid, _)| *pid));
        let mut left = Vec::new();
        let mut count = 0;
        for pid in all {
            if let Some(found) = still_there(pid) {
                count += 1;
                if left.len() < NAMED {
                    left.push(found);
                }
            }
        }
        (left, count)
    }
}

/// `None` for one that has ended, collected or not. Of several threads the one that is stuck, since all others have ended or
/// wait for it.
fn still_there(pid: u32) -> Option<Left> {
    let leader = named(Path::new(&format!("/proc/{pid}")), pid)?;
    if leader.state == 'D' || (leader.threads <= 1 && !leader.has_ended()) {
        return Some(leader.left);
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().take(THREADS);
    let mut threads: Vec<_> = threads.filter_map(|thread| named(&thread.path(), pid)).collect();
    threads.retain(|thread| !thread.has_ended());
    let stuck = threads.iter().position(|thread| thread.state == 'D').unwrap_or(0);
    (stuck < threads.len()).then(|| threads.swap_remove(stuck).left)
}

struct Thread {
    left: Left,
    state: char,
    threads: u64,
}

impl Thread {
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

fn named(directory: &Path, pid: u32) -> Option<Thread> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let Entry { state, threads, .. } = tree::parse(&stat)?;
    let wchan = fs::read_to_string(directory.join("wchan")).unwrap_or_default();
    let left = Left { pid, name: name_of(&stat).to_owned(), state, waits_in: place_of(&wchan).to_owned() };
    Some(Thread { left, state, threads })
}

/// The name between the brackets of a line of proc_pid_stat(5); it may hold brackets itself.
fn name_of(stat: &str) -> &str {
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    name.map_or("", |(name, _)| name)
}

/// `0` stands for a process that runs, or of which we may not know (proc_pid_wchan(5)).
fn place_of(wchan: &str) -> &str {
    match wchan.trim() {
        "0" => "",
        place => place,
    }
}

impl Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The process chose its name: nothing in it may look like a line of the log.
        write!(f, "{} (pid {}, state {}", self.name.escape_debug(), self.pid, self.state)?;
        if !self.waits_in.is_empty() {
            write!(f, ", waits in {}", self.waits_in.escape_debug())?;
        }
        f.write_str(")")
    }
}

fn describe(left: &[Left], count: usize) -> String {
    let mut all: Vec<String> = left.iter().map(ToString::to_string).collect();
    if count > left.len() {
        all.push(format!("and {} more", count - left.len()));
    }
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(pid: u32, name: &str, waits_in: &str) -> Left {
        Left { pid, name: name.to_owned(), state: 'D', waits_in: waits_in.to_owned() }
    }

    #[test]
    fn a_process_is_named_with_number_state_and_the_place_it_waits_in() {
        let dd = || left(7, "dd", "percpu_rwsem_wait");
        assert_eq!(describe(&[dd()], 1), "dd (pid 7, state D, waits in percpu_rwsem_wait)");
        let nowhere = left(8, "x) y\n\u{1b}[0m", "");
        assert_eq!(
            describe(&[dd(), nowhere], 5),
            "dd (pid 7, state D, waits in percpu_rwsem_wait), x) y\\n\\u{1b}[0m (pid 8, state D), and 3 more"
        );
    }

    #[test]
    fn names_and_places_are_read_as_the_kernel_writes_them() {
        assert_eq!((name_of("42 (a) b (c) S 7"), name_of("42")), ("a) b (c", ""));
        assert_eq!((place_of("0"), place_of("do_wait\n"), place_of("")), ("", "do_wait", ""));
    }

    #[test]
    fn only_who_is_there_is_left() {
        let own = std::process::id();
        let start = tree::entry(own).unwrap().start;
        let (found, count) = Killed::of(vec![(own, start), (own, start + 1)]).look();
        assert_eq!((found.len(), count, found[0].pid), (1, 1, own));
        let gone = Killed { cgroups: vec!["/none".into()], ..Killed::of(vec![(own, start + 1)]) };
        assert_eq!(gone.look(), (Vec::new(), 0));
    }
}
