//! `startFdSocket` and what is handed over there: control-api 4.8.

use std::{
    fs,
    os::{
        fd::AsFd as _,
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
};

use holdfast::{
    client::{FdClient, FdError},
    model::StdStream,
};
use nix::sys::signal::Signal;
use support::{
    BundleSpec, e2e, e2e_recording, eventually,
    fds::{Held, borrowed, connect, end, file, refused, with_fds},
    procfs, within,
};

mod support;

#[test]
fn descriptors_are_there_from_three_on_in_the_order_of_the_request() {
    e2e(async |sandbox| {
        let mut fds = connect(sandbox).await;
        let files = ["first\n", "second\n", "third\n"].map(file);
        let slots = fds.send(&borrowed(&files)).await.expect("kept");
        assert_eq!(slots, [1, 2, 3]);
        let spec = BundleSpec::shell("cat <&3; cat <&4; cat <&5; ls /proc/self/fd | wc -l");
        let request = with_fds(sandbox, "c", &spec, &[slots[2], slots[0], slots[1]]);
        sandbox.client().create_container(&request).await.expect("created");
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 0);
        // `ls` has the standard ones, these three and the directory.
        assert_eq!(sandbox.logged("c", StdStream::Stdout), b"third\nfirst\nsecond\n7\n");
    });
}

#[test]
fn a_full_packet_of_253_reaches_a_container() {
    e2e(async |sandbox| {
        support::raise_file_limit();
        let mut fds = connect(sandbox).await;
        let files: Vec<_> = (0..253).map(|number| file(&format!("{number}\n"))).collect();
        let slots = fds.send(&borrowed(&files)).await.expect("kept");
        assert_eq!(slots, (1..=253).collect::<Vec<_>>());
        let spec = BundleSpec::shell("cat /proc/self/fd/3 /proc/self/fd/100 /proc/self/fd/255");
        sandbox.client().create_container(&with_fds(sandbox, "c", &spec, &slots)).await.expect("created");
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.logged("c", StdStream::Stdout), b"0\n97\n252\n");
    });
}

#[test]
fn the_runtime_gets_what_its_container_is_to_have_and_no_other_descriptor() {
    e2e_recording(async |sandbox| {
        let mut fds = connect(sandbox).await;
        let waiting = [file("a"), file("b")];
        fds.send(&borrowed(&waiting)).await.expect("kept");
        sandbox.create("c", &BundleSpec::idle()).await;
        let without = sandbox.surroundings().iter().filter(|line| line.contains(" -> ")).count();
        let slots = fds.send(&borrowed(&waiting)).await.expect("kept");
        sandbox.client().create_container(&with_fds(sandbox, "d", &BundleSpec::idle(), &slots)).await.expect("created");
        let with = sandbox.surroundings().iter().filter(|line| line.contains(" -> ")).count();
        assert_eq!(with, without + 2);
    });
}

#[test]
fn leaked_descriptors_are_open_until_the_container_has_ended() {
    e2e(async |sandbox| {
        let mut fds = connect(sandbox).await;
        let before = procfs::settled_descriptors(sandbox.daemon_pid()).await;
        let (leaked, given) = (Held::new(), Held::new());
        let slots = fds.send(&[leaked.fd(), given.fd()]).await.expect("kept");
        let (leaked, given) = (leaked.handed_over(), given.handed_over());
        let mut request = with_fds(sandbox, "c", &BundleSpec::idle(), &slots[1..]);
        request.leak_fds = vec![slots[0]];
        sandbox.client().create_container(&request).await.expect("created");
        sandbox.start("c");
        // Its sender does not matter any more.
        drop(fds);
        assert!(leaked.is_open() && given.is_open());
        end(sandbox, "c").await;
        tokio::join!(leaked.closed(), given.closed());
        eventually("the same descriptors as before, less the connection", || {
            (procfs::descriptors(sandbox.daemon_pid()) < before).then_some(())
        })
        .await;
    });
}

