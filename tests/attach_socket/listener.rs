//! The socket and its file.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
};

use holdfast::client::AttachContainer;
use nix::sys::signal::Signal;

use crate::support::{self, BundleSpec, RawAttach, Sandbox, eventually, procfs};

fn at(path: &Path) -> AttachContainer {
    AttachContainer { id: "c".to_owned(), socket_path: path.to_owned(), stop_after_stdin_eof: false }
}

async fn listen(sandbox: &Sandbox, path: &Path) -> Result<(), String> {
    sandbox.client().attach_container(&at(path)).await.map_err(|error| error.to_string())
}

async fn descriptors_back(sandbox: &Sandbox, before: usize) {
    let daemon = sandbox.daemon_pid();
    eventually("the descriptors of before", || (procfs::descriptors(daemon) <= before).then_some(())).await;
}

fn idle_with_stdin() -> BundleSpec {
    BundleSpec::shell("while read line; do echo got $line; done; echo end").stdin()
}

#[test]
fn a_second_call_for_the_same_path_finds_the_listener_and_its_clients_undisturbed() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &idle_with_stdin()).await;
        let path = sandbox.listen("c", false).await;
        let client = RawAttach::connect(&path).unwrap();
        let (inode, descriptors) = (fs::metadata(&path).unwrap().ino(), procfs::descriptors(sandbox.daemon_pid()));
        for _ in 0..50 {
            sandbox.listen("c", false).await;
        }
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        // One more for the client, if its connection had not been accepted before.
        assert!(procfs::descriptors(sandbox.daemon_pid()) <= descriptors + 1);
        client.send(b"x\n").await;
        client.wait_output("got x\n").await;
    });
}

#[test]
fn stop_after_eof_is_what_the_latest_call_before_the_connection_said() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &idle_with_stdin()).await;
        let first = sandbox.attach_raw("c", false).await;
        first.send(b"a\n").await;
        first.wait_output("got a\n").await;
        let second = sandbox.attach_raw("c", true).await;
        second.send(b"b\n").await;
        second.wait_output("got b\n").await;
        drop(first);
        second.send(b"c\n").await;
        second.wait_output("got c\n").await;
        second.half_close();
        assert_eq!(second.collect().await.stdout, b"end\n");
    });
}

#[test]
fn after_its_file_was_removed_a_call_makes_a_new_socket_and_the_old_clients_go_on() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &idle_with_stdin()).await;
        let old = sandbox.attach_raw("c", false).await;
        old.send(b"1\n").await;
        old.wait_output("got 1\n").await;
        let before = procfs::descriptors(sandbox.daemon_pid());
        for _ in 0..20 {
            fs::remove_file(sandbox.attach_path("c")).unwrap();
            let new = sandbox.attach_raw("c", false).await;
            new.send(b"2\n").await;
            new.wait_output("got 2\n").await;
            old.wait_output("got 2\n").await;
        }
        descriptors_back(sandbox, before).await;
    });
}

#[test]
fn a_client_that_removes_the_file_when_it_leaves_leaves_no_listener_behind() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &idle_with_stdin()).await;
        let before = procfs::descriptors(sandbox.daemon_pid());
        let client = sandbox.attach_raw("c", false).await;
        client.send(b"x\n").await;
        client.wait_output("got x\n").await;
        drop(client);
        fs::remove_file(sandbox.attach_path("c")).unwrap();
        descriptors_back(sandbox, before).await;
    });
}

#[test]
fn the_socket_is_made_below_missing_parents_and_under_a_path_longer_than_an_address() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("echo hello")).await;
        let path = sandbox.path().join("d".repeat(200)).join("e").join("attach");
        listen(sandbox, &path).await.unwrap();
        let client = RawAttach::connect(&path).unwrap();
        sandbox.start("c");
        let all = client.collect().await;
        assert_eq!((&all.stdout[..], all.done), (&b"hello\n"[..], 1));
    });
}

