//! Paths of good requests that lead to something that cannot be used.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
};

use holdfast::client::{CreateContainer, LogDriver, LogDriverKind};
use serde_json::json;

use crate::support::{BundleSpec, Sandbox, beside_a_neighbour, within};

/// A small file system of a test's own, unmounted when it is dropped.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(sandbox: &Sandbox, name: &str) -> Self {
        let path = sandbox.path().join(name);
        fs::create_dir(&path).unwrap();
        assert!(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=64k", "none"])
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        Self(path)
    }

    fn read_only(self) -> Self {
        assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status().unwrap().success());
        self
    }

    /// Leaves room for names, but for no byte.
    fn full(self) -> Self {
        fs::write(self.0.join("filler"), vec![0; 1 << 20]).unwrap_err();
        self
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: the daemon may still be closing a file there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Names of all files that are left in some directories.
fn left(dirs: &[&Path]) -> Vec<String> {
    let mut names: Vec<_> = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap().flatten()).collect();
    names.retain(|entry| !entry.path().ends_with("filler"));
    let mut names: Vec<_> = names.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_log_where_none_can_be_is_refused_or_costs_only_itself() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let (ro, full) = (Mount::tmpfs(sandbox, "ro").read_only(), Mount::tmpfs(sandbox, "full").full());
        let dir = sandbox.path().join("logs");
        fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        fs::write(at("file"), "").unwrap();
        fs::write(at("linked"), "").unwrap();
        symlink(at("linked"), at("link")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        symlink("/no/such/log", at("dangling")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let long = "x".repeat(300);
        for (log, why) in [
            (dir.clone(), Some("Is a directory")),
            (at("missing/log"), Some("No such file")),
            (at("file/log"), Some("Not a directory")),
            (at("dangling"), Some("No such file")),
            (at("loop"), Some("symbolic links")),
            (at("socket"), Some("No such device or address")),
            (at(&long), Some("File name too long")),
            (ro.0.join("log"), Some("Read-only file system")),
            (full.0.join("log"), None),
            (at("link"), None),
        ] {
            let what = format!("a log at {}", log.display());
            let answer = neighbour
                .undisturbed(&what, async || {
                    let request = sandbox.create_request("victim", &BundleSpec::shell("seq 1 20000; exit 7"));
                    let bad = LogDriver { kind: LogDriverKind::Cri, path: log, max_size: 0 };
                    let request = CreateContainer { log_drivers: vec![request.log_drivers[0].clone(), bad], ..request };
                    let answer = within(sandbox.client().create_container(&request)).await;
                    if answer.is_ok() {
                        sandbox.start("victim");
                        assert_eq!((sandbox.wait_exit("victim").await, sandbox.log("victim").len()), (7, 20_000));
                        sandbox.runtime(&["delete", "--force", "victim"]);
                    }
                    fs::remove_dir_all(sandbox.container("victim")).unwrap();
                    answer
                })
                .await;
            match (answer, why) {
                (Ok(_), None) => {}
                (Err(error), Some(why)) if error.to_string().contains(why) => {}
                (answer, _) => panic!("{what}: {answer:?}"),
            }
        }
        assert_eq!(fs::read(at("linked")).unwrap().split(|byte| *byte == b'\n').count(), 20_001, "a link is followed");
        assert_eq!(left(&[&dir]), ["dangling", "file", "link", "linked", "loop", "socket"]);
    });
}

