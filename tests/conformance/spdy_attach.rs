//! Attach over SPDY (streaming 4.6 and 5.7 to 5.10).

use holdfast::client::ServeAttach;
use serde_json::json;

use crate::{
    ALL, OUTPUT, SUCCESS, TTY, numbers,
    support::{
        self, BundleSpec, Sandbox, collect,
        raw_spdy::{Frame, Ids, RawSpdy, V4},
    },
};

async fn attach(sandbox: &Sandbox, stdin: bool, types: &[&'static str]) -> (RawSpdy, Ids) {
    let attach = ServeAttach { id: "c".to_owned(), stdin, stdout: true, stderr: true };
    RawSpdy::session(&sandbox.client().serve_attach(&attach).await.expect("a URL"), types).await
}

#[test]
fn all_clients_of_a_container_see_all_of_its_output() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("read a; seq 1 20000; echo $a >&2").stdin()).await;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(attach(sandbox, true, &ALL).await);
        }
        let watch = ServeAttach { id: "c".to_owned(), stdin: false, stdout: true, stderr: true };
        let other_transport = sandbox.attach_ws(watch).await;
        sessions.push(attach(sandbox, false, &OUTPUT).await);
        sandbox.start("c");
        let (first, ids) = &mut sessions[0];
        first.writer.data(ids["stdin"], b"typed\n").await;
        for (session, ids) in sessions {
            let seen = session.finish(&ids).await;
            assert!(seen.text(ids["stdout"]) == numbers(20_000) && seen.text(ids["stderr"]) == "typed\n");
            assert_eq!(seen.text(ids["error"]), SUCCESS);
        }
        let all = collect(other_transport).await;
        assert!(all.stdout == numbers(20_000).as_bytes() && all.stderr == b"typed\n"[..]);
    });
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_and_is_told_what_it_missed() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("seq 1 2000000; echo end >&2")).await;
        let (slow, slow_ids) = attach(sandbox, false, &OUTPUT).await;
        sandbox.start("c");
        assert_eq!(sandbox.wait_exit("c").await, 0);
        assert_eq!(sandbox.log("c").len(), 2_000_001);
        let seen = slow.finish(&slow_ids).await;
        let status: serde_json::Value = serde_json::from_str(&seen.text(slow_ids["error"])).expect("one JSON object");
        let text = status["message"].as_str().expect("a message");
        assert!(status["reason"] == "InternalError" && text.contains("too slow"), "{status}");
        let stdout = seen.text(slow_ids["stdout"]);
        assert!(numbers(2_000_000).starts_with(&stdout) && stdout.len() > 1000, "{} bytes", stdout.len());
        // The message names the bytes that are missing, those of stderr included.
        let missed: usize =
            text.split_whitespace().filter_map(|word| word.parse::<usize>().ok()).next_back().expect("a number");
        let stderr = seen.text(slow_ids["stderr"]);
        assert_eq!(stdout.len() + stderr.len() + missed, numbers(2_000_000).len() + 4, "{text}");
    });
}

#[test]
fn the_end_of_a_clients_stdin_is_the_containers_with_stdin_once() {
    support::e2e(async |sandbox| {
        let once = json!({ "annotations": { "io.kubernetes.cri-o.StdinOnce": "true" } });
        sandbox.create("c", &BundleSpec::shell("cat; echo end").stdin().with(once)).await;
        let (mut session, ids) = attach(sandbox, true, &ALL).await;
        sandbox.start("c");
        session.writer.data(ids["stdin"], b"hello\n").await;
        session.writer.fin(ids["stdin"]).await;
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("hello\nend\n".into(), SUCCESS.into()));
    });
}

#[test]
fn without_stdin_once_it_is_the_end_of_that_clients_session_alone() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("while read line; do echo got $line; done; echo end").stdin()).await;
        for line in ["one", "two"] {
            let (mut session, ids) = attach(sandbox, true, &ALL).await;
            session.writer.data(ids["stdin"], format!("{line}\n").as_bytes()).await;
            session.reader.wait_output(ids["stdout"], &format!("got {line}\n")).await;
            session.writer.fin(ids["stdin"]).await;
            assert_eq!(session.finish(&ids).await.text(ids["error"]), SUCCESS);
        }
        assert!(!sandbox.exit_path("c").exists());
    });
}

#[test]
fn a_terminal_is_typed_into_resized_and_outlives_the_end_of_stdin() {
    support::e2e(async |sandbox| {
        let script = "stty -onlcr; trap 'stty size' WINCH; echo up; while ! read line; do :; done; echo got $line; \
                      while [ ! -e /go ]; do sleep 0.05; done; echo end; exit 5";
        sandbox.create("c", &BundleSpec::shell(script).terminal().stdin()).await;
        // The container's terminal stands for the request's: stderr, which was asked for, does not exist.
        let (mut session, ids) = attach(sandbox, true, &TTY).await;
        let stderr = session.writer.offer(&[("streamtype", "stderr")]).await;
        assert!(matches!(session.reader.next().await, Some(Frame::Reset { id, .. }) if id == stderr));
        sandbox.start("c");
        session.reader.wait_output(ids["stdout"], "up\n").await;
        session.writer.data(ids["resize"], b"{\"Width\":101,\"Height\":51}\n").await;
        session.reader.wait_output(ids["stdout"], "51 101\n").await;
        session.writer.data(ids["stdin"], b"line\n").await;
        session.reader.wait_output(ids["stdout"], "got line\n").await;
        session.writer.fin(ids["stdin"]).await;
        std::fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("end\n".into(), SUCCESS.into()));
        assert_eq!(sandbox.wait_exit("c").await, 5);
    });
}

#[test]
fn a_client_that_vanishes_leaves_the_container_and_the_other_clients_alone() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("while read line; do echo got $line; done").stdin()).await;
        let (gone, _) = attach(sandbox, true, &ALL).await;
        let (mut stays, ids) = attach(sandbox, true, &ALL).await;
        gone.reset();
        for line in ["one\n", "two\n"] {
            stays.writer.data(ids["stdin"], line.as_bytes()).await;
            stays.reader.wait_output(ids["stdout"], &format!("got {line}")).await;
        }
        stays.bye().await;
        assert!(!sandbox.exit_path("c").exists());
    });
}

#[test]
fn a_container_that_went_meanwhile_is_a_failed_status() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("while [ ! -e /go ]; do sleep 0.05; done")).await;
        let attach = ServeAttach { id: "c".to_owned(), stdin: false, stdout: true, stderr: true };
        let url = sandbox.client().serve_attach(&attach).await.expect("it runs");
        std::fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        sandbox.wait_exit("c").await;
        while sandbox.client().reopen_log("c").await.is_ok() {}
        let mut session = RawSpdy::connect(&url, V4).await;
        let ids = session.open_all(&OUTPUT).await;
        let status = session.finish(&ids).await.text(ids["error"]);
        assert!(status.contains("error attaching to container: ") && status.contains("InternalError"), "{status}");
    });
}
