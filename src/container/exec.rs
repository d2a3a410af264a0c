//! A further process in a container, with streams of its own and no log.

use std::{cell::Cell, pin::pin, rc::Rc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Pod, RunningExec};
use crate::{
    io::blocking::Blocking,
    model::{ContainerId, ExitStatus, WindowSize},
    oci::{ExecSpec, LaunchError, Started},
    process::{
        Process,
        exec_cgroup::{ExecCgroup, ExecCgroups},
        stuck::Killed,
        tree,
    },
    stdio::{DrainLimits, Stdio},
};

/// How long what was killed may take to end before the log tells what is left of it. It is waited for beyond that, but by
/// nobody outside: no call, session or other exec.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// ```text
/// Starting ──runtime done──▶ Running ──exited and drained──▶ Ended
///    └──────runtime failed──▶ Failed
/// ```
#[derive(Debug, Clone)]
pub(crate) enum ExecState {
    Starting,
    Running,
    /// All its output has been published.
    Ended(ExitStatus),
    Failed(Rc<LaunchError>),
}

/// A handle on an exec. It runs on when the handle is dropped; it is waited for in every case.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) stdio: Rc<Stdio>,
    state: watch::Receiver<ExecState>,
    facts: Rc<ExecFacts>,
    kill: Rc<Kill>,
}

/// What is known of an exec's process, for whoever lists it.
#[derive(Debug, Default)]
pub(crate) struct ExecFacts {
    /// 0 until it has been started.
    pub(crate) pid: Cell<u32>,
    /// As soon as it has ended, which may be before all its output has been read.
    pub(crate) exit: Cell<Option<ExitStatus>>,
}

/// When an exec is to be killed, if at all.
#[derive(Debug)]
struct Kill(watch::Sender<Option<Instant>>);

impl Kill {
    fn at(&self, time: Instant) {
        self.0.send_replace(Some(time));
    }

    fn is_announced(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Resolves when it is time.
    async fn due(&self) {
        let mut time = self.0.subscribe();
        loop {
            let at = *time.borrow_and_update();
            let due = async {
                match at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => return,
                // Never an error: the sender is ours.
                _ = time.changed() => {}
            }
        }
    }
}

impl Exec {
    /// Waits for the exit status, which comes after all output has been published.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, Rc<LaunchError>> {
        loop {
            match &*self.state.borrow_and_update() {
                ExecState::Ended(status) => return Ok(*status),
                ExecState::Failed(error) => return Err(error.clone()),
                ExecState::Starting | ExecState::Running => {}
            }
            if self.state.changed().await.is_err() {
                // The daemon is ending and has cancelled the task.
                return Ok(ExitStatus::Lost);
            }
        }
    }

    /// The exit status as soon as the process has ended, which may be before all its output has been read.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        self.facts.exit.get()
    }

    pub(crate) fn facts(&self) -> &Rc<ExecFacts> {
        &self.facts
    }

    /// Kills it with all that it has started, now or as soon as it has been started. If it has ended, what it left behind
    /// stays.
    pub(crate) fn kill(&self) {
        self.kill.at(Instant::now());
    }

    /// The same after a time; what it leaves behind if it ends before that is killed too, where it has a cgroup of its own.
    pub(crate) fn kill_after(&self, grace: Duration) {
        self.kill.at(Instant::now() + grace);
    }
}

impl Pod {
    /// Starts a process in a container. The id is not looked up: execSync must work through the runtime also for
    /// containers of a daemon before this one. Whoever wants output subscribes to the hub before awaiting anything.
    ///
    /// Until the deadline the runtime must have started it. Where a kill is to be expected, the process gets a cgroup of its
    /// own if that is possible.
    pub(crate) fn exec(self: &Rc<Self>, spec: ExecSpec, deadline: Option<Instant>, expect_kill: bool) -> Exec {
        let stdio = Stdio::new(spec.terminal, spec.stdin, self.read_ahead.clone());
        let (publish, state) = watch::channel(ExecState::Starting);
        let kill = Rc::new(Kill(watch::Sender::new(None)));
        let facts = Rc::<ExecFacts>::default();
        let exec = Exec { stdio: stdio.clone(), state, facts: facts.clone(), kill: kill.clone() };
        let span = tracing::info_span!("exec", container = %spec.id);
        let pod = self.clone();
        let work = async move {
            let end = match pod.start_exec(spec, stdio.early_size(), deadline, expect_kill).await {
                Ok((started, cgroup)) => {
                    publish.send_replace(ExecState::Running);
                    ExecState::Ended(pod.watch_exec(started, cgroup, &stdio, &facts, &kill).await)
                }
                Err(error) => {
                    tracing::debug!(error = error.without_words(), "exec failed");
                    stdio.end();
                    ExecState::Failed(Rc::new(error))
                }
            };
            publish.send_replace(end);
        };
        self.scope.spawn(work.instrument(span));
        exec
    }

