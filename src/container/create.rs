//! Creating a container: the work goes on and is registered even when the caller goes away meanwhile.

use std::{
    cell::Cell,
    mem::take,
    num::NonZeroU64,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use tokio::sync::{oneshot, watch};
use tracing::Instrument as _;

use super::{
    Container, Error, Pod, State,
    bundle::{self, BundleFacts},
    finish::{ExitPlan, finish},
    table::Reservation,
};
use crate::{
    format::journal::{self, shared_fields},
    log::{FileForm, Log, LogConfig, Target},
    model::ContainerId,
    oci::CreateSpec,
    process::{self, cgroup::Cgroups, exec_cgroup::ExecCgroups, oom::OomWatch},
    stdio::{DrainLimits, Stdio},
    sys::SysError,
};

/// How long looking into the bundle may take.
const BUNDLE_LIMIT: Duration = Duration::from_secs(10);
/// A checked request.
#[derive(Debug)]
pub(crate) struct CreateRequest {
    pub(crate) spec: CreateSpec,
    pub(crate) exit_paths: Vec<PathBuf>,
    pub(crate) oom_exit_paths: Vec<PathBuf>,
    pub(crate) logs: Vec<LogSpec>,
    /// Empty: none.
    pub(crate) cleanup_command: Vec<String>,
    /// Held until the container has ended.
    pub(crate) leak_fds: Vec<OwnedFd>,
}

/// One log.
#[derive(Debug)]
pub(crate) enum LogSpec {
    File {
        form: FileForm,
        path: PathBuf,
        /// In bytes.
        max_size: Option<NonZeroU64>,
    },
    Journal,
}

impl CreateRequest {
    /// What has not found its way into a container.
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        let mut fds = take(&mut self.spec.additional_fds);
        fds.append(&mut self.leak_fds);
        fds
    }
}

impl Pod {
    /// Creates a container and answers the pid of its init process.
    pub(crate) async fn create(self: &Rc<Self>, mut request: CreateRequest) -> Result<u32, Error> {
        let reservation = match self.containers.reserve(&request.spec.id) {
            Ok(_) if self.closing.get() => Err(Error::Closing),
            reserved => reserved,
        };
        let reservation = match reservation {
            Ok(reservation) => reservation,
            Err(error) => {
                self.close_fds(request.take_fds()).await;
                return Err(error);
            }
        };
        let span = tracing::info_span!("container", id = %request.spec.id);
        let (answer, answered) = oneshot::channel();
        let pod = self.clone();
        let work = async move {
            let result = pod.clone().create_in_scope(&mut request, reservation).await;
            pod.close_fds(request.take_fds()).await;
            // Nobody waits for the answer of a cancelled call; the container is registered all the same.
            let _ = answer.send(result);
        };
        span.in_scope(|| self.scope.spawn(work.in_current_span()));
        answered.await.unwrap_or(Err(Error::Abandoned))
    }

    async fn create_in_scope(
        self: Rc<Self>,
        request: &mut CreateRequest,
        reservation: Reservation,
    ) -> Result<u32, Error> {
        let bundle = self.look_into_bundle(&request.spec.bundle).await?;
        let configs = take(&mut request.logs).into_iter().map(|log| LogConfig {
            target: log.target(&request.spec.id, bundle.name.as_deref()),
            stall: self.config.log_stall,
        });
        let log = Rc::new(Log::open(&self.scope, &self.blocking, configs.collect()).await.map_err(Error::Log)?);
        let started = match self.runtime.create(&mut request.spec).await {
            Ok(started) => started,
            Err(error) => {
                log.discard().await;
                return Err(Error::Launch(error));
            }
        };
        let stdio = Stdio::new(request.spec.terminal, request.spec.stdin, self.read_ahead.clone());
        let limits = DrainLimits { quiet: self.config.drain_quiet, max: self.config.drain_max_container };
        let pump = stdio.connect(started.output, started.stdin, Some(log.clone()), limits, &self.scope);
        let process = Rc::new(started.process);
        let pump = match pump {
            Ok(pump) => pump,
            Err(error) => {
                self.runtime.delete(&request.spec.id, request.spec.cgroup_manager).await;
                log.discard().await;
                return Err(Error::Streams(error));
            }
        };
        let pid = process.pid();
        let cgroups = Cgroups::of(pid);
        let container = Rc::new(Container {
            id: request.spec.id.clone(),
            birth: reservation.birth,
            process,
            stdio,
            stdin_once: bundle.stdin_once,
            log,
            exec_cgroups: cgroups.as_ref().and_then(ExecCgroups::of),
            leads_namespace: process::leads_namespace(pid),
            told_to_end: Cell::new(false),
            state: watch::Sender::new(State::Live),
        });
        let cgroups_path = bundle.cgroups_path.as_deref().unwrap_or(container.id.as_str());
        let oom = cgroups.and_then(|cgroups| OomWatch::of(&self.oom_bells, &cgroups, cgroups_path));
        reservation.fulfil(container.clone());
        tracing::info!(pid, terminal = request.spec.terminal, "container created");
        let plan = ExitPlan {
            exit_paths: take(&mut request.exit_paths),
            oom_exit_paths: take(&mut request.oom_exit_paths),
            cleanup_command: take(&mut request.cleanup_command),
            leak_fds: take(&mut request.leak_fds),
        };
        self.scope.spawn(finish(self.clone(), container, pump, oom, plan));
        Ok(pid)
    }

    /// Whether the bundle can be read, and what it says that matters here.
    async fn look_into_bundle(&self, bundle: &Path) -> Result<BundleFacts, Error> {
        let path = bundle.join("config.json");
        let job_path = path.clone();
        let read = self.blocking.run("read", &path, BUNDLE_LIMIT, move || bundle::read_config(&job_path), drop).await?;
        let text = read.map_err(|error| Error::Bundle(SysError::io("read", &path, &error)))?;
        Ok(BundleFacts::of(&text))
    }
}

impl LogSpec {
    /// Whether both write to the same place.
    pub(crate) fn goes_where(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { path, .. }, Self::File { path: other, .. }) => path == other,
            (Self::Journal, Self::Journal) => true,
            _ => false,
        }
    }

    /// Where the log of this container goes.
    fn target(self, id: &ContainerId, name: Option<&str>) -> Target {
        match self {
            Self::File { form, path, max_size } => Target::File { form, path, max_size },
            Self::Journal => {
                Target::Journal { socket: journal::SOCKET.into(), shared_fields: shared_fields(id.as_str(), name) }
            }
        }
    }
}
