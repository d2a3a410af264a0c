//! streaming 9.2 to 9.4, through the client.

use holdfast::{
    client::ServeExec,
    model::{Outcome, WindowSize},
};

use crate::support::{self, BundleSpec, FakeRuntime, collect, within};

pub(crate) use crate::support::{wait_output, with_container};

#[test]
fn both_streams_and_the_code_of_a_command_reach_the_client() {
    with_container(async |sandbox| {
        for code in [0, 1, 2, 42, 126, 127, 255] {
            let all = sandbox.exec("c", &["sh", "-c", &format!("echo out; echo err >&2; exit {code}")]).await;
            assert_eq!((&all.stdout[..], &all.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
            assert_eq!((&all.statuses[..], all.close_code), (&[Outcome::Exited(code)][..], Some(1000)));
        }
        for (signal, code) in [(9, 137), (11, 139)] {
            let all = sandbox.exec("c", &["sh", "-c", &format!("kill -{signal} $$")]).await;
            assert_eq!(all.statuses, [Outcome::Exited(code)]);
        }
    });
}

#[test]
fn many_bytes_pass_both_ways_at_once_unchanged() {
    with_container(async |sandbox| {
        let (mut sender, mut receiver) = sandbox.exec_ws("c", &["cat"]).await.split();
        let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let send = async {
            for piece in bytes.chunks(100_000) {
                sender.send_stdin(piece).await.expect("open");
            }
            sender.close_stdin().await.expect("v5");
        };
        let ((), all) = within(futures_util::future::join(send, receiver.collect())).await;
        let all = all.expect("the server keeps to the protocol");
        assert!(all.stdout == bytes && all.statuses == [Outcome::Exited(0)], "{} bytes", all.stdout.len());
    });
}

#[test]
fn stdin_larger_than_any_buffer_waits_for_a_slow_process() {
    with_container(async |sandbox| {
        let (mut sender, mut receiver) = sandbox.exec_ws("c", &["sh", "-c", "sleep 1; wc -c"]).await.split();
        let send = async {
            for _ in 0..300 {
                sender.send_stdin(&[b'x'; 100_000]).await.expect("open");
            }
            sender.close_stdin().await.expect("v5");
        };
        let ((), all) = within(futures_util::future::join(send, receiver.collect())).await;
        assert_eq!(all.expect("the server keeps to the protocol").stdout, b"30000000\n");
    });
}

#[test]
fn a_process_that_leaves_its_stdin_unread_ends_well_all_the_same() {
    with_container(async |sandbox| {
        let (mut sender, mut receiver) = sandbox.exec_ws("c", &["sh", "-c", "echo bye; exit 3"]).await.split();
        let flood = async { while sender.send_stdin(&[b'x'; 100_000]).await.is_ok() {} };
        let all = within(async {
            tokio::select! {
                all = receiver.collect() => all,
                () = async { flood.await; std::future::pending().await } => unreachable!(),
            }
        });
        let all = all.await.expect("the server keeps to the protocol");
        assert_eq!((&all.stdout[..], &all.statuses[..]), (&b"bye\n"[..], &[Outcome::Exited(3)][..]));
        assert_eq!(all.close_code, Some(1000));
    });
}

#[test]
fn a_size_sent_first_is_the_size_the_command_starts_with_and_later_ones_are_signalled() {
    with_container(async |sandbox| {
        // A runtime does not wait until we have set the size of the terminal it sent: until then there is none.
        let script = "trap : WINCH; until stty size 2>/dev/null | grep .; do :; done; trap 'stty size; exit 4' WINCH; echo ready; \
                      while :; do sleep 0.1; done";
        let mut session = sandbox.exec_tty_ws("c", &["sh", "-c", script]).await;
        session.resize(WindowSize { cols: 133, rows: 44 }).await.expect("open");
        wait_output(&mut session, "44 133\r\nready\r\n").await;
        session.resize(WindowSize { cols: 0, rows: 5 }).await.expect("open");
        session.resize(WindowSize { cols: 100, rows: 50 }).await.expect("open");
        let all = collect(session).await;
        assert_eq!((&all.stdout[..], &all.statuses[..]), (&b"50 100\r\n"[..], &[Outcome::Exited(4)][..]));
    });
}

#[test]
fn a_terminal_has_one_stream_even_when_stderr_was_asked_for() {
    with_container(async |sandbox| {
        let command = ["sh", "-c", "printf stdout; printf stderr >&2"].map(str::to_owned).into();
        let exec =
            ServeExec { id: "c".to_owned(), command, tty: true, stdout: true, stderr: true, ..ServeExec::default() };
        let all = collect(sandbox.exec_session(exec).await).await;
        assert_eq!(
            (&all.stdout[..], &all.stderr[..], &all.statuses[..]),
            (&b"stdoutstderr"[..], &b""[..], &[Outcome::Exited(0)][..])
        );
    });
}

#[test]
fn a_process_that_turns_cr_lf_off_before_its_terminal_arrived_is_obeyed() {
    support::e2e_with(FakeRuntime::install, async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        // The daemon sleeps until the process has done so.
        let off = sandbox.in_rootfs("off");
        let plan = format!(
            "kill -STOP $PPID; real \"$@\"; code=$?\n\
             for try in $(seq 1000); do [ -e {} ] && break; sleep 0.01; done\nkill -CONT $PPID; exit $code",
            off.display()
        );
        FakeRuntime::of(sandbox).plan("exec", &plan);
        let script = "stty -onlcr -echo; : >/off; read line; printf 'a\\nb\\n'";
        let mut session = sandbox.exec_tty_ws("c", &["sh", "-c", script]).await;
        session.send_stdin(b"go\n").await.expect("open");
        let all = collect(session).await;
        assert!(off.exists() && all.statuses == [Outcome::Exited(0)], "{all:?}");
        assert_eq!(String::from_utf8_lossy(&all.stdout), "a\nb\n");
    });
}

#[test]
fn the_last_bytes_of_a_short_command_with_a_terminal_arrive() {
    with_container(async |sandbox| {
        for round in 0..if support::long() { 1000 } else { 30 } {
            let mut session = sandbox.exec_tty_ws("c", &["sh", "-c", "seq 1 500; printf end"]).await;
            session.send_stdin(b"").await.expect("open");
            let all = collect(session).await;
            assert!(all.stdout.ends_with(b"\n500\r\nend"), "round {round}: {:?}", String::from_utf8_lossy(&all.stdout));
        }
    });
}

#[test]
fn a_background_child_that_holds_the_output_does_not_hold_the_session() {
    with_container(async |sandbox| {
        let all = sandbox.exec("c", &["sh", "-c", "echo x; sleep 1000 & exit 3"]).await;
        assert_eq!((&all.stdout[..], &all.statuses[..]), (&b"x\n"[..], &[Outcome::Exited(3)][..]));
    });
}

#[test]
fn a_silent_pause_between_outputs_is_not_the_end() {
    with_container(async |sandbox| {
        let all = sandbox.exec("c", &["sh", "-c", "echo one; sleep 3; echo two"]).await;
        assert_eq!((&all.stdout[..], &all.statuses[..]), (&b"one\ntwo\n"[..], &[Outcome::Exited(0)][..]));
    });
}

#[test]
fn the_end_of_the_container_ends_a_session_in_it_with_a_status() {
    with_container(async |sandbox| {
        let mut session = sandbox.exec_ws("c", &["sh", "-c", "echo up; cat"]).await;
        wait_output(&mut session, "up\n").await;
        sandbox.runtime(&["kill", "c", "KILL"]);
        let all = collect(session).await;
        assert_eq!((&all.statuses[..], all.close_code), (&[Outcome::Exited(137)][..], Some(1000)));
    });
}

#[test]
fn the_runtime_gets_each_option_once_and_only_a_terminal_gets_a_console_socket() {
    support::e2e_recording(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        sandbox.exec("c", &["echo", "--pid-file=x"]).await;
        collect(sandbox.exec_tty_ws("c", &["true"]).await).await;
        let calls = sandbox.calls();
        let root = format!("--root={}", sandbox.path().join("root").display());
        let pidfile = format!("--pid-file={}/exec_streaming", sandbox.runtime_dir().display());
        assert!(calls[1][..3] == [&root, "exec", "-d"] && calls[1][3].starts_with(&pidfile), "{calls:?}");
        assert_eq!(calls[1][4..], ["c", "echo", "--pid-file=x"]);
        assert!(calls[2][..3] == [&root, "exec", "-d"] && calls[2][3].starts_with("--console-socket="), "{calls:?}");
        assert!(
            calls[2][4] == "--tty" && calls[2][5].starts_with(&pidfile) && calls[2][6..] == ["c", "true"],
            "{calls:?}"
        );
    });
}
