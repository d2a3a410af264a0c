//! The legacy attach socket: D12 to D17, D30 to D32. More of it is in `tests/attach_socket/`.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use holdfast::{
    client::{ExecSync, ServeAttach},
    model::{StdStream, WindowSize},
};

use crate::support::{self, BundleSpec, RawAttach, Sandbox, collect, eventually, procfs, within};

fn numbers(last: u32) -> Vec<u8> {
    (1..=last).map(|number| format!("{number}\n")).collect::<String>().into_bytes()
}

/// Sends bytes in packets of a size to a container that copies its stdin, and returns the copy.
async fn copy_of(sandbox: &Sandbox, bytes: &[u8], packet: usize) -> Vec<u8> {
    sandbox.run("c", &BundleSpec::shell("cat >/copy; echo end >/seen").stdin()).await;
    let client = sandbox.attach_raw("c", true).await;
    client.send_all(bytes, packet).await;
    client.half_close();
    sandbox.wait_file("seen", "end\n").await;
    assert_eq!(client.collect().await.done, 1);
    fs::read(sandbox.in_rootfs("copy")).unwrap()
}

#[test]
fn d12_reopen_resize_and_attach_reach_the_container_during_an_exec() {
    support::e2e(async |sandbox| {
        let script = "stty -echo; echo up; while read line; do echo got $line; stty size; done";
        sandbox.run("c", &BundleSpec::shell(script).terminal().stdin()).await;
        sandbox.wait_log("c", "up").await;
        let command =
            ["sh", "-c", "echo running >/exec; while [ ! -e /go ]; do sleep 0.05; done; stty size | grep 132"];
        let exec = ExecSync {
            id: "c".to_owned(),
            command: command.map(str::to_owned).to_vec(),
            terminal: true,
            ..ExecSync::default()
        };
        let client = sandbox.client();
        let calls = async {
            sandbox.wait_file("exec", "running\n").await;
            let size = WindowSize { cols: 132, rows: 44 };
            within(client.set_window_size("c", size)).await.unwrap();
            fs::rename(sandbox.log_path("c"), sandbox.container("c").join("old")).unwrap();
            within(client.reopen_log("c")).await.unwrap();
            let attached = sandbox.attach_raw("c", false).await;
            attached.send(b"line\n").await;
            attached.wait_output("got line\r\n44 132\r\n").await;
            sandbox.wait_log("c", "got line").await;
            fs::write(sandbox.in_rootfs("go"), "").unwrap();
        };
        let (reply, ()) = tokio::join!(client.exec_sync(&exec), calls);
        assert_eq!(reply.unwrap().exit_code, 1, "its own terminal was not touched");
    });
}

#[test]
fn d13_stdin_of_many_packets_arrives_whole() {
    support::e2e(async |sandbox| {
        let bytes = numbers(40_000);
        assert!(copy_of(sandbox, &bytes, 100).await == bytes);
    });
}

#[test]
fn d14_a_large_stdin_packet_is_not_cut() {
    support::e2e(async |sandbox| {
        // Packets about as large as the kernel lets a client send that asks for nothing.
        let bytes = numbers(200_000);
        assert!(copy_of(sandbox, &bytes, 180_000).await == bytes);
    });
}

#[test]
fn d15_nul_bytes_are_input_like_others() {
    support::e2e(async |sandbox| {
        let bytes = b"\0before\0\0after\0".repeat(100);
        assert!(copy_of(sandbox, &bytes, 7).await == bytes);
    });
}

#[test]
fn d16_no_done_packet_comes_while_one_stream_still_flows() {
    support::e2e(async |sandbox| {
        let script = "exec 2>&-; for n in 1 2 3 4 5; do sleep 0.1; echo $n; done";
        sandbox.create("c", &BundleSpec::shell(script)).await;
        let client = sandbox.attach_raw("c", false).await;
        sandbox.start("c");
        let all = client.collect().await;
        assert_eq!((&all.stdout[..], all.done), (&b"1\n2\n3\n4\n5\n"[..], 1));
    });
}

