//! Numbers of processes are used again; what was meant for the one reaches no other. That a runtime's pidfile names somebody
//! else's process is tested in `bad_runtime.rs`.

use std::{
    env, fs,
    io::{self, Write as _},
    process::{Child, Command},
};

use holdfast::client::ServeExec;

use crate::support::{self, BundleSpec, eventually, procfs, wait_output};

/// Set for the test that runs in a pid namespace of its own.
const INSIDE: &str = "HOLDFAST_TEST_INSIDE";

/// Whether this is a pid namespace of the test's own. If it is not, runs the test once more in one. There nobody but
/// the test and its daemon takes numbers, and which one comes next is theirs to say.
fn is_alone(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let module = module_path!().split_once("::").expect("a module of a crate").1;
    let mut again = Command::new("unshare");
    again.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    again.arg(env::current_exe().expect("procfs")).args(["--exact", "--nocapture", &format!("{module}::{test}")]);
    let output = again.env(INSIDE, "1").output().expect("unshare runs");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "in a pid namespace of its own: {said}");
    writeln!(io::stderr(), "{said}").expect("stderr of a test");
    false
}

/// A process that has nothing to do with the daemon, with a number of our choice.
struct Stranger(Child);

impl Stranger {
    /// The kernel gives numbers in turn; a thread of the daemon may be quicker, so it is tried again.
    fn with_number(number: u32) -> Self {
        for _ in 0..1000 {
            fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).expect("root may");
            let mut child = Command::new("sleep").arg("1000").spawn().expect("a program");
            if child.id() == number {
                return Self(child);
            }
            child.kill().and_then(|()| child.wait()).expect("our child");
        }
        panic!("the number {number} is not to be had");
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().expect("our child").is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("our child");
    }
}

#[test]
fn the_kill_of_an_exec_does_not_reach_the_next_owner_of_its_number() {
    if !support::require_e2e() || !is_alone("the_kill_of_an_exec_does_not_reach_the_next_owner_of_its_number") {
        return;
    }
    let configure = |daemon: &mut Command| _ = daemon.env("HOLDFAST_EXEC_CLIENT_GONE", "kill:2s");
    support::e2e_with(configure, async |sandbox| {
        let init = sandbox.run("c", &BundleSpec::idle()).await;
        for attempt in 0.. {
            let word = (u64::from(sandbox.daemon_pid()) * 1000 + attempt + 3_000_000).to_string();
            let script = format!("setsid sleep {word} >/dev/null 2>&1 & echo up; cat");
            let command = ["sh".to_owned(), "-c".to_owned(), script].into();
            let exec = ServeExec { id: "c".to_owned(), command, stdin: true, stdout: true, ..ServeExec::default() };
            let mut session = sandbox.exec_session(exec).await;
            wait_output(&mut session, "up").await;
            let others =
                || procfs::children(sandbox.daemon_pid()).into_iter().map(|(pid, _)| pid).find(|pid| *pid != init);
            let number = others().expect("the command is the daemon's child");
            // Its end closes the command's input; the command ends, and leaves a child to be killed in two seconds.
            drop(session);
            eventually("the command to be collected", || others().is_none().then_some(())).await;
            let mut stranger = Stranger::with_number(number);
            let in_time = procfs::with_word(&word).len() == 1;
            eventually("the kill", || procfs::with_word(&word).is_empty().then_some(())).await;
            assert!(stranger.runs(), "process {number} is somebody else's by now");
            // A machine so busy that the number was not to be had before the kill proves nothing.
            if in_time {
                return;
            }
            assert!(attempt < 4, "the number was never to be had in time");
        }
    });
}
