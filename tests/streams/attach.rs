//! streaming 4.6.

use std::{fs, process::Command};

use holdfast::{client::ServeAttach, model::Outcome};
use serde_json::json;

use crate::{
    support::{self, BundleSpec, collect, within},
    websocket::wait_output,
};

fn attach(stdin: bool) -> ServeAttach {
    ServeAttach { id: "c".to_owned(), stdin, stdout: true, stderr: true }
}

#[test]
fn a_client_types_into_a_terminal_and_sees_it_until_the_container_exits() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("cat; exit 5").terminal().stdin()).await;
        let mut session = sandbox.attach_ws(attach(true)).await;
        sandbox.start("c");
        session.send_stdin(b"hello\n").await.expect("open");
        wait_output(&mut session, "hello\r\nhello\r\n").await;
        session.send_stdin(b"\x04").await.expect("open");
        let all = collect(session).await;
        assert_eq!(
            (&all.statuses[..], all.close_code),
            (&[Outcome::Exited(0)][..], Some(1000)),
            "success whatever the code"
        );
        assert_eq!(sandbox.wait_exit("c").await, 5);
    });
}

#[test]
fn the_end_of_a_clients_stdin_ends_the_containers_only_with_stdin_once() {
    support::e2e(async |sandbox| {
        let once = json!({ "annotations": { "io.kubernetes.cri-o.StdinOnce": "true" } });
        sandbox.create("c", &BundleSpec::shell("cat; echo end").stdin().with(once)).await;
        let mut session = sandbox.attach_ws(attach(true)).await;
        sandbox.start("c");
        session.send_stdin(b"hello\n").await.expect("open");
        session.close_stdin().await.expect("v5");
        assert_eq!(collect(session).await.stdout, b"hello\nend\n");
        assert_eq!(sandbox.wait_exit("c").await, 0);
    });
}

#[test]
fn without_stdin_once_the_end_of_a_clients_stdin_is_the_end_of_its_session_alone() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("while read line; do echo got $line; done; echo end").stdin()).await;
        for line in ["one", "two"] {
            let mut session = sandbox.attach_ws(attach(true)).await;
            session.send_stdin(format!("{line}\n").as_bytes()).await.expect("open");
            wait_output(&mut session, &format!("got {line}\n")).await;
            session.close_stdin().await.expect("v5");
            assert_eq!(collect(session).await.statuses, [Outcome::Exited(0)]);
        }
        assert!(!sandbox.exit_path("c").exists());
    });
}

#[test]
fn a_client_that_does_not_read_holds_up_neither_the_container_nor_the_log_and_is_told_what_it_missed() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("seq 1 2000000; echo end >&2")).await;
        let session = sandbox.attach_ws(attach(false)).await;
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.log("c").len(), 2_000_001);
        let all = collect(session).await;
        let [Outcome::Failed(text)] = &all.statuses[..] else { panic!("{:?}", all.statuses) };
        assert!(
            text.contains("too slow") && all.close_code == Some(1000) && all.stdout.starts_with(b"1\n2\n"),
            "{text}"
        );
    });
}

#[test]
fn a_viewer_that_may_skip_gets_the_newest_output_and_is_told_how_much_it_missed() {
    let skip = |command: &mut Command| _ = command.env("HOLDFAST_ATTACH_LAG", "skip");
    support::e2e_with(skip, async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("seq 1000000 1999999; echo end")).await;
        let session = sandbox.attach_ws(attach(false)).await;
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let all = collect(session).await;
        assert_eq!((&all.statuses[..], all.close_code), (&[Outcome::Exited(0)][..], Some(1000)));
        assert!(all.stdout.starts_with(b"1000000\n1000001\n") && all.stdout.ends_with(b"1999999\nend\n"));
        let notices = String::from_utf8(all.stderr).expect("our own text");
        let missed: usize =
            notices.split(" bytes left out").filter_map(|text| text.rsplit(' ').next()?.parse::<usize>().ok()).sum();
        assert_eq!(all.stdout.len() + missed, 8_000_004, "{notices}");
    });
}

#[test]
fn a_viewer_that_is_waited_for_holds_up_its_container_and_is_cut_when_the_time_is_over() {
    let wait = |command: &mut Command| _ = command.env("HOLDFAST_ATTACH_LAG", "wait:1s");
    support::e2e_with(wait, async |sandbox| {
        // More than the kernel holds between two sockets.
        let script = "seq 1000000 3999999";
        sandbox.create("reads", &BundleSpec::shell(script)).await;
        let session = sandbox.attach_ws(ServeAttach { id: "reads".to_owned(), ..attach(false) }).await;
        sandbox.start("reads");
        let all = collect(session).await;
        assert_eq!((all.stdout.len(), &all.statuses[..]), (24_000_000, &[Outcome::Exited(0)][..]));
        sandbox.create("waits", &BundleSpec::shell(script)).await;
        let session = sandbox.attach_ws(ServeAttach { id: "waits".to_owned(), ..attach(false) }).await;
        sandbox.start("waits");
        assert_eq!(sandbox.wait_exit("waits").await, 0);
        assert_eq!(sandbox.log("waits").len(), 3_000_000);
        let all = collect(session).await;
        assert!(
            matches!(&all.statuses[..], [Outcome::Failed(text)] if text.contains("too slow")),
            "{:?}",
            all.statuses
        );
    });
}

#[test]
fn a_container_that_is_gone_is_refused_and_one_that_went_meanwhile_is_a_failed_status() {
    support::e2e(async |sandbox| {
        let unknown = sandbox.client().serve_attach(&attach(false)).await.expect_err("unknown").to_string();
        assert!(unknown.contains("not-found"), "{unknown}");
        sandbox.run("c", &BundleSpec::shell("while [ ! -e /go ]; do sleep 0.05; done")).await;
        let url = sandbox.client().serve_attach(&attach(false)).await.expect("it runs");
        fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        sandbox.wait_exit("c").await;
        while sandbox.client().reopen_log("c").await.is_ok() {}
        let session = holdfast::client::StreamClient::connect(&url, &holdfast::client::STREAM_PROTOCOLS).await;
        let all = within(session.expect("the URL is good").collect()).await.expect("a session");
        assert!(matches!(&all.statuses[..], [Outcome::Failed(_)]) && all.close_code == Some(1000), "{all:?}");
    });
}
