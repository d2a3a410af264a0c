//! From the container to its clients.

use std::fs;

use crate::support::{self, BundleSpec, RawAttach, eventually};

fn numbers(last: u32) -> Vec<u8> {
    (1..=last).map(|number| format!("{number}\n")).collect::<String>().into_bytes()
}

#[test]
fn every_client_gets_both_streams_apart_and_whole_and_one_done_packet_after_the_exit_file() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("seq 1 20000; seq 1 20000 >&2; exit 3")).await;
        let path = sandbox.listen("c", false).await;
        let clients = [(); 3].map(|()| RawAttach::connect(&path).unwrap());
        sandbox.start("c");
        let read = clients.map(async |client| {
            let all = client.collect().await;
            assert_eq!(fs::read_to_string(sandbox.exit_path("c")).unwrap(), "3");
            all
        });
        let [one, two, three] = read;
        let (one, two, three) = tokio::join!(one, two, three);
        for all in [one, two, three] {
            assert!(all.stdout == numbers(20_000) && all.stderr == numbers(20_000));
            assert_eq!(all.done, 1);
            assert!(all.largest <= 8192, "{}", all.largest);
        }
    });
}

#[test]
fn output_of_before_the_connection_is_not_repeated() {
    support::e2e(async |sandbox| {
        let script = "echo before; while [ ! -e /go ]; do sleep 0.05; done; echo after";
        sandbox.run("c", &BundleSpec::shell(script)).await;
        let path = sandbox.listen("c", false).await;
        sandbox.wait_log("c", "before").await;
        let client = RawAttach::connect(&path).unwrap();
        // A connection waits in the kernel until the daemon accepts it; an answered call is behind that.
        sandbox.client().version(false).await.unwrap();
        fs::write(sandbox.in_rootfs("go"), "").unwrap();
        let all = client.collect().await;
        assert_eq!((&all.stdout[..], &all.stderr[..], all.done), (&b"after\n"[..], &b""[..], 1));
    });
}

#[test]
fn all_of_a_terminal_is_stdout() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("echo out; echo err >&2").terminal()).await;
        let client = sandbox.attach_raw("c", false).await;
        sandbox.start("c");
        let all = client.collect().await;
        assert_eq!((&all.stdout[..], &all.stderr[..], all.done), (&b"out\r\nerr\r\n"[..], &b""[..], 1));
    });
}

#[test]
fn a_client_that_reads_only_after_the_exit_gets_everything_and_the_listener_does_not_wait_for_it() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("seq 1 30000")).await;
        let client = sandbox.attach_raw("c", false).await;
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let path = sandbox.attach_path("c");
        eventually("the socket to go with the container", || (!path.exists()).then_some(())).await;
        let all = client.collect().await;
        assert!(all.stdout == numbers(30_000) && all.done == 1, "{} {}", all.stdout.len(), all.done);
    });
}

/// What the last words of a client that was cut say is missing.
fn missed(text: &str) -> usize {
    let number =
        text.split_once("attach client too slow: ").and_then(|(_, rest)| rest.split_once(" bytes not delivered"));
    number.unwrap_or_else(|| panic!("{text:?}")).0.parse().unwrap()
}

#[test]
fn a_client_that_is_too_slow_is_told_exactly_what_it_missed_and_others_get_everything() {
    support::e2e(async |sandbox| {
        sandbox
            .create("c", &BundleSpec::shell("seq 1 60000; while [ ! -e /go ]; do sleep 0.05; done; seq 60001 120000"))
            .await;
        let path = sandbox.listen("c", false).await;
        let (slow, fast) = (RawAttach::connect(&path).unwrap(), RawAttach::connect(&path).unwrap());
        sandbox.start("c");
        let mut seen = fast.wait_output("\n60000\n").await;
        fs::write(sandbox.in_rootfs("go"), "").unwrap();
        let rest = fast.collect().await;
        seen.extend(rest.stdout);
        assert!(seen == numbers(120_000) && rest.done == 1, "{}", seen.len());
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let all = slow.collect().await;
        assert_eq!(all.done, 0, "no done packet for output that is not complete");
        assert!(numbers(120_000).starts_with(&all.stdout) && all.stdout.len() >= 256 * 1024);
        let text = String::from_utf8(all.stderr).unwrap();
        assert_eq!(all.stdout.len() + missed(&text), numbers(120_000).len());
        assert!(sandbox.daemon_log().contains("attach client too slow"));
    });
}

#[test]
fn a_terminals_client_that_is_too_slow_is_told_on_stdout() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("seq 1 200000").terminal()).await;
        let client = sandbox.attach_raw("c", false).await;
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let all = client.collect().await;
        assert!(all.stderr.is_empty() && all.done == 0);
        let text = String::from_utf8(all.stdout).unwrap();
        let output = text.find("\r\nattach client").unwrap();
        assert_eq!(output + missed(&text), numbers(200_000).len() + 200_000, "a terminal adds a CR to each line");
    });
}

#[test]
fn the_done_packet_comes_once_also_when_both_streams_end_long_before_the_container() {
    support::e2e(async |sandbox| {
        let script = "echo last; exec >&- 2>&-; read line; while [ ! -e /go ]; do sleep 0.05; done";
        sandbox.create("c", &BundleSpec::shell(script).stdin()).await;
        let client = sandbox.attach_raw("c", false).await;
        sandbox.start("c");
        client.wait_output("last\n").await;
        client.send(b"still read\n").await;
        fs::write(sandbox.in_rootfs("go"), "").unwrap();
        let all = client.collect().await;
        assert_eq!((all.stdout.len(), all.done), (0, 1));
        assert_eq!(sandbox.wait_exit("c").await, 0);
    });
}