#[test]
fn an_exit_or_oom_file_that_cannot_be_made_costs_only_itself() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let (ro, full) = (Mount::tmpfs(sandbox, "ro").read_only(), Mount::tmpfs(sandbox, "full").full());
        for kind in ["exit", "oom"] {
            fs::create_dir_all(sandbox.path().join(kind).join("taken/full")).unwrap();
            fs::write(sandbox.path().join(kind).join("linked"), "untouched").unwrap();
            symlink(sandbox.path().join(kind).join("linked"), sandbox.path().join(kind).join("link")).unwrap();
        }
        let paths = |kind: &str| {
            let dir = sandbox.path().join(kind);
            let names = ["first", "taken", "missing/file", "linked/file", "link", &"x".repeat(300), &"y".repeat(254)];
            let elsewhere = [ro.0.join(kind), full.0.join(kind), "/dev/null/file".into(), "/proc/file".into()];
            names.map(|name| dir.join(name)).into_iter().chain(elsewhere).chain([dir.join("last")]).collect::<Vec<_>>()
        };
        neighbour
            .undisturbed("paths of exit and OOM files", async || {
                let memory = json!({ "linux": { "resources": { "memory": { "limit": 8 << 20, "swap": 8 << 20 } } } });
                let spec = BundleSpec::shell("tail -c 1000000000 /dev/zero").with(memory);
                let request = sandbox.create_request("victim", &spec);
                let exit_paths = [vec![sandbox.exit_path("victim")], paths("exit")].concat();
                let request = CreateContainer { exit_paths, oom_exit_paths: paths("oom"), ..request };
                within(sandbox.client().create_container(&request)).await.unwrap();
                sandbox.start("victim");
                assert_eq!(sandbox.wait_exit("victim").await, 137);
                sandbox.runtime(&["delete", "--force", "victim"]);
            })
            .await;
        for (kind, text) in [("exit", "137"), ("oom", "")] {
            let dir = sandbox.path().join(kind);
            let is = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
            assert_eq!([is("first"), is("link"), is("last"), is("linked")], [text, text, text, "untouched"]);
            assert_eq!(is(&"y".repeat(254)), text);
            assert!(!dir.join("link").is_symlink() && dir.join("taken/full").is_dir());
        }
        let temporary = |name: &String| name.ends_with(".tmp") || name.starts_with('.');
        let dirs = ["exit", "oom", "full", "ro"].map(|name| sandbox.path().join(name));
        let names = left(&dirs.each_ref().map(PathBuf::as_path));
        assert!(!names.iter().any(temporary), "{names:?}");
    });
}

#[test]
fn a_bundle_where_nothing_can_be_written_is_refused() {
    beside_a_neighbour(async |sandbox, neighbour| {
        let mounts = [Mount::tmpfs(sandbox, "ro"), Mount::tmpfs(sandbox, "full")];
        let good = sandbox.create_request("victim", &BundleSpec::shell("exit 7"));
        for mount in &mounts {
            fs::copy(good.bundle.join("config.json"), mount.0.join("config.json")).unwrap();
        }
        let [ro, full] = mounts;
        let (ro, full) = (ro.read_only(), full.full());
        let taken = sandbox.bundle("taken", &BundleSpec::idle());
        fs::create_dir_all(taken.join("pidfile/full")).unwrap();
        let link = sandbox.path().join("link");
        symlink(&good.bundle, &link).unwrap();
        for (bundle, why) in [
            (&ro.0, Some("read-only file system")),
            (&full.0, Some("no space left")),
            (&taken, Some("directory")),
            (&link, None),
        ] {
            let what = format!("the bundle {}", bundle.display());
            let answer = neighbour
                .undisturbed(&what, async || {
                    let request = CreateContainer { bundle: bundle.clone(), ..good.clone() };
                    let answer = within(sandbox.client().create_container(&request)).await;
                    if answer.is_ok() {
                        sandbox.start("victim");
                        assert_eq!(sandbox.wait_exit("victim").await, 7);
                        sandbox.runtime(&["delete", "--force", "victim"]);
                    }
                    answer
                })
                .await;
            match (answer, why) {
                (Ok(_), None) => {}
                (Err(error), Some(why)) if error.to_string().to_lowercase().contains(why) => {}
                (answer, _) => panic!("{what}: {answer:?}"),
            }
        }
    });
}

#[test]
fn a_size_limit_of_any_number_stops_no_container() {
    beside_a_neighbour(async |sandbox, neighbour| {
        for (max_size, lines) in [(1, 1), (u64::MAX, 200), (1 << 63, 200)] {
            neighbour
                .undisturbed(&format!("a limit of {max_size} bytes"), async || {
                    let mut request = sandbox.create_request("victim", &BundleSpec::shell("seq 1 200; exit 7"));
                    request.log_drivers[0].max_size = max_size;
                    within(sandbox.client().create_container(&request)).await.unwrap();
                    sandbox.start("victim");
                    assert_eq!((sandbox.wait_exit("victim").await, sandbox.log("victim").len()), (7, lines));
                    sandbox.runtime(&["delete", "--force", "victim"]);
                    fs::remove_dir_all(sandbox.container("victim")).unwrap();
                })
                .await;
        }
    });
}
