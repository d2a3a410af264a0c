//! From clients to the container.

use std::fs;

use crate::support::{self, BundleSpec, RawAttach, Sandbox, eventually, procfs, within};

/// Bytes of every value, in no short pattern.
fn bytes(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Waits until a container that copies its stdin to a file has seen its end, and returns the copy.
async fn copied(sandbox: &Sandbox) -> Vec<u8> {
    sandbox.wait_file("seen", "end\n").await;
    fs::read(sandbox.in_rootfs("copy")).unwrap()
}

fn copying() -> BundleSpec {
    BundleSpec::shell("cat >/copy; echo end >/seen; echo done; while [ ! -e /go ]; do sleep 0.05; done").stdin()
}

fn go(sandbox: &Sandbox) {
    fs::write(sandbox.in_rootfs("go"), "").unwrap();
}

#[test]
fn input_of_any_size_arrives_byte_for_byte_however_it_is_cut() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &copying()).await;
        let client = sandbox.attach_raw("c", true).await;
        client.raise_packet_limit(100_000);
        let mut sent = Vec::new();
        for (length, size) in [(100, 1), (100_000, 1000), (1_000_000, 8192), (2_000_000, 100_000)] {
            let bytes = bytes(length);
            client.send_all(&bytes, size).await;
            sent.extend(bytes);
        }
        client.half_close();
        assert!(copied(sandbox).await == sent);
        go(sandbox);
        let all = client.collect().await;
        assert_eq!((&all.stdout[..], all.done), (&b"done\n"[..], 1), "its half-close did not end its output");
    });
}

#[test]
fn a_container_that_does_not_read_makes_its_client_wait_and_loses_nothing() {
    support::e2e(async |sandbox| {
        let script = "while [ ! -e /read ]; do sleep 0.05; done; cat >/copy; echo end >/seen; echo done";
        sandbox.run("c", &BundleSpec::shell(script).stdin()).await;
        let client = sandbox.attach_raw("c", true).await;
        let all = bytes(6_000_000);
        let mut sent = 0;
        // The queue, what may be read ahead, the pipe and the kernel's queue are far below this.
        while let Ok(()) =
            tokio::time::timeout(std::time::Duration::from_secs(1), client.try_send(&all[sent..sent + 1000]))
                .await
                .map(Result::unwrap)
        {
            sent += 1000;
            assert!(sent < 2_500_000, "the client was never made to wait");
        }
        fs::write(sandbox.in_rootfs("read"), "").unwrap();
        client.send_all(&all[sent..], 50_000).await;
        client.half_close();
        assert!(copied(sandbox).await == all);
        assert_eq!(client.collect().await.done, 1);
    });
}

#[test]
fn what_a_client_sent_arrives_although_it_closed_at_once_with_its_output_unread() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("tee /copy; echo end >/seen").stdin()).await;
        let client = sandbox.attach_raw("c", true).await;
        let all = bytes(1_000_000);
        client.send_all(&all, 8192).await;
        drop(client);
        assert!(copied(sandbox).await == all);
        assert_eq!(sandbox.wait_exit("c").await, 0);
    });
}

#[test]
fn without_stop_after_eof_a_client_that_ends_leaves_stdin_open_for_others() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("while read line; do echo got $line; done").stdin()).await;
        let path = sandbox.listen("c", false).await;
        let (one, two) = (RawAttach::connect(&path).unwrap(), RawAttach::connect(&path).unwrap());
        one.send(b"one\n").await;
        one.half_close();
        one.wait_output("got one\n").await;
        two.wait_output("got one\n").await;
        two.send(b"two\n").await;
        one.wait_output("got two\n").await;
        drop(two);
        let three = RawAttach::connect(&path).unwrap();
        three.send(b"three\n").await;
        one.wait_output("got three\n").await;
        assert!(!sandbox.exit_path("c").exists());
    });
}

#[test]
fn packets_of_several_clients_are_merged_whole() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &copying()).await;
        let path = sandbox.listen("c", false).await;
        let send = async |letter: u8| {
            let client = RawAttach::connect(&path).unwrap();
            for _ in 0..50 {
                client.send(&[letter; 20_000]).await;
            }
        };
        tokio::join!(send(b'a'), send(b'b'));
        let copy = sandbox.in_rootfs("copy");
        eventually("all input", || (fs::metadata(&copy).ok()?.len() == 2_000_000).then_some(())).await;
        let copy = fs::read(copy).unwrap();
        assert!(copy.chunks(20_000).all(|packet| packet.iter().all(|byte| *byte == packet[0])));
    });
}

#[test]
fn input_of_a_container_without_stdin_is_ignored() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("while [ ! -e /go ]; do sleep 0.05; done; cat; echo end")).await;
        let client = sandbox.attach_raw("c", true).await;
        client.send_all(&bytes(3_000_000), 8192).await;
        client.half_close();
        go(sandbox);
        let all = client.collect().await;
        assert_eq!((&all.stdout[..], all.done), (&b"end\n"[..], 1));
    });
}

#[test]
fn a_terminal_has_no_end_of_input_whatever_the_call_said() {
    support::e2e(async |sandbox| {
        sandbox
            .create(
                "c",
                &BundleSpec::shell("stty -echo; echo up; while read line; do echo got $line; done").terminal().stdin(),
            )
            .await;
        let path = sandbox.listen("c", true).await;
        let (one, two) = (RawAttach::connect(&path).unwrap(), RawAttach::connect(&path).unwrap());
        sandbox.start("c");
        one.wait_output("up\r\n").await;
        one.half_close();
        two.send(b"two\n").await;
        one.wait_output("got two\r\n").await;
        drop(one);
        two.send(b"again\n").await;
        two.wait_output("got again\r\n").await;
    });
}

#[test]
fn a_client_that_never_stops_typing_holds_up_nobody() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("cat >/dev/null").stdin()).await;
        let client = sandbox.attach_raw("c", false).await;
        let typing = async {
            loop {
                client.send(&[0; 8192]).await;
            }
        };
        let calls = async {
            for _ in 0..100 {
                within(sandbox.client().version(false)).await.unwrap();
            }
        };
        tokio::select! {
            () = typing => unreachable!("it never ends"),
            () = calls => {}
        }
        assert!(procfs::runs(sandbox.daemon_pid()));
    });
}
