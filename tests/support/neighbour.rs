use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use holdfast::client::{StreamClient, StreamMessage};
use tokio::time::{Instant, sleep, timeout};

use super::{BundleSpec, DEADLINE, FakeRuntime, Sandbox, e2e_with, eventually, procfs};

/// What `growth_kib` is unless a test has reasons.
const GROWTH_KIB: u64 = 8 << 10;

/// A container with a session that must not notice what others do to the daemon.
pub(crate) struct Neighbour<'a> {
    sandbox: &'a Sandbox,
    session: StreamClient,
    lines: u32,
    before: Traces,
    rss_before: u64,
    /// How far the daemon's anonymous memory may grow over a misdeed, in KiB: the allocator keeps some of what was used.
    pub(crate) growth_kib: u64,
    /// Its init process.
    pub(crate) pid: u32,
}

/// What a misdeed could leave behind.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Traces {
    /// What is open, sorted; of sockets, pipes and the like only the kind.
    descriptors: Vec<String>,
    /// `pid name`, or `pid name (zombie)`.
    children: BTreeSet<String>,
    /// Of the runtime directory, the directory of console sockets, and the runtime's own directory.
    files: BTreeSet<String>,
}

/// Runs a test beside a neighbour, with a [`FakeRuntime`].
pub(crate) fn beside_a_neighbour(test: impl AsyncFnOnce(&Sandbox, &mut Neighbour<'_>)) {
    beside_a_neighbour_with(|_| {}, test);
}

/// The same with changes to the daemon's command line or environment.
pub(crate) fn beside_a_neighbour_with(
    configure: impl FnOnce(&mut Command),
    test: impl AsyncFnOnce(&Sandbox, &mut Neighbour<'_>),
) {
    let configure = |daemon: &mut Command| {
        configure(daemon);
        FakeRuntime::install(daemon);
        let program = daemon.get_args().find(|word| word.to_string_lossy().ends_with("/runtime"));
        let dir = Path::new(program.expect("installed just now")).with_file_name("tmp");
        fs::create_dir(&dir).expect("a directory in the sandbox");
        // Only this daemon's console sockets are there.
        daemon.env("TMPDIR", dir);
    };
    e2e_with(configure, async |sandbox| {
        let mut neighbour = Neighbour::beside(sandbox).await;
        Box::pin(test(sandbox, &mut neighbour)).await;
        // Once in each test, since threads of the pool are kept for a second.
        let alone = || (procfs::status_line(sandbox.daemon_pid(), "Threads") == "1").then_some(());
        eventually("the daemon's other threads to end", alone).await;
    });
}

impl<'a> Neighbour<'a> {
    async fn beside(sandbox: &'a Sandbox) -> Self {
        let pid = sandbox.run("neighbour", &BundleSpec::idle()).await;
        let session = sandbox.exec_ws("neighbour", &["cat"]).await;
        let before = Traces::of(sandbox);
        let mut neighbour = Self { sandbox, session, lines: 0, before, rss_before: 0, growth_kib: GROWTH_KIB, pid };
        neighbour.echo().await;
        neighbour.before = settled(sandbox).await;
        neighbour.rss_before = rss_anon_kib(sandbox);
        neighbour
    }

    /// Runs something bad and checks that it changed nothing for anybody else and has left nothing behind.
    pub(crate) async fn undisturbed<T>(&mut self, what: &str, bad: impl AsyncFnOnce() -> T) -> T {
        let result = Box::pin(bad()).await;
        self.is_well(what).await;
        result
    }

    /// The session echoes, new clients are answered, and nothing was left behind.
    pub(crate) async fn is_well(&mut self, after: &str) {
        self.echo().await;
        let client = self.sandbox.connect().await;
        let version = timeout(DEADLINE, client.version(false)).await;
        let version = version.unwrap_or_else(|_| panic!("no answer after {after}")).expect("version never fails");
        assert_eq!(version.process_id, self.sandbox.daemon_pid());
        drop(client);
        let deadline = Instant::now() + DEADLINE;
        // One look may see something that goes in the place of something that stays.
        let mut good = 0;
        loop {
            sleep(Duration::from_millis(20)).await;
            let (now, rss) = (Traces::of(self.sandbox), rss_anon_kib(self.sandbox));
            let grown = rss.saturating_sub(self.rss_before);
            good = if now == self.before && grown <= self.growth_kib { good + 1 } else { 0 };
            if good == 2 {
                break;
            }
            if Instant::now() >= deadline {
                assert_eq!(now, self.before, "left behind by {after}");
                panic!("{after} left {grown} KiB of anonymous memory");
            }
        }
        assert!(!self.sandbox.daemon_log().contains("panicked"), "the daemon panicked after {after}");
    }

    async fn echo(&mut self) {
        self.lines += 1;
        let line = format!("line {}\n", self.lines);
        let echoing = async {
            self.session.send_stdin(line.as_bytes()).await.expect("the neighbour's session is open");
            let mut echoed = Vec::new();
            while !echoed.ends_with(line.as_bytes()) {
                match self.session.next().await.expect("the server keeps to the protocol") {
                    StreamMessage::Stdout(bytes) => echoed.extend_from_slice(&bytes),
                    other => panic!("the neighbour's session got {other:?}"),
                }
            }
            assert_eq!(echoed, line.as_bytes());
        };
        timeout(DEADLINE, echoing).await.expect("the neighbour's session echoes");
    }
}

/// The state once nothing of the start is under way any more.
async fn settled(sandbox: &Sandbox) -> Traces {
    let mut last = Traces::of(sandbox);
    let mut same = 0;
    while same < 5 {
        sleep(Duration::from_millis(20)).await;
        let now = Traces::of(sandbox);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

impl Traces {
    fn of(sandbox: &Sandbox) -> Self {
        let daemon = sandbox.daemon_pid();
        let descriptors = procfs::descriptor_targets(daemon);
        let children = names(Path::new("/proc")).iter().filter_map(|pid| child(pid.parse().ok()?, daemon)).collect();
        let mut files = BTreeSet::new();
        for dir in ["run", "tmp", "root"] {
            files.extend(names(&sandbox.path().join(dir)).into_iter().map(|name| format!("{dir}/{name}")));
        }
        Self { descriptors, children, files }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn child(pid: u32, of: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let zombie = if fields.next()? == "Z" { " (zombie)" } else { "" };
    (fields.next()?.parse() == Ok(of)).then(|| format!("{pid} {name}{zombie}"))
}

fn rss_anon_kib(sandbox: &Sandbox) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.daemon_pid())).expect("the daemon lives");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}
