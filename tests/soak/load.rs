//! What all kinds of load share: one daemon, its residents, and the count of what is under way.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
    time::Duration,
};

use holdfast::{
    client::{CreateContainer, Requested, SPDY_PROTOCOLS, STREAM_PROTOCOLS, ServeAttach, ServeExec, StreamClient},
    model::StdStream,
};
use tokio::time::Instant;

use crate::{
    memory::{Counted, Kind, Population},
    pod::{Pod, echo},
    random::Random,
    support::{BundleSpec, Sandbox, within},
};

/// Does nothing; execs run in it.
pub(crate) const IDLE: &str = "idle";
/// Throws its stdin away; those who mean harm write to it.
pub(crate) const SINK: &str = "sink";
/// Has a terminal and never writes.
pub(crate) const TERMINAL: &str = "terminal";
/// Writes without end, faster than some read.
pub(crate) const CHATTER: &str = "chatter";

/// One daemon under load.
pub(crate) struct Load<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) pod: &'a Pod,
    pub(crate) population: Rc<Population>,
    /// A port of the pod that sends back what it gets.
    pub(crate) echo: u16,
    /// One that never reads.
    pub(crate) silent: u16,
    /// One where nobody listens.
    pub(crate) closed: u16,
    next_id: Cell<u32>,
    /// How often each thing was done.
    done: RefCell<BTreeMap<&'static str, u64>>,
    pub(crate) until: Cell<Instant>,
}

impl<'a> Load<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, pod: &'a Pod) -> Self {
        let (listener, echo_port) = pod.listen();
        echo(listener);
        let (silent_listener, silent) = pod.listen_narrow();
        crate::pod::serving(async move {
            // Kept open, never read, until their clients have gone.
            let mut kept = std::collections::VecDeque::new();
            loop {
                kept.push_back(silent_listener.accept().await.expect("a listener"));
                if kept.len() > 64 {
                    kept.pop_front();
                }
            }
        });
        Self {
            sandbox,
            pod,
            population: Rc::default(),
            echo: echo_port,
            silent,
            closed: pod.closed_port(),
            next_id: Cell::new(0),
            done: RefCell::default(),
            until: Cell::new(Instant::now()),
        }
    }

    pub(crate) fn count(&self, kind: Kind) -> Counted {
        self.population.count(kind)
    }

    pub(crate) fn id(&self) -> String {
        let number = self.next_id.get();
        self.next_id.set(number + 1);
        format!("c{number}")
    }

    pub(crate) fn has_time(&self) -> bool {
        Instant::now() < self.until.get()
    }

    pub(crate) fn did(&self, what: &'static str) {
        *self.done.borrow_mut().entry(what).or_default() += 1;
    }

    /// How often each thing was done since the last call.
    pub(crate) fn take_done(&self) -> BTreeMap<&'static str, u64> {
        self.done.take()
    }

    /// Makes a container, not started yet.
    pub(crate) async fn create(&self, request: &CreateContainer) -> Counted {
        let container = self.count(Kind::Container);
        let launch = self.count(Kind::Launch);
        let pid = within(self.sandbox.client().create_container(request)).await;
        pid.unwrap_or_else(|error| panic!("the create of {}: {error}", request.id));
        drop(launch);
        container
    }

    /// Starts it without holding up the rest of the load.
    pub(crate) async fn start(&self, id: &str) {
        let mut command = self.sandbox.runtime_command();
        command.args(["start", id]);
        must_run(command).await;
    }

    /// Leaves nothing of one that has ended.
    pub(crate) async fn remove(&self, id: &str) {
        must_run(self.sandbox.removal(id)).await;
        fs::remove_dir_all(self.sandbox.container(id)).expect("the container's directory is ours");
    }

    /// A container that stays as long as there is load.
    async fn resident(&self, id: &str, spec: &BundleSpec) -> Counted {
        let mut request = self.sandbox.create_request(id, spec);
        for log in &mut request.log_drivers {
            // What chatters for an hour must not fill the disk.
            log.max_size = 4 << 20;
        }
        let counted = self.create(&request).await;
        self.start(id).await;
        counted
    }

    pub(crate) async fn residents(&self) -> Vec<Counted> {
        let chatter = "i=0; while :; do seq $i $((i+2000)); i=$((i+2000)); sleep 0.1; done";
        let specs = [
            (IDLE, BundleSpec::idle()),
            (SINK, BundleSpec::shell("cat >/dev/null; sleep 100000").stdin()),
            // Keys that would end it come, too.
            (TERMINAL, BundleSpec::shell("stty raw -echo; echo ready; sleep 100000").terminal().stdin()),
            (CHATTER, BundleSpec::shell(chatter)),
        ];
        let mut all = Vec::new();
        for (id, spec) in &specs {
            all.push(self.resident(id, spec).await);
        }
        self.sandbox.wait_log(TERMINAL, "ready").await;
        for id in [SINK, TERMINAL, CHATTER] {
            self.sandbox.listen(id, false).await;
        }
        all
    }

    pub(crate) async fn end_residents(&self) {
        for id in [IDLE, SINK, TERMINAL, CHATTER] {
            let mut kill = self.sandbox.runtime_command();
            kill.args(["kill", id, "KILL"]);
            must_run(kill).await;
            assert_eq!(self.sandbox.wait_exit(id).await, 137, "{id}");
            self.remove(id).await;
        }
    }

    /// The session of an exec, over a transport that chance chooses.
    pub(crate) async fn exec(&self, random: &mut Random, exec: &ServeExec) -> StreamClient {
        let url = within(self.sandbox.client().serve_exec(exec)).await.expect("the exec gets a URL");
        let ServeExec { stdin, stdout, stderr, tty, .. } = *exec;
        connect(random, &url, Requested { stdin, stdout, stderr, tty }).await
    }

    /// The same of an attach.
    pub(crate) async fn attach(&self, random: &mut Random, attach: &ServeAttach, tty: bool) -> StreamClient {
        let url = within(self.sandbox.client().serve_attach(attach)).await.expect("the attach gets a URL");
        let ServeAttach { stdin, stdout, stderr, .. } = *attach;
        connect(random, &url, Requested { stdin, stdout, stderr, tty }).await
    }

    /// The text in the log of a container.
    pub(crate) fn logged(&self, id: &str) -> Vec<u8> {
        self.sandbox.logged(id, StdStream::Stdout)
    }
}

