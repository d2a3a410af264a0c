//! Items 48 to 54: how a session ended, over SPDY.

use holdfast::client::ServeAttach;

use crate::{
    ALL, OUTPUT, SUCCESS, exec_url, failure, output_url,
    support::{
        self, BundleSpec,
        raw_spdy::{FIN, RawSpdy, V4, data},
        with_container,
    },
};

#[test]
fn s48_every_exit_code_is_told() {
    with_container(async |sandbox| {
        for code in [0, 1, 2, 126, 127, 255] {
            let url = output_url(sandbox, &["sh", "-c", &format!("exit {code}")]).await;
            let (session, ids) = RawSpdy::session(&url, &OUTPUT).await;
            let status = if code == 0 { SUCCESS.to_owned() } else { failure(code) };
            assert_eq!(session.finish(&ids).await.text(ids["error"]), status);
        }
    });
}

#[test]
fn s49_a_signal_is_told_as_a_shell_does() {
    with_container(async |sandbox| {
        for (signal, code) in [(9, 137), (11, 139)] {
            let url = output_url(sandbox, &["sh", "-c", &format!("kill -{signal} $$")]).await;
            let (session, ids) = RawSpdy::session(&url, &OUTPUT).await;
            assert_eq!(session.finish(&ids).await.text(ids["error"]), failure(code));
        }
    });
}

#[test]
fn s51_before_v4_success_is_silent_and_failure_is_a_text() {
    with_container(async |sandbox| {
        for protocol in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
            for (code, status) in [(0, ""), (3, "command terminated with non-zero exit code: exit status 3")] {
                let url = output_url(sandbox, &["sh", "-c", &format!("echo x; exit {code}")]).await;
                let mut session = RawSpdy::connect(&url, protocol).await;
                let ids = session.open_all(&OUTPUT).await;
                let seen = session.finish(&ids).await;
                assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("x\n".into(), status.into()));
            }
        }
    });
}

#[test]
fn s52_the_status_comes_whether_stdin_is_open_ended_or_was_never_there() {
    with_container(async |sandbox| {
        let (session, ids) = RawSpdy::session(&exec_url(sandbox, &["true"]).await, &ALL).await;
        assert_eq!(session.finish(&ids).await.text(ids["error"]), SUCCESS);

        let mut session = RawSpdy::connect(&exec_url(sandbox, &["cat"]).await, V4).await;
        let mut ids = session.open_all(&["error", "stdin"]).await;
        session.writer.raw(&data(ids["stdin"], FIN, b"early")).await;
        ids.extend(session.open_all(&["stdout", "stderr"]).await);
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("early".into(), SUCCESS.into()));

        let (session, ids) = RawSpdy::session(&output_url(sandbox, &["cat"]).await, &OUTPUT).await;
        assert_eq!(session.finish(&ids).await.text(ids["error"]), SUCCESS);
    });
}

// Items 46 and 50 too: a command that cannot be started has a status of its own kind, and never a bare end.
#[test]
fn s46_a_command_that_cannot_be_started_is_an_internal_error() {
    with_container(async |sandbox| {
        let (session, ids) = RawSpdy::session(&exec_url(sandbox, &["no-such-program"]).await, &ALL).await;
        let status: serde_json::Value =
            serde_json::from_str(&session.finish(&ids).await.text(ids["error"])).expect("one JSON object");
        assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"InternalError".into()));
        assert!(!status.to_string().contains("ExitCode"), "{status}");
    });
}

#[test]
fn s54_an_attach_ends_with_success_whatever_the_containers_code() {
    support::e2e(async |sandbox| {
        sandbox.create("c", &BundleSpec::shell("echo out; exit 5")).await;
        let attach = ServeAttach { id: "c".to_owned(), stdin: false, stdout: true, stderr: true };
        let url = sandbox.client().serve_attach(&attach).await.expect("a URL");
        let (session, ids) = RawSpdy::session(&url, &OUTPUT).await;
        sandbox.start("c");
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("out\n".into(), SUCCESS.into()));
        assert_eq!(sandbox.wait_exit("c").await, 5);
    });
}
