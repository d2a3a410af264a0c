//! `createNamespaces` with real namespaces: control-api 4.7 and 10.

use std::{fs, os::unix::net::UnixStream, path::Path, process::Command};

use holdfast::client::{CreateNamespaces, NamespaceKind};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};
use support::{
    Sandbox, eventually,
    namespaces::{
        KINDS, NAMES, WITHOUT_USER, enter, inside, mapped, of_process, refused, signal, with_base, with_base_and,
    },
    procfs,
};

mod support;

#[test]
fn without_a_kind_all_five_pins_are_the_hosts() {
    with_base(async |sandbox, base| {
        let made = base.make(sandbox, &base.request("p", &[])).await;
        assert_eq!(made, of_process(sandbox.daemon_pid()));
    });
}

#[test]
fn what_is_asked_for_is_new_and_the_rest_is_the_hosts() {
    with_base(async |sandbox, base| {
        let host = of_process(sandbox.daemon_pid());
        for (pod, kinds) in [("four", &WITHOUT_USER[..]), ("all", &KINDS), ("one", &[NamespaceKind::Net; 3])] {
            let made = base.make(sandbox, &base.request(pod, kinds)).await;
            for (index, kind) in KINDS.iter().enumerate() {
                assert_eq!(made[index] != host[index], kinds.contains(kind), "{kind:?} of {kinds:?}");
            }
            // Those of the pause process are the pinned ones, but for where it was asked for nothing.
            assert_eq!(of_process(base.pause(pod)), made, "{kinds:?}");
        }
    });
}

#[test]
fn pinned_namespaces_can_be_joined() {
    with_base(async |sandbox, base| {
        base.make(sandbox, &base.request("p", &WITHOUT_USER)).await;
        let devices = inside(&[enter(base, "net", "p")], &["cat", "/proc/net/dev"]);
        assert!(devices.lines().count() == 3 && devices.contains("lo:"), "{devices}");
        let name = inside(&[enter(base, "uts", "p")], &["sh", "-c", "hostname pinned && hostname"]);
        assert_eq!(name, "pinned");
        assert_eq!(inside(&[enter(base, "uts", "p")], &["hostname"]), "pinned");
    });
}

#[test]
fn a_pause_process_has_nothing_of_the_daemons_and_ends_at_a_signal() {
    with_base(async |sandbox, base| {
        for (pod, kinds) in [("a", &WITHOUT_USER[..]), ("b", &KINDS), ("c", &[])] {
            base.make(sandbox, &base.request(pod, kinds)).await;
            let pause = base.pause(pod);
            let link = |name: &str| fs::read_link(format!("/proc/{pause}/{name}")).unwrap_or_default();
            eventually("three descriptors", || (procfs::descriptors(pause) == 3).then_some(())).await;
            for name in ["fd/0", "fd/1", "fd/2"] {
                eventually("no pipe", || (link(name) == Path::new("/dev/null")).then_some(())).await;
            }
            assert_eq!(link("cwd"), Path::new("/"));
            assert_eq!(fs::read_to_string(format!("/proc/{pause}/comm")).expect("ours"), "holdfast-pause\n");
            let leads = procfs::status_line(pause, "NSsid");
            assert_eq!(leads, procfs::status_line(pause, "NSpid"));
            signal(pause, Signal::SIGTERM);
            eventually("its end", || (!procfs::runs(pause)).then_some(())).await;
        }
        assert_eq!(base.processes(), [0; 0]);
        eventually("three reports", || {
            (sandbox.daemon_log().matches("the pause process ended unexpectedly").count() == 3).then_some(())
        })
        .await;
        // Without its first process the PID namespace is of no use; the others live on in their pins.
        assert!(refused(sandbox, &base.request("a", &WITHOUT_USER)).await.contains("has ended"));
        base.make(sandbox, &base.request("c", &[])).await;
    });
}

#[test]
fn the_same_request_again_has_the_same_answer_and_another_one_is_refused() {
    with_base(async |sandbox, base| {
        let request = base.request("p", &KINDS);
        let first = base.make(sandbox, &request).await;
        let reversed = KINDS.into_iter().rev().chain(KINDS).collect();
        assert_eq!(base.make(sandbox, &CreateNamespaces { kinds: reversed, ..request.clone() }).await, first);
        for other in [
            base.request("p", &[NamespaceKind::Net]),
            mapped(request.clone(), &["0 100000 1"]),
            CreateNamespaces { base_path: base.path.join("other"), ..request },
        ] {
            let reason = refused(sandbox, &other).await;
            assert!(reason.starts_with("exists: ") && reason.contains("has namespaces already"), "{reason}");
        }
        assert_eq!(base.processes().len(), 1);
    });
}