#[test]
fn the_cleanup_command_finds_leaked_descriptors_closed() {
    e2e(async |sandbox| {
        let mut fds = connect(sandbox).await;
        let leaked = Held::new();
        let pipe = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&leaked.fd()))).unwrap();
        let slots = fds.send(&[leaked.fd()]).await.expect("kept");
        let _witness = leaked.handed_over();
        let mut request = sandbox.create_request("c", &BundleSpec::shell("true"));
        request.leak_fds = slots;
        let (seen, daemon) = (sandbox.path().join("seen"), sandbox.daemon_pid());
        let script = format!("ls -l /proc/{daemon}/fd >{0}.next; mv {0}.next {0}", seen.display());
        request.cleanup_command = ["sh", "-c", &script].map(str::to_owned).to_vec();
        // Where a shell is found.
        request.cleanup_command[0] = "/bin/sh".to_owned();
        sandbox.client().create_container(&request).await.expect("created");
        let held = || {
            let open = fs::read_dir(format!("/proc/{daemon}/fd")).expect("ours").flatten();
            open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target == pipe)
        };
        assert!(held());
        sandbox.start("c");
        let seen = eventually("the cleanup command", || fs::read_to_string(&seen).ok()).await;
        assert!(!seen.contains(pipe.to_str().unwrap()) && seen.contains(" -> "), "{seen}");
    });
}

#[test]
fn a_slot_is_claimed_once_and_an_unknown_one_is_named() {
    e2e(async |sandbox| {
        let mut fds = connect(sandbox).await;
        let slots = fds.send(&borrowed(&[file("x\n"), file("y\n")])).await.expect("kept");
        let spec = BundleSpec::shell("cat <&3");
        for (additional, leak, why) in [
            (vec![slots[0], 77], vec![], "additionalFds: slot 77 is unknown"),
            (vec![slots[0]], vec![0], "leakFds: slot 0 is unknown"),
            (vec![slots[0]], vec![slots[0]], "leakFds: slot 1 is named twice"),
            (vec![slots[1], slots[1]], vec![], "additionalFds: slot 2 is named twice"),
        ] {
            let mut request = with_fds(sandbox, "c", &spec, &additional);
            request.leak_fds = leak;
            let reason = refused(sandbox, &request).await;
            assert!(reason.starts_with(&format!("invalid-request: {why}")), "{reason}");
        }
        // Nor does a request cost any that is refused for another reason.
        let mut request = with_fds(sandbox, "c", &spec, &slots);
        request.cleanup_command = vec![String::new()];
        assert!(refused(sandbox, &request).await.contains("cleanupCmd"));
        request.cleanup_command.clear();
        sandbox.client().create_container(&request).await.expect("nothing has been consumed");
        let reason = refused(sandbox, &with_fds(sandbox, "d", &spec, &slots)).await;
        assert!(reason.contains("additionalFds: slot 1 is unknown"), "{reason}");
    });
}

#[test]
fn a_create_that_fails_closes_what_it_has_claimed() {
    e2e(async |sandbox| {
        let mut fds = connect(sandbox).await;
        sandbox.run("taken", &BundleSpec::idle()).await;
        let before = procfs::settled_descriptors(sandbox.daemon_pid()).await;
        for (id, args) in [("taken", &["true"][..]), ("c", &["no/such/program"])] {
            let (given, leaked) = (Held::new(), Held::new());
            let slots = fds.send(&[given.fd(), leaked.fd()]).await.expect("kept");
            let (given, leaked) = (given.handed_over(), leaked.handed_over());
            let mut request = with_fds(sandbox, id, &BundleSpec::new(args), &slots[..1]);
            request.leak_fds = slots[1..].to_vec();
            refused(sandbox, &request).await;
            tokio::join!(given.closed(), leaked.closed());
        }
        eventually("the same descriptors", || (procfs::descriptors(sandbox.daemon_pid()) == before).then_some(()))
            .await;
    });
}

