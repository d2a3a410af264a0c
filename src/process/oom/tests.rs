//! Version 2 on a tree of files: what the kernel does to a counter is a write, and to a cgroup a removal.

use futures_util::FutureExt as _;
use tempfile::TempDir;

use super::*;
use crate::io::local;

/// A place that looks like a host with version 2 only.
struct Host(TempDir, Bells);

impl Host {
    fn new(cgroups: &[&str]) -> Self {
        let host = Self(tempfile::tempdir().unwrap(), Bells::default());
        fs::write(host.0.path().join("cgroup.controllers"), "memory\n").unwrap();
        for cgroup in cgroups {
            fs::create_dir_all(host.0.path().join(cgroup)).unwrap();
            host.count(cgroup, 0);
        }
        host
    }

    fn count(&self, cgroup: &str, kills: u64) {
        // In place, as the kernel does.
        fs::write(self.events(cgroup), format!("low 0\nmax 9\noom {kills}\noom_kill {kills}\n")).unwrap();
    }

    fn events(&self, cgroup: &str) -> PathBuf {
        self.0.path().join(cgroup).join("memory.events")
    }

    /// A kernel removes the files with the directory.
    fn remove(&self, cgroup: &str) {
        fs::remove_dir_all(self.0.path().join(cgroup)).unwrap();
    }

    fn watch(&self, cgroup: &str, cgroups_path: &str) -> OomWatch {
        let cgroups = Cgroups::from_lines(self.0.path(), &format!("7:name=x:/other\n0::/{cgroup}\n"));
        OomWatch::of(&self.1, &cgroups, cgroups_path).unwrap()
    }
}

/// Lets the watcher run until the condition holds.
async fn watch_until(watch: &OomWatch, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        never = watch.watch() => match never {},
        done = tokio::time::timeout(Duration::from_secs(30), looking) => done.unwrap(),
    }
}

#[test]
fn the_last_look_sees_a_kill_that_nobody_was_told_of() {
    local(async {
        let host = Host::new(&["pod/c"]);
        host.count("pod/c", 3);
        let watch = host.watch("pod/c", "/pod/c");
        assert!(!watch.killed(), "three were there before");
        host.count("pod/c", 4);
        assert!(watch.killed());
    });
}

#[test]
fn a_kill_is_remembered_when_the_cgroup_goes_and_a_removal_alone_is_none() {
    local(async {
        let host = Host::new(&["pod/c", "pod/d"]);
        let (killed, removed) = (host.watch("pod/c", "/pod/c"), host.watch("pod/d", "/pod/d"));
        host.count("pod/c", 1);
        watch_until(&killed, || killed.killed.get()).await;
        host.remove("pod/c");
        host.remove("pod/d");
        // Long enough for it to come round again, if it did.
        watch_until(&removed, || !removed.is_there()).await;
        assert!(killed.killed() && !removed.killed());
    });
}

#[test]
fn all_containers_share_one_inotify_and_each_sees_its_own_kill() {
    local(async {
        let host = Host::new(&["pod/c", "pod/d"]);
        let (one, two) = (host.watch("pod/c", "/pod/c"), host.watch("pod/d", "/pod/d"));
        let shared = |watch: &OomWatch| std::ptr::from_ref(watch.bell.as_ref().unwrap().fd());
        assert_eq!(shared(&one), shared(&two));
        host.count("pod/d", 1);
        tokio::join!(watch_until(&one, || two.killed.get()), watch_until(&two, || two.killed.get()));
        assert!(!one.killed.get());
        drop(two);
        host.count("pod/c", 1);
        watch_until(&one, || one.killed.get()).await;
        drop(one);
        assert!(host.1.is_idle(), "the last one closes it");
    });
}

#[test]
fn a_watcher_ends_with_its_cgroup() {
    local(async {
        let host = Host::new(&["pod/c"]);
        let watch = host.watch("pod/c", "/pod/c");
        let mut watching = std::pin::pin!(watch.watch());
        assert!(watching.as_mut().now_or_never().is_none());
        host.remove("pod/c");
        for _ in 0..3 {
            assert!(tokio::time::timeout(LOOKS[2] * 2, &mut watching).await.is_err());
        }
        assert!(!notify::drain(watch.bell.as_ref().unwrap().fd()), "nothing is left that could wake it");
    });
}

#[test]
fn the_parent_counts_only_where_the_runtime_made_it_for_this_container() {
    local(async {
        let host = Host::new(&["pod", "pod/crio-a.scope", "pod/crio-a.scope/container", "pod/b"]);
        host.count("pod", 5);
        host.count("pod/crio-a.scope", 2);
        let inner = host.watch("pod/crio-a.scope/container", "pod.slice:crio:a");
        let sibling = host.watch("pod/b", "/pod/b");
        assert!(!inner.killed() && !sibling.killed(), "older kills of the parents");
        // The kernel counts a kill in every cgroup above too.
        host.count("pod", 6);
        assert!(!inner.killed() && !sibling.killed(), "a third container of the pod");
        host.count("pod/crio-a.scope", 3);
        watch_until(&inner, || inner.killed.get()).await;
        assert!(inner.killed() && !sibling.killed());
    });
}

#[test]
fn the_parents_counter_is_enough_where_the_inner_cgroup_has_none() {
    local(async {
        let host = Host::new(&["crio-a.scope"]);
        fs::create_dir(host.0.path().join("crio-a.scope/container")).unwrap();
        let watch = host.watch("crio-a.scope/container", "s:crio:a");
        host.count("crio-a.scope", 1);
        watch_until(&watch, || watch.killed.get()).await;
        assert!(watch.killed());
    });
}

#[test]
fn a_cgroup_without_a_memory_controller_is_not_watched() {
    local(async {
        let host = Host::new(&[]);
        fs::create_dir(host.0.path().join("c")).unwrap();
        for lines in ["0::/c\n", "4:memory:/c\n0::/c\n"] {
            assert!(OomWatch::of(&host.1, &Cgroups::from_lines(host.0.path(), lines), "/c").is_none());
        }
        assert!(host.1.is_idle());
    });
}

#[test]
fn a_cgroup_of_a_kernel_that_does_not_count_is_watched_by_its_notification_while_it_is_there() {
    local(async {
        for removed in [false, true] {
            let host = Host::new(&["c"]);
            let file = host.events("c");
            fs::write(&file, "oom_kill_disable 0\nunder_oom 0\n").unwrap();
            let watch = OomWatch::at(file.clone(), None, host.1.inotify([&*file])).unwrap();
            assert!(!watch.killed());
            fs::write(&file, "oom_kill_disable 0\nunder_oom 1\n").unwrap();
            if removed {
                host.remove("c");
            }
            assert_eq!(watch.killed(), !removed);
        }
    });
}