    async fn start_exec(
        &self,
        spec: ExecSpec,
        size: &Cell<Option<WindowSize>>,
        deadline: Option<Instant>,
        expect_kill: bool,
    ) -> Result<(Started, Option<ExecCgroup>), LaunchError> {
        let mut cgroup = if expect_kill { self.make_exec_cgroup(&spec.id, deadline).await } else { None };
        if self.closing.get() {
            return Err(LaunchError::Closing);
        }
        let option = cgroup.as_ref().map(ExecCgroup::option);
        let mut result = self.runtime.exec(&spec, option.as_deref(), size, deadline).await;
        if let (Err(LaunchError::Runtime { said: Some(said), .. }), Some(refused)) = (&result, &cgroup)
            && said.contains(&refused.name())
        {
            // It looks for cgroups elsewhere. The command cannot have run.
            tracing::info!(
                cgroup = refused.name(),
                "the runtime could not use the cgroup made for an exec: going on without"
            );
            if let Ok(container) = self.containers.find(&spec.id) {
                container.exec_cgroups.iter().for_each(ExecCgroups::refuse);
            }
            cgroup = None;
            result = self.runtime.exec(&spec, None, size, deadline).await;
        }
        match result {
            Ok(started) => Ok((started, cgroup)),
            Err(error) => {
                // A runtime killed late may have started something.
                cgroup.into_iter().for_each(|cgroup| self.kill_cgroup(cgroup));
                Err(error)
            }
        }
    }

    /// Without one the exec runs all the same, and is killed as well as can be.
    async fn make_exec_cgroup(&self, id: &ContainerId, deadline: Option<Instant>) -> Option<ExecCgroup> {
        let container = self.containers.find(id).ok()?;
        let place = container.exec_cgroups.as_ref()?;
        let ask = self.runtime.cgroup_option();
        let option = match deadline {
            Some(deadline) => timeout_at(deadline, ask).await.ok()?,
            None => ask.await,
        };
        match place.make(option) {
            Ok(cgroup) => cgroup,
            Err(error) => {
                tracing::debug!(%error, "an exec has no cgroup of its own");
                None
            }
        }
    }

    /// Kills a process and what it has started; who is still there after a while is named in the log.
    async fn kill_exec(&self, process: &Process, cgroup: Option<ExecCgroup>) {
        let contained = cgroup.as_ref().is_some_and(|cgroup| cgroup.holds(process.pid()));
        cgroup.into_iter().for_each(|cgroup| self.kill_cgroup(cgroup));
        if contained {
            process.kill_group();
        } else {
            let killed = tree::kill(process, &self.blocking).await;
            let blocking = self.blocking.clone();
            self.scope.spawn(async move { name_left_later(killed, &blocking).await });
        }
    }

    /// Not awaited: it goes on until nothing is left, which may take as long as the kernel likes.
    fn kill_cgroup(&self, cgroup: ExecCgroup) {
        let killed = Killed::in_cgroup(cgroup.directory());
        let blocking = self.blocking.clone();
        self.scope.spawn(async move { watch_kill(cgroup.kill(), name_left_later(killed, &blocking)).await });
    }

    /// What outlives its command, as a daemon started by it may, is the container's now, unless its end is decided.
    fn leave_behind(&self, cgroup: ExecCgroup, kill: &Rc<Kill>) {
        if kill.is_announced() {
            let killed = Killed::in_cgroup(cgroup.directory());
            let (kill, blocking) = (kill.clone(), self.blocking.clone());
            self.scope.spawn(async move {
                let name_left = async {
                    kill.due().await;
                    name_left_later(killed, &blocking).await;
                };
                watch_kill(cgroup.kill_when(kill.due()), name_left).await;
            });
        } else {
            self.scope.spawn(cgroup.release());
        }
    }

    async fn watch_exec(
        &self,
        started: Started,
        mut cgroup: Option<ExecCgroup>,
        stdio: &Rc<Stdio>,
        facts: &ExecFacts,
        kill: &Rc<Kill>,
    ) -> ExitStatus {
        let limits = DrainLimits { quiet: self.config.drain_quiet, max: self.config.drain_max_exec };
        let process = Rc::new(started.process);
        facts.pid.set(process.pid());
        let number = self.next_exec.get();
        self.next_exec.set(number + 1);
        let gone = CancellationToken::new();
        let running = RunningExec { process: process.clone(), gone: gone.clone(), stdio: stdio.clone() };
        self.execs.borrow_mut().insert(number, running);
        let ended = async {
            let status = tokio::select! {
                status = process.wait() => status,
                () = kill.due() => {
                    self.kill_exec(&process, cgroup.take()).await;
                    process.wait().await
                }
            };
            cgroup.into_iter().for_each(|cgroup| self.leave_behind(cgroup, kill));
            facts.exit.set(Some(status));
            gone.cancel();
            status
        };
        let pump = async {
            match stdio.connect(started.output, started.stdin, None, limits, &self.scope) {
                Ok(pump) => {
                    let drained = pump.run(started.early, gone.cancelled()).await;
                    if drained.still_held {
                        tracing::info!("another process still holds the output of the ended exec");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the streams of an exec could not be set up, so it is killed");
                    kill.at(Instant::now());
                    stdio.end();
                }
            }
        };
        let (status, ()) = tokio::join!(ended, pump);
        self.execs.borrow_mut().remove(&number);
        tracing::debug!(%status, "exec ended");
        status
    }
}

/// Until the killing has come to its end; names who is left if that comes first.
async fn watch_kill(kill: impl Future<Output = ()>, name_left: impl Future<Output = ()>) {
    let mut kill = pin!(kill);
    tokio::select! {
        biased;
        () = &mut kill => return,
        () = name_left => {}
    }
    kill.await;
    tracing::info!("what was left of an exec has ended");
}

async fn name_left_later(killed: Killed, blocking: &Blocking) {
    sleep(KILL_LIMIT).await;
    killed.name_left(blocking, "of an exec").await;
}
