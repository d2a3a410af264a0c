//! Commands by the thousand leave nothing behind.

use futures_util::future::{join, join_all};
use holdfast::{client::ExecSync, model::Outcome};

use crate::support::{self, BundleSpec, Sandbox, eventually, figure, procfs, within};

/// Commands of one batch: of these one of eleven is a session, a third of the others has a terminal.
fn batch() -> i32 {
    if support::long() { 5000 } else { 150 }
}

/// Some of each at once.
async fn many_commands(sandbox: &Sandbox) {
    let command = |n: i32| ["sh", "-c", &format!("echo {n}; exit {}", n % 100)].map(str::to_owned).into();
    let client = sandbox.client();
    for round in 0..batch() / 10 {
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
        let (replies, session) = within(join(replies, session)).await;
        let codes: Vec<_> = replies.into_iter().map(|reply| reply.expect("a reply").exit_code).collect();
        assert_eq!(codes, numbers.map(|n| n % 100).collect::<Vec<_>>());
        assert_eq!((&session.stdout[..], &session.statuses[..]), (&b"x\n"[..], &[Outcome::Exited(9)][..]));
    }
}

#[test]
fn thousands_of_commands_later_the_daemon_has_the_descriptors_children_and_memory_of_before() {
    /// What the allocator may have kept in one batch and not in the other, in KiB. Of the long form a leak of 128 bytes in
    /// each exec is more.
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
            many_commands(sandbox).await;
            let as_before = || (idle() && procfs::descriptor_targets(daemon) == before).then_some(());
            eventually("everything to be given back", as_before).await;
            assert_eq!(procfs::zombies(daemon), 0);
            eventually("the cgroups to be removed", || procfs::exec_cgroups(pid).is_empty().then_some(())).await;
            let left = std::fs::read_dir(sandbox.runtime_dir()).expect("ours").flatten().map(|entry| entry.file_name());
            assert!(left.eq(["conmon.sock"]), "pidfiles are left");
            let kib = procfs::status_line(daemon, "RssAnon");
            memory.push(kib.trim_end_matches(" kB").parse::<u64>().expect("a number of KiB"));
        }
        let of = batch();
        figure(&format!("anonymous memory after {of} and {} commands (KiB)", 2 * of), format!("{memory:?}"));
        assert!(memory[1] <= memory[0] + NOISE, "anonymous memory after each {of} commands, in KiB: {memory:?}");
    });
}