#[test]
fn a_live_socket_of_somebody_else_and_what_is_no_socket_are_refused_and_left_alone() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &idle_with_stdin()).await;
        sandbox.run("other", &idle_with_stdin()).await;
        let others = sandbox.listen("other", true).await;
        let stream = sandbox.path().join("stream");
        let foreign = std::os::unix::net::UnixListener::bind(&stream).unwrap();
        foreign.set_nonblocking(true).unwrap();
        for path in [&others, &stream] {
            let error = listen(sandbox, path).await.unwrap_err();
            assert!(error.contains("is in use"), "{error}");
        }
        assert!(foreign.accept().is_err(), "its owner was not bothered");
        let (file, directory, link) =
            (sandbox.path().join("file"), sandbox.path().join("dir"), sandbox.path().join("link"));
        fs::write(&file, "precious").unwrap();
        fs::create_dir(&directory).unwrap();
        symlink(&others, &link).unwrap();
        for path in [&file, &directory, &link] {
            let error = listen(sandbox, path).await.unwrap_err();
            assert!(error.contains("is in the way"), "{error}");
            assert!(path.symlink_metadata().is_ok());
        }
        let client = RawAttach::connect(&others).unwrap();
        client.send(b"alive\n").await;
        client.wait_output("got alive\n").await;
    });
}

#[test]
fn a_container_has_at_most_sixteen_sockets_and_those_whose_file_has_gone_do_not_count() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &idle_with_stdin()).await;
        let path = |n: u32| sandbox.path().join(format!("attach-{n}"));
        for n in 0..16 {
            listen(sandbox, &path(n)).await.unwrap();
        }
        let error = listen(sandbox, &path(16)).await.unwrap_err();
        assert!(error.contains("16 attach sockets already"), "{error}");
        assert!(!path(16).exists());
        listen(sandbox, &path(3)).await.unwrap();
        fs::remove_file(path(5)).unwrap();
        listen(sandbox, &path(16)).await.unwrap();
        RawAttach::connect(&path(16)).unwrap();
    });
}

#[test]
fn a_file_that_somebody_else_made_meanwhile_outlives_the_container() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let (path, gone) = (sandbox.listen("c", false).await, sandbox.path().join("other"));
        listen(sandbox, &gone).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        sandbox.runtime(&["kill", "c", "KILL"]);
        eventually("the container's own socket to go", || (!gone.exists()).then_some(())).await;
        assert!(path.exists());
    });
}

#[test]
fn the_daemons_end_removes_sockets_and_tells_the_clients() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let client = sandbox.attach_raw("c", false).await;
        assert!(sandbox.end_daemon(Signal::SIGTERM).await.success());
        assert!(!sandbox.attach_path("c").exists());
        assert_eq!(client.collect().await.done, 1);
    });
}

#[test]
fn hundreds_of_clients_that_connect_and_vanish_leave_nothing_behind() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &idle_with_stdin()).await;
        let path = sandbox.listen("c", false).await;
        let before = procfs::descriptors(sandbox.daemon_pid());
        for round in 0..300 {
            let client = RawAttach::connect(&path).unwrap();
            match round % 4 {
                0 => {}
                1 => client.half_close(),
                2 => client.send(b"typed\n").await,
                _ => {
                    client.send(b"typed\n").await;
                    client.wait_output("got typed\n").await;
                }
            }
        }
        descriptors_back(sandbox, before).await;
        let client = RawAttach::connect(&path).unwrap();
        client.send(b"last\n").await;
        client.wait_output("got last\n").await;
    });
}

#[test]
fn a_client_beyond_the_limit_of_sessions_is_told_why() {
    support::raise_file_limit();
    support::e2e(async |sandbox| {
        sandbox.run("c", &idle_with_stdin()).await;
        let path = sandbox.listen("c", false).await;
        let mut clients: Vec<RawAttach> = (0..512).map(|_| RawAttach::connect(&path).unwrap()).collect();
        let refused = RawAttach::connect(&path).unwrap().collect().await;
        assert_eq!((&refused.stderr[..], refused.done), (&b"too many sessions: try again later\n"[..], 0));
        clients[511].send(b"x\n").await;
        clients[511].wait_output("got x\n").await;
        clients.truncate(511);
        let client = loop {
            let client = RawAttach::connect(&path).unwrap();
            client.send(b"y\n").await;
            // The place is free once the daemon has seen the other go.
            match client.next().await.unwrap() {
                (2, _) => break client,
                refusal => assert_eq!(refusal.0, 3),
            }
        };
        drop((client, clients));
    });
}