async fn connect(random: &mut Random, url: &str, requested: Requested) -> StreamClient {
    let session = match random.percent(50) {
        true => within(StreamClient::connect(url, &STREAM_PROTOCOLS)).await,
        false => within(StreamClient::connect_spdy(url, &SPDY_PROTOCOLS, requested)).await,
    };
    session.expect("the URL takes a session")
}

/// Runs a program beside the load; it must succeed.
pub(crate) async fn must_run(mut command: Command) {
    let output = blocking(move || {
        let output = command.stdin(Stdio::null()).output();
        (output.expect("the program runs"), command)
    });
    let (output, command) = within(output).await;
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Does what would hold up the load in a thread of its own.
#[allow(clippy::disallowed_methods)] // A test's: nothing here has a device that may hang.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic")
}

/// The lines that `seq FROM TO` writes.
pub(crate) fn numbers(from: u32, to: u32) -> Vec<u8> {
    (from..=to).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// Says what differs without printing megabytes.
pub(crate) fn same(what: &str, is: &[u8], wanted: &[u8]) {
    if is == wanted {
        return;
    }
    let at = is.iter().zip(wanted).take_while(|(is, wanted)| is == wanted).count();
    let around = |bytes: &[u8]| {
        let end = bytes.len().min(at + 40);
        String::from_utf8_lossy(&bytes[at.saturating_sub(40).min(end)..end]).into_owned()
    };
    let (is_around, wanted_around) = (around(is), around(wanted));
    panic!(
        "{what}: {} bytes for {}, different from {at} on: {is_around:?} for {wanted_around:?}",
        is.len(),
        wanted.len()
    );
}

/// A file system with room for 64 KiB, until it is dropped.
pub(crate) struct Small<'a>(pub(crate) &'a Path);

impl<'a> Small<'a> {
    pub(crate) fn mount(path: &'a Path) -> Self {
        use nix::mount::{MsFlags, mount};
        fs::create_dir(path).expect("a directory in the sandbox");
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).expect("root may");
        Self(path)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // A failing test may have left an open file in it.
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A moment in which something happens to be under way.
pub(crate) async fn moment(random: &mut Random, range: std::ops::Range<u32>) {
    tokio::time::sleep(random.pause(range)).await;
}

/// What may wait for ever does so for this long.
pub(crate) async fn at_most<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(time, work).await.ok()
}
