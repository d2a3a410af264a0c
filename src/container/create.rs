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
    format::journal::{self, shared_fields},
    log::{FileForm, Log, LogConfig, Target},
    model::ContainerId,
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
/// Where the container's name stands: the one CRI-O tells C conmon, else the one in the pod.
const NAMES: [&str; 2] = ["io.kubernetes.cri-o.Name", "io.kubernetes.container.name"];

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

/// What the bundle's annotations say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Annotations {
    stdin_once: bool,
    name: Option<String>,
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
        let Annotations { stdin_once, name } = self.look_into_bundle(&request.spec.bundle).await?;
        let configs = std::mem::take(&mut request.logs).into_iter().map(|log| LogConfig {
            target: log.target(&request.spec.id, name.as_deref()),
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

    /// Whether the bundle can be read, and what its annotations say.
    async fn look_into_bundle(&self, bundle: &Path) -> Result<Annotations, Error> {
        let path = bundle.join("config.json");
        let job_path = path.clone();
        let read = self.blocking.run("read", &path, BUNDLE_LIMIT, move || read_config(&job_path), drop).await?;
        let text = read.map_err(|error| Error::Bundle(SysError::io("read", &path, &error)))?;
        Ok(annotations(&text))
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
fn annotations(config: &[u8]) -> Annotations {
    #[derive(serde::Deserialize)]
    struct Bundle {
        #[serde(default)]
        annotations: Option<std::collections::BTreeMap<String, serde_json::Value>>,
    }
    let bundle: Option<Bundle> = serde_json::from_slice(config).ok();
    let Some(all) = bundle.and_then(|bundle| bundle.annotations) else { return Annotations::default() };
    let text = |key: &str| all.get(key).and_then(|value| value.as_str()).filter(|text| !text.is_empty());
    Annotations {
        stdin_once: text(STDIN_ONCE) == Some("true"),
        name: NAMES.into_iter().find_map(text).map(str::to_owned),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdin_once_is_the_annotation_and_nothing_else() {
        let once = |config: &[u8]| annotations(config).stdin_once;
        assert!(once(br#"{"annotations":{"io.kubernetes.cri-o.StdinOnce":"true","other":1},"x":[]}"#));
        for no in [&br#"{"annotations":{"io.kubernetes.cri-o.StdinOnce":"false"}}"#[..], b"{}", b"not json", b""] {
            assert!(!once(no));
        }
    }

    #[test]
    fn the_name_is_the_one_of_cri_o_else_the_one_in_the_pod() {
        let name = |config: &[u8]| annotations(config).name;
        let both = br#"{"annotations":{"io.kubernetes.container.name":"web","io.kubernetes.cri-o.Name":"k8s_web_1"}}"#;
        assert_eq!(name(both).as_deref(), Some("k8s_web_1"));
        assert_eq!(name(br#"{"annotations":{"io.kubernetes.container.name":"web"}}"#).as_deref(), Some("web"));
        assert_eq!(name(br#"{"annotations":{"io.kubernetes.cri-o.Name":7}}"#), None);
    }
}
