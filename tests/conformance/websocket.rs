//! Items 25 to 47: what of them is not tested elsewhere; see the table in `main.rs`.

use std::time::Duration;

use holdfast::client::{ServeAttach, ServeExec};
use tokio::time::sleep;

use crate::{
    SUCCESS, exec, exec_url, numbers, output_url,
    support::{
        self, BundleSpec, eventually, procfs,
        raw_ws::{BINARY, FIN, Frame, PING, PONG, RawSession, channel},
        with_container,
    },
    url,
};

const V5: &str = "v5.channel.k8s.io";

#[test]
fn s35_after_a_bad_size_a_good_one_stdin_and_pings_still_work() {
    with_container(async |sandbox| {
        let command = exec(&["sh", "-c", "stty -echo; read line; echo got $line; stty size"]);
        let url = url(sandbox, ServeExec { stdin: true, stdout: true, tty: true, ..command }).await;
        let mut session = RawSession::open(&url, V5).await;
        for bad in
            [&b"nonsense"[..], b"{\"Width\":", b"{\"Width\":-1,\"Height\":{}}", b"]]]", b"\"", b"{\"Width\":99999}"]
        {
            session.send(FIN | BINARY, &[b"\x04", bad].concat()).await;
        }
        session.send(FIN | BINARY, b"\x04{\"Width\":77,\"Height\":33}").await;
        session.send(FIN | PING, b"alive").await;
        session.send(FIN | BINARY, b"\0line\n").await;
        let frames = session.rest().await;
        assert!(frames.contains(&Frame { opcode: PONG, fin: true, payload: b"alive".to_vec() }));
        let text = String::from_utf8(channel(&frames, 1)).expect("text");
        assert!(text.ends_with("got line\r\n33 77\r\n"), "{text:?}");
    });
}

#[test]
fn s39_for_a_client_that_reads_slowly_the_status_is_still_last_and_once() {
    with_container(async |sandbox| {
        let url = output_url(sandbox, &["sh", "-c", "seq 1 1300000; echo end >&2"]).await;
        let mut session = RawSession::open(&url, V5).await;
        let mut frames = Vec::new();
        while let Some(frame) = session.next().await {
            if frames.len() % 32 == 0 && frames.len() < 320 {
                sleep(Duration::from_millis(if support::long() { 1000 } else { 200 })).await;
            }
            let is_last = frame.close_code().is_some();
            frames.push(frame);
            if is_last {
                break;
            }
        }
        assert!(channel(&frames, 1) == numbers(1_300_000).into_bytes() && channel(&frames, 2) == b"end\n");
        let [.., status, close] = &frames[..] else { panic!("too few messages") };
        assert_eq!(
            (&status.payload[..], close.close_code()),
            ([b"\x03", SUCCESS.as_bytes()].concat().as_slice(), Some(1000))
        );
        assert_eq!(channel(&frames, 3), SUCCESS.as_bytes());
    });
}

#[test]
fn s45_an_attach_without_stdin_streams_until_the_container_exits() {
    support::e2e(async |sandbox| {
        let script = "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; exit 5";
        sandbox.create("c", &BundleSpec::shell(script)).await;
        let attach = ServeAttach { id: "c".to_owned(), stdin: false, stdout: true, stderr: true };
        let mut session = RawSession::open(&sandbox.client().serve_attach(&attach).await.expect("a URL"), V5).await;
        sandbox.start("c");
        session.wait_output(1, "one\n").await;
        // What a client types all the same is nobody's, and its end neither.
        session.send(FIN | BINARY, b"\0ignored").await;
        session.send(FIN | BINARY, b"\xff\0").await;
        std::fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        let frames = session.rest().await;
        assert_eq!((channel(&frames, 1), channel(&frames, 3)), (b"two\n".to_vec(), SUCCESS.into()));
        assert_eq!(frames.last().and_then(Frame::close_code), Some(1000));
    });
}

#[test]
fn s42_a_client_that_is_gone_behind_stdin_that_nobody_reads_is_noticed() {
    with_container(async |sandbox| {
        let mut session = RawSession::open(&exec_url(sandbox, &["sh", "-c", "echo up; sleep 1000"]).await, V5).await;
        session.wait_output(1, "up\n").await;
        let daemon = sandbox.daemon_pid();
        let before = procfs::settled_descriptors(daemon).await;
        let piece = vec![0; 100_000];
        while tokio::time::timeout(Duration::from_secs(1), session.send(FIN | BINARY, &piece)).await.is_ok() {}
        session.reset();
        eventually("the session to be given up", || (procfs::descriptors(daemon) + 3 < before).then_some(())).await;
    });
}
