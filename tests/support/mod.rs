//! The harness of the integration tests: a real daemon, a real runtime, a busybox root file system.
//!
//! ```ignore
//! mod support;
//! use support::BundleSpec;
//!
//! #[test]
//! fn the_exit_code_is_in_the_exit_file() {
//!     support::e2e(async |sandbox| {
//!         sandbox.run("c", &BundleSpec::shell("exit 42")).await;
//!         assert_eq!(sandbox.wait_exit("c").await, 42);
//!     });
//! }
//! ```
#![allow(dead_code, unused_imports, reason = "each test file is a crate of its own and uses a part of this")]

mod background;
mod bundle;
mod fake_runtime;
pub(crate) mod fds;
mod figures;
pub(crate) mod journal;
pub(crate) mod namespaces;
mod neighbour;
pub(crate) mod network;
pub(crate) mod procfs;
pub(crate) mod raw_attach;
pub(crate) mod raw_rpc;
pub(crate) mod raw_spdy;
pub(crate) mod raw_ws;
mod record;
pub(crate) mod rootfs;
mod sandbox;
mod session;

use std::{env, io::Write, path::PathBuf, time::Duration};

pub(crate) use background::Background;
pub(crate) use bundle::BundleSpec;
pub(crate) use fake_runtime::FakeRuntime;
pub(crate) use figures::figure;
pub(crate) use neighbour::{Neighbour, beside_a_neighbour, beside_a_neighbour_with};
pub(crate) use raw_attach::{Attached, RawAttach};
pub(crate) use record::{Record, parse_log, text_of};
pub(crate) use sandbox::{RECORDED_FILES, Sandbox, collect};
pub(crate) use session::{wait_output, with_container};

/// No step of a test takes longer unless something is wrong.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Runs a test in a sandbox of its own; skips it where it cannot run.
pub(crate) fn e2e(test: impl AsyncFnOnce(&Sandbox)) {
    e2e_with(|_| {}, test);
}

/// The same with changes to the daemon's command line or environment.
pub(crate) fn e2e_with(configure: impl FnOnce(&mut std::process::Command), test: impl AsyncFnOnce(&Sandbox)) {
    if !require_e2e() {
        return;
    }
    run(async {
        let sandbox = Sandbox::with(configure).await;
        test(&sandbox).await;
    });
}

/// The same with crun; skips it where that is not installed.
pub(crate) fn e2e_crun(test: impl AsyncFnOnce(&Sandbox)) {
    if !require_e2e() || !require("crun") {
        return;
    }
    run(async {
        let sandbox = Sandbox::with_crun().await;
        test(&sandbox).await;
    });
}

/// The same with a runtime that notes how it is called; see [`Sandbox::calls`].
pub(crate) fn e2e_recording(test: impl AsyncFnOnce(&Sandbox)) {
    if !require_e2e() {
        return;
    }
    run(async {
        let sandbox = Sandbox::recording().await;
        test(&sandbox).await;
    });
}

/// Whether there is time for what takes minutes (`HOLDFAST_LONG=1`).
pub(crate) fn long() -> bool {
    env::var_os("HOLDFAST_LONG").is_some_and(|value| value == "1")
}

/// What must come to an end, and soon.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("took longer than {DEADLINE:?}"))
}

/// Runs the async body of a test on a runtime such as the daemon's.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    // Steps have deadlines of their own; this one is for a test that goes round in circles.
    let test = async { tokio::time::timeout(20 * DEADLINE, test).await.expect("the test ends") };
    runtime.expect("a runtime needs only an epoll and a socket pair").block_on(test);
}

/// Whether real containers can be run. Where they must run (`HOLDFAST_REQUIRE_E2E=1`) their absence is a failure.
pub(crate) fn require_e2e() -> bool {
    let missing = if nix::unistd::geteuid().is_root() {
        ["runc", "busybox"].into_iter().find(|name| which(name).is_none())
    } else {
        Some("root")
    };
    missing.is_none_or(require)
}

/// Whether a program is there that a test needs. Where it must be, its absence is a failure.
pub(crate) fn require(missing: &str) -> bool {
    if which(missing).is_some() {
        return true;
    }
    assert!(env::var_os("HOLDFAST_REQUIRE_E2E").is_none_or(|value| value != "1"), "needs {missing}");
    writeln!(std::io::stderr(), "skipped: needs {missing}").expect("stderr of a test");
    false
}

/// The file a shell would run for this name.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Looks until there is something to see, every 5 ms: an inotify for each of the many things tests wait for would be
/// more code than the tests.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        loop {
            tick.tick().await;
            if let Some(seen) = look() {
                return seen;
            }
        }
    };
    let seen = tokio::time::timeout(DEADLINE, looking).await;
    seen.unwrap_or_else(|_| panic!("waited {DEADLINE:?} in vain for {what}"))
}

/// Lets this process hold more than the usual 1024 descriptors.
pub(crate) fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has one");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
}
