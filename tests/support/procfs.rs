//! Processes seen from outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// How many descriptors a process has open.
pub(crate) fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there and ours").count()
}

/// What a process has open, sorted: paths, and of sockets, pipes and the like the kind without the number.
pub(crate) fn descriptor_targets(pid: u32) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there and ours").flatten();
    let target = |path: PathBuf| {
        let target = path.to_string_lossy().into_owned();
        target.split_once(":[").map_or(target.clone(), |(kind, _)| kind.to_owned())
    };
    let mut targets: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).map(target).collect();
    targets.sort();
    targets
}

/// The same of a daemon, once nothing is under way any more.
pub(crate) async fn settled_descriptors(pid: u32) -> usize {
    let mut last = 0;
    super::eventually("no change of the descriptors", || {
        let now = descriptors(pid);
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
    .await
}

/// The numbers of the processes whose parent this is, with their states.
pub(crate) fn children(parent: u32) -> Vec<(u32, char)> {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let child = |pid: u32| {
        let (state, ppid) = stat(pid)?;
        (ppid == parent).then_some((pid, state))
    };
    numbers.filter_map(child).collect()
}

/// How many ended children a process has not collected.
pub(crate) fn zombies(parent: u32) -> usize {
    children(parent).iter().filter(|(_, state)| *state == 'Z').count()
}

/// Whether a process runs, a zombie not counted.
pub(crate) fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// State and parent; the name before them may hold anything.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The value of a line of `/proc/PID/status`.
pub(crate) fn status_line(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// How many bytes a process has written so far, to whatever: `wchar` of proc(5).
pub(crate) fn written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("the process is there and ours");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {io}"))
}

/// The directory of a process's cgroup through which processes are frozen: of version 2 alone, else of the freezer.
pub(crate) fn freezer(pid: u32) -> PathBuf {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process is there");
    let path = |begin: &str| lines.lines().find_map(|line| Some(line.split_once(begin)?.1.trim_start_matches('/')));
    match path(":freezer:") {
        Some(path) => Path::new("/sys/fs/cgroup/freezer").join(path),
        None => Path::new("/sys/fs/cgroup").join(path("0::").expect("some cgroup")),
    }
}

/// The cgroups that the daemon has made in the one of a container's first process.
pub(crate) fn exec_cgroups(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(freezer(pid)).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

/// The numbers of the processes that have this word in their command line.
pub(crate) fn with_word(word: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|&byte| byte == 0).any(|other| other == word.as_bytes())
    };
    numbers.filter(has).collect()
}

/// Four processes that take all the time they get, for tests under load.
pub(crate) struct BusyLoops(Vec<Child>);

impl BusyLoops {
    pub(crate) fn start() -> Self {
        let spin = || Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
        Self((0..4).map(|_| spin().expect("a shell")).collect())
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
