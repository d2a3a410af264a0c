//! streaming 4.5: clients that go away. The process is told as its streams tell it, never by a signal of the daemon.

use holdfast::client::StreamClient;

use crate::{
    support::{Sandbox, eventually, procfs},
    websocket::{wait_output, with_container},
};

/// Waits until nothing of a session is left in the daemon: no child but the container's init, no pidfile.
async fn assert_cleaned_up(sandbox: &Sandbox) {
    let alone = || (procfs::children(sandbox.daemon_pid()).len() == 1).then_some(());
    eventually("the command to be collected", alone).await;
}

async fn started(mut session: StreamClient) -> StreamClient {
    wait_output(&mut session, "up\n").await;
    session
}

#[test]
fn a_process_that_reads_sees_the_end_of_its_stdin() {
    with_container(async |sandbox| {
        let script = "echo up; cat; echo eof >/seen";
        drop(started(sandbox.exec_ws("c", &["sh", "-c", script]).await).await);
        sandbox.wait_file("seen", "eof\n").await;
        assert_cleaned_up(sandbox).await;
    });
}

#[test]
fn a_process_that_writes_gets_sigpipe() {
    with_container(async |sandbox| {
        let script = "echo up; sh -c 'while :; do echo y; done'; echo $? >/seen";
        drop(started(sandbox.exec_ws("c", &["sh", "-c", script]).await).await);
        sandbox.wait_file("seen", "141\n").await;
        assert_cleaned_up(sandbox).await;
    });
}

#[test]
fn a_process_with_a_terminal_gets_sighup() {
    with_container(async |sandbox| {
        let script = "trap 'echo hup >/seen; exit' HUP; stty -onlcr; echo up; while :; do sleep 0.1; done";
        drop(started(sandbox.exec_tty_ws("c", &["sh", "-c", script]).await).await);
        sandbox.wait_file("seen", "hup\n").await;
        assert_cleaned_up(sandbox).await;
    });
}

#[test]
fn a_client_that_says_close_is_gone_too() {
    with_container(async |sandbox| {
        let session = started(sandbox.exec_ws("c", &["sh", "-c", "echo up; cat; echo eof >/seen"]).await).await;
        let (mut sender, _receiver) = session.split();
        sender.close().await.expect("open");
        sandbox.wait_file("seen", "eof\n").await;
        assert_cleaned_up(sandbox).await;
    });
}

#[test]
fn a_client_that_goes_before_its_command_has_started_leaves_nothing() {
    with_container(async |sandbox| {
        for _ in 0..10 {
            drop(sandbox.exec_ws("c", &["cat"]).await);
            drop(sandbox.exec_tty_ws("c", &["cat"]).await);
        }
        // A call of the runtime that is still under way is a child too, so what is waited for is the last of them.
        assert_cleaned_up(sandbox).await;
        sandbox.runtime(&["kill", "c", "KILL"]);
        assert_eq!(sandbox.wait_exit("c").await, 137);
        sandbox.runtime(&["delete", "c"]);
    });
}