#[test]
fn calls_for_one_pod_at_once_make_it_once_and_a_caller_that_goes_away_is_not_missed() {
    with_base(async |sandbox, base| {
        let request = base.request("p", &WITHOUT_USER);
        let client = sandbox.client();
        let (a, b) = tokio::join!(client.create_namespaces(&request), client.create_namespaces(&request));
        assert_eq!(a.expect("made"), b.expect("found"));
        let gone = sandbox.connect().await;
        let mut call = gone.conmon().create_namespaces_request();
        let mut fields = call.get().init_request();
        fields.set_pod_id("q");
        fields.set_base_path(base.path.to_str().expect("a temporary path"));
        let sent = call.send();
        tokio::task::yield_now().await;
        drop((sent, gone));
        eventually("either nothing or all of it", || {
            let of_q = base.left().iter().filter(|path| path.ends_with("/q")).count();
            (of_q == 0 || of_q == 11).then_some(())
        })
        .await;
        base.make(sandbox, &base.request("q", &[])).await;
        assert_eq!(base.processes().len(), 2);
    });
}

#[test]
fn requests_that_make_no_sense_are_refused_and_leave_nothing() {
    with_base(async |sandbox, base| {
        let long = "x".repeat(256);
        let good = base.request("p", &KINDS);
        let pod = |id: &str| CreateNamespaces { pod_id: id.to_owned(), ..good.clone() };
        let at = |path: &str| CreateNamespaces { base_path: path.into(), ..good.clone() };
        let many: Vec<_> = (0..341).map(|id| format!("{id} {id} 1")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        for (request, why) in [
            (pod(""), "podId: it is empty"),
            (pod("."), "podId: it is no file name"),
            (pod(".."), "podId: it is no file name"),
            (pod("../p"), "podId: it is no file name"),
            (pod("a/b"), "podId: it is no file name"),
            (pod("a\0b"), "podId: it contains a NUL byte"),
            (pod(&long), "podId: it is longer than 255 bytes"),
            (at(""), "basePath: the path is empty"),
            (at("run"), "basePath: the path is not absolute"),
            (mapped(good.clone(), &[]), "uidMappings: a user namespace needs at least one"),
            (mapped(base.request("p", &[]), &["0 0 1"]), "uidMappings: there is no user namespace to map"),
            (mapped(good.clone(), &["0 0"]), "uidMappings: it is not of the form"),
            (mapped(good.clone(), &["0 0 1 1"]), "uidMappings: it is not of the form"),
            (mapped(good.clone(), &["0 0 4294967296"]), "uidMappings: it is not of the form"),
            (mapped(good.clone(), &["0 0 0"]), "uidMappings: the size is 0"),
            (mapped(good.clone(), &["1 0 4294967295"]), "uidMappings: the range goes beyond"),
            (mapped(good.clone(), &many), "uidMappings: there are more than 340"),
            (CreateNamespaces { gid_mappings: Vec::new(), ..good.clone() }, "gidMappings: a user namespace needs"),
        ] {
            let reason = refused(sandbox, &request).await;
            assert!(reason.starts_with(&format!("invalid-request: {why}")), "{reason}");
        }
        assert!(!base.path.exists());
    });
}

#[test]
fn what_cannot_be_pinned_is_told_and_undone() {
    with_base(async |sandbox, base| {
        sandbox.client().version(false).await.expect("it serves");
        let descriptors = procfs::settled_descriptors(sandbox.daemon_pid()).await;
        let request = base.request("p", &WITHOUT_USER);
        // A file that is somebody else's.
        fs::create_dir_all(base.path.join("utsns")).expect("ours");
        fs::write(base.pin("uts", "p"), "precious").expect("ours");
        let reason = refused(sandbox, &request).await;
        assert!(reason.contains("is in the way"), "{reason}");
        assert_eq!(fs::read_to_string(base.pin("uts", "p")).expect("still there"), "precious");
        fs::remove_file(base.pin("uts", "p")).expect("ours");
        // A namespace that is somebody else's, as `ip netns add` makes them.
        fs::write(base.pin("net", "p"), "").expect("ours");
        let none = None::<&Path>;
        mount(Some("/proc/self/ns/net"), &base.pin("net", "p"), none, MsFlags::MS_BIND, none).expect("root may");
        assert!(refused(sandbox, &request).await.contains("is in the way"));
        // The file and what is mounted on it; the process that was started for it may take a moment to end.
        eventually("the rest to be undone", || (base.left().len() == 2).then_some(())).await;
        nix::mount::umount2(&base.pin("net", "p"), nix::mount::MntFlags::empty()).expect("ours");
        fs::remove_file(base.pin("net", "p")).expect("ours");
        // No directory to be made.
        fs::write(sandbox.path().join("file"), "").expect("ours");
        let below_file = CreateNamespaces { base_path: sandbox.path().join("file"), ..request.clone() };
        assert!(refused(sandbox, &below_file).await.contains("Not a directory"));
        let full = Some("size=4k,nr_inodes=3");
        mount(Some("none"), &base.path, Some("tmpfs"), MsFlags::empty(), full).expect("root may");
        assert!(refused(sandbox, &request).await.contains("No space left"));
        mount(Some("none"), &base.path, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).expect("root may");
        assert!(refused(sandbox, &request).await.contains("Read-only"));
        nix::mount::umount2(&base.path, nix::mount::MntFlags::empty()).expect("nothing is left in it");
        eventually("nothing left", || (base.left().is_empty()).then_some(())).await;
        eventually("the same descriptors", || (procfs::descriptors(sandbox.daemon_pid()) == descriptors).then_some(()))
            .await;
        assert_eq!(procfs::zombies(sandbox.daemon_pid()), 0);
        base.make(sandbox, &request).await;
    });
}

#[test]
fn a_pause_process_that_may_not_make_namespaces_says_so() {
    let without_privilege = |command: &mut Command| {
        let mut bounded = Command::new("setpriv");
        bounded.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
        bounded.arg(command.get_program()).args(command.get_args());
        *command = bounded;
    };
    with_base_and(without_privilege, async |sandbox, base| {
        let reason = refused(sandbox, &base.request("p", &WITHOUT_USER)).await;
        assert!(reason.contains("make namespaces: Operation not permitted"), "{reason}");
        // Nothing to be made, but nothing to be mounted either.
        let reason = refused(sandbox, &base.request("p", &[])).await;
        assert!(reason.contains("mount on"), "{reason}");
        eventually("nothing left", || base.left().is_empty().then_some(())).await;
    });
}

#[test]
fn a_shutdown_leaves_no_mount_no_file_and_no_process() {
    for quick in [false, true] {
        with_base(async |sandbox, base| {
            base.make(sandbox, &base.request("a", &WITHOUT_USER)).await;
            base.make(sandbox, &base.request("b", &KINDS)).await;
            base.make(sandbox, &base.request("c", &[])).await;
            assert_eq!(base.processes().len(), 3);
            // One that hangs is killed.
            signal(base.pause("c"), Signal::SIGSTOP);
            if quick {
                signal(sandbox.daemon_pid(), Signal::SIGINT);
            }
            assert!(sandbox.end_daemon(Signal::SIGTERM).await.success() || quick);
            assert_eq!(base.left(), [""; 0]);
        });
    }
}

#[test]
fn a_pod_outlives_a_daemon_that_is_killed_and_the_next_one_goes_on_with_it() {
    with_base(async |sandbox, base| {
        let request = base.request("p", &KINDS);
        let made = base.make(sandbox, &request).await;
        let pause = base.pause("p");
        sandbox.end_daemon(Signal::SIGKILL).await;
        assert_eq!(of_process(pause), made);
        sandbox.restart_daemon(|_| {}).await;
        // One that fell off is put back.
        nix::mount::umount2(&base.pin("uts", "p"), nix::mount::MntFlags::empty()).expect("ours");
        assert_eq!(base.make(sandbox, &request).await, made);
        assert_eq!((base.pause("p"), base.processes()), (pause, vec![pause]));
        sandbox.end_daemon(Signal::SIGTERM).await;
        assert_eq!(base.left(), [""; 0]);
    });
}

#[test]
fn what_a_killed_daemon_left_is_replaced_only_when_its_pause_process_has_ended() {
    with_base(async |sandbox, base| {
        let made = base.make(sandbox, &base.request("p", &WITHOUT_USER)).await;
        let pause = base.pause("p");
        sandbox.end_daemon(Signal::SIGKILL).await;
        sandbox.restart_daemon(|_| {}).await;
        let other = base.request("p", &[NamespaceKind::Net]);
        let reason = refused(sandbox, &other).await;
        assert!(reason.contains(&format!("process {pause} of an earlier daemon holds other namespaces")), "{reason}");
        assert!(procfs::runs(pause));
        signal(pause, Signal::SIGTERM);
        eventually("its end", || (!procfs::runs(pause)).then_some(())).await;
        let host = of_process(sandbox.daemon_pid());
        let fresh = base.make(sandbox, &other).await;
        let net = NAMES.iter().position(|name| *name == "net").expect("one of five");
        assert!(fresh[net] != made[net] && fresh[net] != host[net]);
        assert_eq!(fresh[0], host[0]);
        sandbox.end_daemon(Signal::SIGTERM).await;
        assert_eq!(base.left(), [""; 0]);
    });
}

#[test]
fn a_pod_that_another_daemon_holds_is_not_taken_away() {
    with_base(async |sandbox, base| {
        let request = base.request("p", &WITHOUT_USER);
        let made = base.make(sandbox, &request).await;
        let other = Sandbox::new().await;
        let reason = refused(&other, &request).await;
        assert!(reason.contains("another daemon holds the namespaces of this pod"), "{reason}");
        other.end_daemon(Signal::SIGTERM).await;
        assert_eq!(base.make(sandbox, &request).await, made);
        assert!(UnixStream::connect(sandbox.runtime_dir().join("conmon.sock")).is_ok());
    });
}
