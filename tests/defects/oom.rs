//! See the table in `main.rs`. These run on the version of cgroups that the machine has. What only version 2 can get wrong
//! (two counters with one baseline, the parent's counter, the line of a hybrid host, long lines) is shown on trees of files
//! beside the code: `process::oom` and `process::cgroup`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::support::{self, BundleSpec, Sandbox, eventually};

/// Far more than fits.
const EAT: &str = "tail -c 1000000000 /dev/zero";

fn limited() -> Value {
    json!({ "linux": { "resources": { "memory": { "limit": 8 << 20, "swap": 8 << 20 } } } })
}

/// The directory of a process's memory cgroup.
fn memory_cgroup(pid: u32) -> PathBuf {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path_in = |mount: &str, begin: &str| {
        let line = lines.lines().find_map(|line| line.split_once(begin))?;
        Some(Path::new(mount).join(line.1.trim_start_matches('/')))
    };
    path_in("/sys/fs/cgroup/memory", ":memory:").or_else(|| path_in("/sys/fs/cgroup", "0::")).unwrap()
}

/// Moves what is in a cgroup to the test's own, and removes it.
async fn remove_cgroup(directory: &Path) {
    let ours = memory_cgroup(std::process::id()).join("cgroup.procs");
    eventually("the cgroup to be removed", || {
        for pid in fs::read_to_string(directory.join("cgroup.procs")).ok()?.lines() {
            // It may end meanwhile.
            let _ = fs::write(&ours, pid);
        }
        fs::remove_dir(directory).ok()
    })
    .await;
}

fn is_marked(sandbox: &Sandbox, id: &str) -> bool {
    let path = sandbox.oom_path(id);
    path.exists() && fs::read(path).unwrap().is_empty()
}

#[test]
fn d27_an_oom_kill_does_not_mark_a_sibling_of_the_same_pod() {
    support::e2e(async |sandbox| {
        let pod = format!("{}-pod", sandbox.path().file_name().unwrap().display());
        let in_pod = |name: &str| json!({ "linux": { "cgroupsPath": format!("/{pod}/{name}") } });
        let waits = BundleSpec::shell("while [ ! -e /go ]; do sleep 0.1; done; exit 5");
        let pid = sandbox.run("sibling", &waits.clone().with(in_pod("sibling"))).await;
        let above = memory_cgroup(pid).parent().unwrap().to_owned();
        sandbox.run("eater", &BundleSpec::shell(EAT).with(limited()).with(in_pod("eater"))).await;
        assert_eq!(sandbox.wait_exit("eater").await, 137);
        sandbox.run("later", &waits.with(in_pod("later"))).await;
        fs::write(sandbox.in_rootfs("go"), "").unwrap();
        assert_eq!((sandbox.wait_exit("sibling").await, sandbox.wait_exit("later").await), (5, 5));
        let marked = ["eater", "sibling", "later"].map(|id| is_marked(sandbox, id));
        for id in ["eater", "sibling", "later"] {
            sandbox.runtime(&["delete", "--force", id]);
        }
        // The runtime removes only what it made last.
        assert!(above.ends_with(&pod), "{}", above.display());
        for directory in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let _ = fs::remove_dir(directory.path().join(&pod));
        }
        let _ = fs::remove_dir(&above);
        assert_eq!(marked, [true, false, false]);
    });
}

#[test]
fn d28_an_oom_kill_of_a_child_is_told_when_the_container_ends_however_well() {
    support::e2e(async |sandbox| {
        let script = format!("{EAT}; echo child $?; while [ ! -e /go ]; do sleep 0.1; done; exit 3");
        sandbox.run("c", &BundleSpec::shell(&script).with(limited())).await;
        sandbox.wait_log("c", "child 137").await;
        assert!(!sandbox.oom_path("c").exists() && !sandbox.exit_path("c").exists(), "the container goes on");
        fs::write(sandbox.in_rootfs("go"), "").unwrap();
        assert_eq!(sandbox.wait_exit("c").await, 3);
        assert!(is_marked(sandbox, "c"));
    });
}

#[test]
fn d28_an_oom_kill_is_not_forgotten_when_the_cgroup_goes_before_the_container_ends() {
    support::e2e(async |sandbox| {
        let script = format!("{EAT}; while [ ! -e /go ]; do sleep 0.1; done; exit 3");
        let pid = sandbox.run("c", &BundleSpec::shell(&script).with(limited())).await;
        let seen = || sandbox.daemon_log().contains("the OOM killer has killed").then_some(());
        eventually("the daemon to notice the kill", seen).await;
        remove_cgroup(&memory_cgroup(pid)).await;
        fs::write(sandbox.in_rootfs("go"), "").unwrap();
        assert_eq!(sandbox.wait_exit("c").await, 3);
        assert!(is_marked(sandbox, "c"));
    });
}

#[test]
fn d29_a_cgroup_that_is_removed_is_no_oom() {
    support::e2e(async |sandbox| {
        let script = "while [ ! -e /go ]; do sleep 0.1; done; exit 3";
        let pid = sandbox.run("c", &BundleSpec::shell(script).with(limited())).await;
        remove_cgroup(&memory_cgroup(pid)).await;
        fs::write(sandbox.in_rootfs("go"), "").unwrap();
        assert_eq!(sandbox.wait_exit("c").await, 3);
        assert!(!sandbox.oom_path("c").exists());
    });
}

#[test]
fn d29_an_oom_kill_that_ends_the_container_at_once_is_not_missed() {
    support::e2e(async |sandbox| {
        for round in 0..if support::long() { 100 } else { 10 } {
            let id = format!("c{round}");
            sandbox.run(&id, &BundleSpec::shell(&format!("exec {EAT}")).with(limited())).await;
            // The exit file comes last: who sees it may rely on the other.
            assert_eq!(sandbox.wait_exit(&id).await, 137);
            assert!(is_marked(sandbox, &id), "round {round}");
            sandbox.runtime(&["delete", &id]);
        }
    });
}

#[test]
fn d29_a_container_killed_by_somebody_or_by_itself_was_not_short_of_memory() {
    support::e2e(async |sandbox| {
        let idle = BundleSpec::new(&["sleep", "1000"]).with(limited());
        let pid = sandbox.run("outside", &idle).await;
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
        sandbox.run("runtime", &idle).await;
        sandbox.runtime(&["delete", "--force", "runtime"]);
        sandbox.run("inside", &BundleSpec::shell("sh -c 'kill -9 $$'; exit 137").with(limited())).await;
        for id in ["outside", "runtime", "inside"] {
            assert_eq!(sandbox.wait_exit(id).await, 137);
            assert!(!sandbox.oom_path(id).exists(), "{id}");
        }
    });
}