#[test]
fn d17_a_client_behind_by_many_chunks_is_not_cut_off_without_a_word() {
    support::e2e(async |sandbox| {
        // 32 chunks of one read each, and more than any client is waited for.
        for (id, last) in [("behind", 80_000), ("far-behind", 300_000)] {
            sandbox.create(id, &BundleSpec::shell(&format!("seq 1 {} | dd bs=16k 2>/dev/null", last / 2))).await;
            let client = sandbox.attach_raw(id, false).await;
            sandbox.start(id);
            assert_eq!(sandbox.wait_exit(id).await, 0);
            assert!(sandbox.logged(id, StdStream::Stdout) == numbers(last / 2), "the container did not wait for it");
            let all = client.collect().await;
            let cut = numbers(last / 2).len() - all.stdout.len();
            let told = format!("attach client too slow: {cut} bytes not delivered\n");
            match id {
                "behind" => assert_eq!((cut, all.done, all.stderr.len()), (0, 1, 0)),
                _ => assert_eq!((all.done, String::from_utf8(all.stderr).unwrap()), (0, told)),
            }
        }
    });
}

#[test]
fn d30_the_end_of_stdin_ends_nothing_but_stdin() {
    support::e2e(async |sandbox| {
        let script = "cat; echo eof; while [ ! -e /go ]; do sleep 0.05; done; echo last; exit 7";
        sandbox.run("c", &BundleSpec::shell(script).stdin()).await;
        let path = sandbox.listen("c", true).await;
        let (typist, watcher) = (RawAttach::connect(&path).unwrap(), RawAttach::connect(&path).unwrap());
        let attach = ServeAttach { id: "c".to_owned(), stdout: true, stderr: true, ..ServeAttach::default() };
        let streaming = sandbox.attach_ws(attach).await;
        let mut exec = sandbox.exec_ws("c", &["cat"]).await;
        typist.send(b"typed\n").await;
        typist.half_close();
        watcher.wait_output("typed\neof\n").await;
        exec.send_stdin(b"still\n").await.unwrap();
        exec.close_stdin().await.unwrap();
        assert_eq!(collect(exec).await.stdout, b"still\n");
        fs::write(sandbox.in_rootfs("go"), "").unwrap();
        let (typist, watcher) = (typist.collect().await, watcher.collect().await);
        assert_eq!((&typist.stdout[..], typist.done), (&b"typed\neof\nlast\n"[..], 1));
        assert_eq!((&watcher.stdout[..], watcher.done), (&b"last\n"[..], 1));
        assert_eq!(collect(streaming).await.stdout, b"typed\neof\nlast\n");
        assert_eq!(sandbox.wait_exit("c").await, 7);
    });
}

#[test]
fn d31_listeners_and_files_go_with_the_container_and_a_stale_file_is_no_live_one() {
    support::e2e(async |sandbox| {
        sandbox.run("keeper", &BundleSpec::idle()).await;
        let daemon = sandbox.daemon_pid();
        let before = procfs::descriptors(daemon);
        for round in 0..10 {
            let id = format!("c{round}");
            fs::create_dir_all(sandbox.container(&id)).unwrap();
            let path = sandbox.attach_path(&id);
            // As a monitor that was killed leaves it.
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            sandbox.create(&id, &BundleSpec::shell("read line; echo got $line").stdin()).await;
            let client = sandbox.attach_raw(&id, false).await;
            let idle = RawAttach::connect(&path).unwrap();
            sandbox.start(&id);
            client.send(b"x\n").await;
            let all = client.collect().await;
            assert_eq!((&all.stdout[..], all.done), (&b"got x\n"[..], 1));
            assert_eq!(idle.collect().await.done, 1);
            eventually("the socket to go with its container", || (!path.exists()).then_some(())).await;
        }
        eventually("the descriptors of before", || (procfs::descriptors(daemon) <= before).then_some(())).await;
    });
}

#[test]
fn d31_clients_that_ended_are_not_looked_after_by_a_timer() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let path = sandbox.listen("c", false).await;
        let half_closed = [(); 50].map(|()| {
            let client = RawAttach::connect(&path).unwrap();
            client.half_close();
            client
        });
        let daemon = sandbox.daemon_pid();
        let switches = || -> u64 { procfs::status_line(daemon, "voluntary_ctxt_switches").parse().unwrap() };
        // A look every 500 ms would wake it four times, however the clients' clocks coincide.
        within(async {
            loop {
                let before = switches();
                tokio::time::sleep(Duration::from_secs(2)).await;
                if switches() - before <= 2 {
                    break;
                }
            }
        })
        .await;
        drop(half_closed);
    });
}

#[test]
fn d32_the_socket_is_its_owners_alone() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let path = sandbox.listen("c", false).await;
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    });
}