#[test]
fn a_disconnect_and_the_request_to_forget_close_what_nobody_has_claimed() {
    e2e(async |sandbox| {
        let mut other = connect(sandbox).await;
        let kept = Held::new();
        other.send(&[kept.fd()]).await.expect("kept");
        let kept = kept.handed_over();
        let mut fds = connect(sandbox).await;
        let forgotten = Held::new();
        let slots = fds.send(&[forgotten.fd()]).await.expect("kept");
        let forgotten = forgotten.handed_over();
        fds.forget().await.expect("sent");
        forgotten.closed().await;
        let request = with_fds(sandbox, "c", &BundleSpec::idle(), &slots);
        assert!(refused(sandbox, &request).await.contains("slot 2 is unknown"));
        let dropped = Held::new();
        assert_eq!(fds.send(&[dropped.fd()]).await.expect("kept"), [3], "numbers are not used again");
        let dropped = dropped.handed_over();
        assert!(dropped.is_open());
        drop(fds);
        dropped.closed().await;
        assert!(kept.is_open(), "another's");
        // No descriptors, or no id, is nothing special.
        assert_eq!(other.send(&[]).await.expect("answered"), [0; 0]);
        let held = Held::new();
        other.send_packet(&[1, 0, 0, 0, 0, 0, 0, 0], &[held.fd()]).await.expect("sent");
        let reply = within(other.receive_packet()).await.expect("answered");
        assert_eq!(reply, [1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn descriptors_beyond_the_limits_are_refused_and_none_of_the_packet_is_kept() {
    e2e(async |sandbox| {
        support::raise_file_limit();
        let before = {
            connect(sandbox).await;
            procfs::settled_descriptors(sandbox.daemon_pid()).await
        };
        let null = fs::File::open("/dev/null").expect("always there");
        let full = vec![null.as_fd(); 253];
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = connect(sandbox).await;
            client.send(&full).await.expect("kept");
            client.send(&full).await.expect("kept");
            let held = Held::new();
            let refused = client.send(&[held.fd()]).await;
            assert!(matches!(&refused, Err(FdError::Refused(why)) if why.contains("506")), "{refused:?}");
            held.handed_over().closed().await;
            clients.push(client);
        }
        let mut last = connect(sandbox).await;
        let refused = last.send(&full).await;
        assert!(matches!(&refused, Err(FdError::Refused(why)) if why.contains("1024")), "{refused:?}");
        last.send(&full[..12]).await.expect("there is room for so many");
        clients.clear();
        eventually("room", || (procfs::descriptors(sandbox.daemon_pid()) < 100).then_some(())).await;
        last.send(&full).await.expect("room again");
        drop(last);
        eventually("as before", || (procfs::descriptors(sandbox.daemon_pid()) == before).then_some(())).await;
    });
}

#[test]
fn a_crowd_of_idle_connections_keeps_nobody_out() {
    e2e(async |sandbox| {
        support::raise_file_limit();
        let mut first = connect(sandbox).await;
        first.send(&borrowed(&[file("x")])).await.expect("kept");
        let path = sandbox.runtime_dir().join("conmon-fd.sock");
        let mut crowd = Vec::new();
        while crowd.len() < 300 {
            match FdClient::connect(&path).await {
                Ok(client) => crowd.push(client),
                // More than the kernel lets wait.
                Err(FdError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::task::yield_now().await;
                }
                Err(other) => panic!("{other}"),
            }
        }
        connect(sandbox).await.send(&borrowed(&[file("y")])).await.expect("kept");
        assert_eq!(first.send(&borrowed(&[file("z")])).await.expect("still connected"), [3]);
        assert_eq!(within(crowd[0].receive_packet()).await.expect("the end"), [0; 0]);
    });
}

#[test]
fn there_is_one_socket_for_its_owner_alone_and_a_stale_one_is_replaced() {
    e2e(async |sandbox| {
        let path = sandbox.runtime_dir().join("conmon-fd.sock");
        assert!(!path.exists());
        for _ in 0..2 {
            assert_eq!(sandbox.client().start_fd_socket().await.expect("made"), path);
            assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o700);
        }
        sandbox.end_daemon(Signal::SIGKILL).await;
        assert!(path.exists());
        sandbox.restart_daemon(|_| {}).await;
        assert!(!path.exists(), "stale");
        assert!(connect(sandbox).await.send(&borrowed(&[file("x")])).await.is_ok());
        // Whoever has taken its place keeps it.
        fs::remove_file(&path).expect("ours");
        let _other = UnixListener::bind(&path).expect("free");
        sandbox.end_daemon(Signal::SIGTERM).await;
        assert!(path.exists());
    });
}

#[test]
fn a_file_in_the_sockets_place_is_told_and_stays() {
    e2e(async |sandbox| {
        let path = sandbox.runtime_dir().join("conmon-fd.sock");
        fs::write(&path, "precious").expect("ours");
        let refused = sandbox.client().start_fd_socket().await.unwrap_err().to_string();
        assert!(refused.contains("Address already in use"), "{refused}");
        sandbox.end_daemon(Signal::SIGTERM).await;
        sandbox.restart_daemon(|_| {}).await;
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    });
}
