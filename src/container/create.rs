//! Creating a container: the work goes on and is registered even when the caller goes away meanwhile.

use std::{
    fs,
    io::Read as _,
    num::NonZeroU64,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use tokio::sync::{oneshot, watch};
use tracing::Instrument as _;

use super::{
    Container, Error, Pod, State,
    finish::{ExitPlan, finish},
    table::Reservation,
};
use crate::{
    log::{Log, LogConfig},
    oci::CreateSpec,
    process::oom::OomCounter,
    stdio::{DrainLimits, Stdio},
    sys::SysError,
};

/// How long looking into the bundle may take.
const BUNDLE_LIMIT: Duration = Duration::from_secs(10);
/// The largest `config.json` looked into; a larger one only loses the annotation.
const BUNDLE_CONFIG: u64 = 8 * 1024 * 1024;
/// Where CRI-O says that stdin ends with the first attach client.
const STDIN_ONCE: &str = "io.kubernetes.cri-o.StdinOnce";

/// A checked request.
#[derive(Debug)]
pub(crate) struct CreateRequest {
    pub(crate) spec: CreateSpec,
    pub(crate) exit_paths: Vec<PathBuf>,
    pub(crate) oom_exit_paths: Vec<PathBuf>,
    pub(crate) logs: Vec<LogSpec>,
    /// Empty: none.
    pub(crate) cleanup_command: Vec<String>,
}

/// One CRI log file.
#[derive(Debug)]
pub(crate) struct LogSpec {
    pub(crate) path: PathBuf,
    /// Bytes, 0 = no limit.
    pub(crate) max_size: u64,
}

impl Pod {
    /// Creates a container and answers the pid of its init process.
    pub(crate) async fn create(self: &Rc<Self>, request: CreateRequest) -> Result<u32, Error> {
        if self.closing.get() {
            return Err(Error::Closing);
        }
        let reservation = self.containers.reserve(&request.spec.id)?;
        let span = tracing::info_span!("container", id = %request.spec.id);
        let (answer, answered) = oneshot::channel();
        let pod = self.clone();
        let work = async move {
            let result = pod.create_in_scope(request, reservation).await;
            // Nobody waits for the answer of a cancelled call; the container is registered all the same.
            let _ = answer.send(result);
        };
        span.in_scope(|| self.scope.spawn(work.in_current_span()));
        answered.await.unwrap_or(Err(Error::Abandoned))
    }

    async fn create_in_scope(
        self: Rc<Self>,
        mut request: CreateRequest,
        reservation: Reservation,
    ) -> Result<u32, Error> {
        let stdin_once = self.look_into_bundle(&request.spec.bundle).await?;
        let configs = request.logs.iter().map(|log| LogConfig {
            path: log.path.clone(),
            max_size: NonZeroU64::new(log.max_size),
            stall: self.config.log_stall,
        });
        let log = Rc::new(Log::open(&self.scope, &self.blocking, configs.collect()).await.map_err(Error::Log)?);
        let started = match self.runtime.create(&mut request.spec).await {
            Ok(started) => started,
            Err(error) => {
                log.finish(Duration::ZERO).await;
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
                return Err(Error::Streams(error));
            }
        };
        let pid = process.pid();
        let container = Rc::new(Container {
            id: request.spec.id,
            process,
            stdio,
            stdin_once,
            log,
            oom: OomCounter::of(pid),
            state: watch::Sender::new(State::Live),
        });
        reservation.fulfil(container.clone());
        tracing::info!(pid, terminal = request.spec.terminal, "container created");
        let plan = ExitPlan {
            exit_paths: request.exit_paths,
            oom_exit_paths: request.oom_exit_paths,
            cleanup_command: request.cleanup_command,
        };
        self.scope.spawn(finish(self.clone(), container, pump, plan));
        Ok(pid)
    }

    /// Whether the bundle can be read, and what its annotation says of stdin.
    async fn look_into_bundle(&self, bundle: &Path) -> Result<bool, Error> {
        let path = bundle.join("config.json");
        let job_path = path.clone();
        let read = self.blocking.run("read", &path, BUNDLE_LIMIT, move || read_config(&job_path), drop).await?;
        let text = read.map_err(|error| Error::Bundle(SysError::io("read", &path, &error)))?;
        Ok(stdin_once(&text))
    }
}

fn read_config(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // A FIFO would hold this thread, and then the runtime, until somebody writes to it.
    let file = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
    }
    file.take(BUNDLE_CONFIG).read_to_end(&mut text)?;
    Ok(text)
}

/// Only the annotations matter here; the rest is the runtime's to judge.
fn stdin_once(config: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Bundle {
        #[serde(default)]
        annotations: Option<std::collections::BTreeMap<String, serde_json::Value>>,
    }
    let bundle: Option<Bundle> = serde_json::from_slice(config).ok();
    let annotations = bundle.and_then(|bundle| bundle.annotations);
    annotations.is_some_and(|all| all.get(STDIN_ONCE).and_then(|value| value.as_str()) == Some("true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdin_once_is_the_annotation_and_nothing_else() {
        assert!(stdin_once(br#"{"annotations":{"io.kubernetes.cri-o.StdinOnce":"true","other":1},"x":[]}"#));
        for no in [&br#"{"annotations":{"io.kubernetes.cri-o.StdinOnce":"false"}}"#[..], b"{}", b"not json", b""] {
            assert!(!stdin_once(no));
        }
    }
}
