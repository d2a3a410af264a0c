//! Many of everything, beside processes that take all the time they get.

use futures_util::future::join_all;
use holdfast::{client::ExecSync, model::Outcome};

use support::{BundleSpec, eventually, procfs, within};

mod support;

#[test]
fn every_byte_and_status_of_many_sessions_arrives_on_a_busy_machine() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let wanted: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
        let _busy = procfs::BusyLoops::start();
        for round in 0..50 {
            let sessions = (0..4).map(|_| sandbox.exec("c", &["seq", "1", "200000"]));
            for all in join_all(sessions).await {
                assert!(
                    all.stdout == wanted.as_bytes(),
                    "round {round}: {} of {} bytes",
                    all.stdout.len(),
                    wanted.len()
                );
                assert_eq!((all.statuses, all.close_code), (vec![Outcome::Exited(0)], Some(1000)), "round {round}");
            }
        }
    });
}

#[test]
fn hundreds_of_commands_leave_no_descriptor_and_no_process() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let one = |n: i32| {
            let command = ["sh", "-c", &format!("exit {}", n % 100)].map(str::to_owned).into();
            ExecSync { id: "c".to_owned(), command, terminal: n % 3 == 0, ..ExecSync::default() }
        };
        let client = sandbox.client();
        // The first ones open what stays open: the streaming server's listener.
        sandbox.exec("c", &["true"]).await;
        client.exec_sync(&one(0)).await.expect("a reply");
        let daemon = sandbox.daemon_pid();
        let descriptors = procfs::descriptors(daemon);
        for round in 0..75 {
            let commands: Vec<_> = (round * 3..round * 3 + 3).map(one).collect();
            let replies = join_all(commands.iter().map(|exec| client.exec_sync(exec)));
            let (replies, session) =
                within(futures_util::future::join(replies, sandbox.exec("c", &["sh", "-c", "exit 9"]))).await;
            let codes: Vec<_> = replies.into_iter().map(|reply| reply.expect("a reply").exit_code).collect();
            assert_eq!(codes, (round * 3..round * 3 + 3).map(|n| n % 100).collect::<Vec<_>>());
            assert_eq!(session.statuses, [Outcome::Exited(9)]);
        }
        let as_before =
            || (procfs::descriptors(daemon) <= descriptors && procfs::children(daemon).len() == 1).then_some(());
        eventually("everything to be given back", as_before).await;
        assert_eq!(procfs::zombies(daemon), 0);
    });
}

#[test]
fn many_containers_that_write_at_once_have_complete_logs() {
    support::e2e(async |sandbox| {
        let ids: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
        for id in &ids {
            sandbox.run(id, &BundleSpec::shell("while [ ! -e /go ]; do sleep 0.1; done; seq 1 20000")).await;
        }
        std::fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        for id in &ids {
            assert_eq!((sandbox.wait_exit(id).await, sandbox.log(id).len()), (0, 20_000), "{id}");
        }
        let daemon = sandbox.daemon_pid();
        eventually("the containers to be collected", || procfs::children(daemon).is_empty().then_some(())).await;
    });
}
