//! Many of everything. What this does beside processes that take all the time they get is in `faults/output/`.

use futures_util::future::join_all;
use holdfast::{client::ExecSync, model::Outcome};

use support::{BundleSpec, eventually, procfs, within};

mod support;

/// 500 execSyncs, a third of them with a terminal, and 50 sessions, some of each at once.
async fn hundreds_of_commands(sandbox: &support::Sandbox) {
    let command = |n: i32| ["sh", "-c", &format!("echo {n}; exit {}", n % 100)].map(str::to_owned).into();
    let client = sandbox.client();
    for round in 0..50 {
        let numbers = round * 10..round * 10 + 10;
        let one = |n: i32| ExecSync {
            id: "c".into(),
            command: command(n),
            terminal: n % 3 == 0,
            // With a time limit, it has a cgroup of its own.
            timeout_s: if n % 2 == 0 { 0 } else { 20 },
            ..ExecSync::default()
        };
        let commands: Vec<_> = numbers.clone().map(one).collect();
        let replies = join_all(commands.iter().map(|exec| client.exec_sync(exec)));
        let session = sandbox.exec("c", &["sh", "-c", "echo x; exit 9"]);
        let (replies, session) = within(futures_util::future::join(replies, session)).await;
        let codes: Vec<_> = replies.into_iter().map(|reply| reply.expect("a reply").exit_code).collect();
        assert_eq!(codes, numbers.map(|n| n % 100).collect::<Vec<_>>());
        assert_eq!((&session.stdout[..], &session.statuses[..]), (&b"x\n"[..], &[Outcome::Exited(9)][..]));
    }
}

#[test]
fn five_hundred_commands_later_the_daemon_has_the_descriptors_children_and_memory_of_before() {
    /// What the allocator may have kept in one batch and not in the other, in KiB. A leak of 1 KiB in each exec is more.
    const NOISE: u64 = 512;
    support::e2e(async |sandbox| {
        let pid = sandbox.run("c", &BundleSpec::idle()).await;
        // The first one opens what stays open: the streaming server's listener.
        sandbox.exec("c", &["true"]).await;
        let daemon = sandbox.daemon_pid();
        let idle = || procfs::children(daemon).len() == 1 && procfs::status_line(daemon, "Threads") == "1";
        eventually("an idle daemon", || idle().then_some(())).await;
        let before = procfs::descriptor_targets(daemon);
        let mut memory = Vec::new();
        for _ in 0..2 {
            hundreds_of_commands(sandbox).await;
            let as_before = || (idle() && procfs::descriptor_targets(daemon) == before).then_some(());
            eventually("everything to be given back", as_before).await;
            eventually("the cgroups to be removed", || procfs::exec_cgroups(pid).is_empty().then_some(())).await;
            let left = std::fs::read_dir(sandbox.runtime_dir()).expect("ours").flatten().map(|entry| entry.file_name());
            assert!(left.eq(["conmon.sock"]), "pidfiles are left");
            let kib = procfs::status_line(daemon, "RssAnon");
            memory.push(kib.trim_end_matches(" kB").parse::<u64>().expect("a number of KiB"));
        }
        assert!(memory[1] <= memory[0] + NOISE, "anonymous memory after each 500, in KiB: {memory:?}");
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
