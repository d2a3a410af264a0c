//! What a container or an exec has of the daemon: nothing.

use std::{fs, process::Command};

use holdfast::{client::ExecSync, model::StdStream};

use crate::support::{self, BundleSpec, Sandbox, procfs};

/// Prints what a process inherits and no `config.json` of these tests sets.
const SURROUNDINGS: &str = "grep -E '^(Umask|NoNewPrivs|Seccomp|Cap|Sig(Blk|Ign)|Cpus_allowed_list|THP)' /proc/self/status; \
    cat /proc/self/limits /proc/self/oom_score_adj /proc/self/timerslack_ns /proc/self/coredump_filter; \
    cut -d' ' -f 18,19,41 /proc/self/stat; env | sort; ls /proc/self/fd | wc -l";

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).into()
}

/// The same container as the runtime makes it when the test calls it.
fn without_the_daemon(sandbox: &Sandbox, id: &str, spec: &BundleSpec) -> String {
    let bundle = sandbox.bundle(id, spec);
    let output = sandbox.runtime(&["run", "--bundle", bundle.to_str().expect("UTF-8"), id]);
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_container_has_the_same_surroundings_with_and_without_the_daemon() {
    support::e2e(async |sandbox| {
        let spec = BundleSpec::shell(SURROUNDINGS);
        sandbox.run("c", &spec).await;
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let with = String::from_utf8(sandbox.logged("c", StdStream::Stdout)).expect("text");
        let without = without_the_daemon(sandbox, "direct", &spec);
        assert!(without.contains("NoNewPrivs:\t0") && without.contains("Max open files"), "{without}");
        assert_eq!(with, without);
    });
}

#[test]
fn an_exec_has_the_same_surroundings_with_and_without_the_daemon() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let direct = sandbox.runtime(&["exec", "c", "sh", "-c", SURROUNDINGS]);
        let without = String::from_utf8(direct.stdout).expect("text");
        let exec = ExecSync { id: "c".into(), command: shell(SURROUNDINGS), ..ExecSync::default() };
        let reply = sandbox.client().exec_sync(&exec).await.expect("a reply");
        assert_eq!(String::from_utf8_lossy(&reply.stdout), without);
        let streamed = sandbox.exec("c", &["sh", "-c", SURROUNDINGS]).await;
        assert_eq!(String::from_utf8_lossy(&streamed.stdout), without);
    });
}

/// Restrictions of the daemon would be the containers': they cannot be taken back. So it takes on none.
#[test]
fn the_daemon_restricts_itself_in_nothing_that_children_could_not_undo() {
    support::e2e(async |sandbox| {
        let daemon = sandbox.daemon_pid();
        let own = std::process::id();
        for line in ["NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk"] {
            assert_eq!(procfs::status_line(daemon, line), procfs::status_line(own, line), "{line}");
        }
        let namespaces = |pid: u32| {
            let kinds = ["mnt", "net", "ipc", "pid", "user", "uts", "cgroup"];
            kinds.map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("ours"))
        };
        assert_eq!(namespaces(daemon), namespaces(own));
    });
}

#[test]
fn a_cleanup_command_has_the_surroundings_of_the_daemons_starter() {
    support::e2e(async |sandbox| {
        let seen = sandbox.path().join("seen");
        // Without what a shell sets for itself, the two signals that the C library keeps for itself however it spawns, and
        // the number of descriptors: the test has more of them than it gave to the daemon.
        let own = "grep -v -e ^PWD -e ^SHLVL -e ^_ -e ^SigIgn -e '^[0-9]$'";
        let script = format!("{{ {SURROUNDINGS}; }} | {own} >{}.new", seen.display());
        let mut request = sandbox.create_request("c", &BundleSpec::shell("exit 0"));
        request.cleanup_command = shell(&format!("{script}; mv {0}.new {0}", seen.display()));
        sandbox.client().create_container(&request).await.expect("created");
        sandbox.start("c");
        let with = support::eventually("the cleanup command", || fs::read_to_string(&seen).ok()).await;
        let ours = Command::new("sh").args(["-c", &script.replace("seen.new", "ours")]).output().expect("a shell");
        assert!(ours.status.success(), "{ours:?}");
        let ours = fs::read_to_string(sandbox.path().join("ours")).expect("written");
        // The daemon's soft descriptor limit is the harness's at the time of its start.
        assert_eq!(with, ours);
    });
}
