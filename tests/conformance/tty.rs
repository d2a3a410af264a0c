//! Items 55 to 59: terminals, over SPDY.

use holdfast::client::ServeExec;

use crate::{
    SUCCESS, TTY, exec, failure,
    spdy_exec::alone,
    support::{
        self, beside_a_neighbour,
        raw_spdy::{CANCEL, Frame, RawSpdy, V4},
        with_container,
    },
    tty_url, url,
};

#[test]
fn s56_a_terminal_has_no_stderr_stream_and_its_text_is_on_stdout() {
    with_container(async |sandbox| {
        let command = exec(&["sh", "-c", "echo out; echo err >&2"]);
        let url = url(sandbox, ServeExec { stdin: true, stdout: true, stderr: true, tty: true, ..command }).await;
        let mut session = RawSpdy::connect(&url, V4).await;
        let mut ids = session.open_all(&["error", "stdout"]).await;
        let stderr = session.writer.offer(&[("streamtype", "stderr")]).await;
        assert_eq!(session.reader.next().await, Some(Frame::Reset { id: stderr, status: CANCEL }));
        ids.extend(session.open_all(&["stdin", "resize"]).await);
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("out\r\nerr\r\n".into(), SUCCESS.into()));
    });
}

#[test]
fn s57_the_last_bytes_of_a_short_command_with_a_terminal_arrive() {
    with_container(async |sandbox| {
        for round in 0..if support::long() { 1000 } else { 30 } {
            let (session, ids) =
                RawSpdy::session(&tty_url(sandbox, &["sh", "-c", "seq 1 500; printf end"]).await, &TTY).await;
            let text = session.finish(&ids).await.text(ids["stdout"]);
            assert!(text.ends_with("\n500\r\nend"), "round {round}: {text:?}");
        }
    });
}

#[test]
fn s58_a_terminal_waits_for_the_resize_stream_and_for_nothing_else() {
    with_container(async |sandbox| {
        for stdin in [true, false] {
            let command = exec(&["sh", "-c", "cat /marker; exit 2"]);
            let url = url(sandbox, ServeExec { stdin, stdout: true, stderr: true, tty: true, ..command }).await;
            let mut session = RawSpdy::connect(&url, V4).await;
            let mut ids =
                session.open_all(if stdin { &["error", "stdin", "stdout"] } else { &["error", "stdout"] }).await;
            session.writer.ping(7).await;
            assert_eq!(session.reader.next().await, Some(Frame::Ping(7)), "not begun");
            // What began before this would not find it.
            std::fs::write(sandbox.in_rootfs("marker"), "marker").expect("our directory");
            ids.extend(session.open_all(&["resize"]).await);
            let seen = session.finish(&ids).await;
            assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("marker".into(), failure(2)));
            std::fs::remove_file(sandbox.in_rootfs("marker")).expect("written");
        }
    });
}

// Spec 4.2: one object may be cut over frames, and several may share one.
#[test]
fn s36_a_size_of_before_the_start_is_the_first_and_later_ones_are_signalled() {
    with_container(async |sandbox| {
        let script = "trap : WINCH; until stty size 2>/dev/null | grep .; do :; done; \
                      trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.1; done";
        let mut session = RawSpdy::connect(&tty_url(sandbox, &["sh", "-c", script]).await, V4).await;
        let mut ids = session.open_all(&["resize"]).await;
        for part in [&b"{\"Width\":1,\"Height\":2}\n{\"Wid"[..], b"th\":133,", b"\"Height\":44}\n"] {
            session.writer.data(ids["resize"], part).await;
        }
        ids.extend(session.open_all(&["error", "stdin", "stdout"]).await);
        session.reader.wait_output(ids["stdout"], "44 133\r\nready\r\n").await;
        for part in [&b"{\"Width\":0,\"Height\":5}nonsense"[..], b"{\"Width\":100,\"Height\":50}"] {
            session.writer.data(ids["resize"], part).await;
        }
        let seen = session.finish(&ids).await;
        assert_eq!((seen.text(ids["stdout"]), seen.text(ids["error"])), ("50 100\r\n".into(), failure(4)));
    });
}

#[test]
fn s59_a_storm_of_sizes_holds_up_neither_stdin_nor_others_and_leaves_nothing() {
    beside_a_neighbour(async |sandbox, neighbour| {
        neighbour
            .undisturbed("a storm of sizes", async || {
                let command = ["sh", "-c", "stty -echo; echo up; read line; echo got $line; stty size"];
                let exec =
                    ServeExec { id: "neighbour".to_owned(), tty: true, stdin: true, stdout: true, ..exec(&command) };
                let (mut session, ids) = RawSpdy::session(&url(sandbox, exec).await, &TTY).await;
                session.reader.wait_output(ids["stdout"], "up\r\n").await;
                for number in 1..=5000 {
                    let size = format!("{{\"Width\":{number},\"Height\":{}}}\n", number % 100 + 2);
                    session.writer.data(ids["resize"], size.as_bytes()).await;
                }
                session.writer.data(ids["stdin"], b"line\n").await;
                let seen = session.finish(&ids).await;
                let text = seen.text(ids["stdout"]);
                assert!(text.ends_with("got line\r\n2 5000\r\n"), "{text:?}");
            })
            .await;
    });
}

#[test]
fn s36_the_end_of_the_resize_stream_ends_nothing_else() {
    with_container(async |sandbox| {
        let url = tty_url(sandbox, &["sh", "-c", "read line; echo got $line"]).await;
        let (mut session, ids) = RawSpdy::session(&url, &TTY).await;
        session.writer.fin(ids["resize"]).await;
        session.writer.data(ids["stdin"], b"line\n").await;
        let seen = session.finish(&ids).await;
        assert!(seen.text(ids["stdout"]).ends_with("got line\r\n"), "{seen:?}");
        alone(sandbox).await;
    });
}
