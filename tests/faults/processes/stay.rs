//! Children that stay behind with the output of what has ended, and go on writing. Silent ones: see the table above.

use std::time::Duration;

use holdfast::{client::ExecSync, model::Outcome};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{self, BundleSpec, eventually, figure, procfs};

/// Stated limits of the drain (docs/ARCHITECTURE.md), and what a busy machine may take beyond.
const EXEC: Duration = Duration::from_secs(10);
const CONTAINER: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(10);

#[test]
fn children_that_write_without_pause_hold_no_exit_status_for_longer_than_stated() {
    support::e2e(async |sandbox| {
        // In the host's pid namespace, or the kernel would end all processes with the first.
        let namespaces = ["ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let shared = json!({ "linux": { "namespaces": namespaces } });
        let word = |n: u32| format!("writer-{}-{n}", sandbox.daemon_pid());
        let script = |n: u32, code: u32| format!("sh -c 'while :; do echo x; done' {} & exit {code}", word(n));
        sandbox.run("idle", &BundleSpec::idle()).await;
        let start = Instant::now();
        let container = async {
            sandbox.run("c", &BundleSpec::shell(&format!("echo first; {}", script(0, 8))).with(shared)).await;
            let begun = start.elapsed();
            assert_eq!(sandbox.wait_exit("c").await, 8);
            let took = start.elapsed() - begun;
            assert_eq!(sandbox.log("c")[0].text, b"first");
            assert!(took < CONTAINER + SLACK, "the container took {took:?}");
            figure("exit file of a container with a writing child (s)", took.as_secs_f32());
        };
        let streamed = async {
            let all = sandbox.exec("idle", &["sh", "-c", &script(1, 3)]).await;
            assert_eq!(all.statuses, [Outcome::Exited(3)]);
            assert!(start.elapsed() < EXEC + SLACK, "the session took {:?}", start.elapsed());
            figure("status of a session with a writing child (s)", start.elapsed().as_secs_f32());
        };
        let synced = async {
            let exec = |n, code, timeout_s| ExecSync {
                id: "idle".to_owned(),
                command: ["sh".to_owned(), "-c".to_owned(), script(n, code)].into(),
                timeout_s,
                ..ExecSync::default()
            };
            let client = sandbox.client();
            let (unlimited, limited) = (exec(2, 4, 0), exec(3, 5, 2));
            let unlimited = async {
                let reply = client.exec_sync(&unlimited).await.expect("a reply");
                assert_eq!((reply.exit_code, reply.timed_out), (4, false));
                assert!(start.elapsed() < EXEC + SLACK, "the execSync took {:?}", start.elapsed());
            };
            let limited = async {
                let reply = client.exec_sync(&limited).await.expect("a reply");
                // The command itself ended in time.
                assert_eq!((reply.exit_code, reply.timed_out), (5, false));
                assert!(start.elapsed() < Duration::from_secs(2) + SLACK, "with a limit {:?}", start.elapsed());
            };
            futures_util::future::join(unlimited, limited).await;
        };
        futures_util::future::join3(container, streamed, synced).await;
        // Nobody reads what they write any more, so they end.
        for n in 0..4 {
            eventually("the end of a writer", || procfs::with_word(&word(n)).is_empty().then_some(())).await;
        }
    });
}
