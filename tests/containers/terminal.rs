//! Containers with a terminal.

use holdfast::model::StdStream;

use crate::support::{self, BundleSpec};

#[test]
fn both_streams_of_a_terminal_are_one_with_the_line_ends_of_a_terminal() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("echo out; echo err >&2; tty").terminal()).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let logged = sandbox.logged("c", StdStream::Stdout);
        assert!(logged.starts_with(b"out\r\nerr\r\n/dev/pts/"), "{:?}", String::from_utf8_lossy(&logged));
        assert!(sandbox.logged("c", StdStream::Stderr).is_empty());
    });
}

#[test]
fn what_a_terminals_process_writes_last_is_in_the_log_when_the_exit_file_is_there() {
    support::e2e(async |sandbox| {
        for round in 0..if support::long() { 30 } else { 5 } {
            let id = format!("c{round}");
            sandbox.run(&id, &BundleSpec::shell("seq 1 20000; printf end").terminal()).await;
            assert_eq!(sandbox.wait_exit(&id).await, 0);
            let logged = sandbox.logged(&id, StdStream::Stdout);
            assert!(logged.ends_with(b"\n20000\r\nend"), "round {round}: {} bytes", logged.len());
        }
    });
}
