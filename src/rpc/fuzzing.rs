//! The edge of a daemon that is closing, for the fuzz targets: it decodes and answers as any other, and starts nothing.

use std::{path::Path, rc::Rc, time::Duration};

use capnp::{serialize, traits::HasTypeId as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{OnceCell, watch},
    task::yield_now,
    time::timeout,
};

use super::{Connection, Services, decode, reader_options, serve, traced};
use crate::{
    config::Config,
    container::{CreateRequest, LogSpec, Pod},
    io::blocking::Blocking,
    model::ContainerId,
    oci::{ExecSpec, Runtime},
    pause::Namespaces,
    process::Processes,
    schema::{conmon_capnp::conmon, holdfast_capnp::holdfast},
    session::SessionTable,
    sys::fork::ChildSetup,
    telemetry::{counters::Counters, traces::Traces},
    transport::{AttachSockets, FdSocket, StreamServer},
};

/// The interface of the contract.
pub const CONMON: u64 = conmon::Client::TYPE_ID;
/// Our own interface.
pub const HOLDFAST: u64 = holdfast::Client::TYPE_ID;

/// How long a connection may take to answer or to end: much more than it needs.
const LIMIT: Duration = Duration::from_secs(10);
/// Where nothing is, so nothing can be started or made.
const NOWHERE: &str = "/nonexistent/holdfast";

/// The services of a daemon that is closing.
pub(crate) struct Edge {
    services: Rc<Services>,
}

impl Edge {
    pub(crate) async fn closing() -> Self {
        let config = Rc::new(Config::for_tests(Path::new(NOWHERE), Path::new(NOWHERE)));
        let counters = Rc::<Counters>::default();
        let blocking = Blocking::new();
        let runtime = Runtime {
            path: config.runtime.clone(),
            root: None,
            directory: config.runtime_dir.clone(),
            limit: config.runtime_limit,
            setup: ChildSetup::unchanged().expect("limits can be read"),
            processes: Processes::new(counters.clone()),
            blocking: blocking.clone(),
            cgroup_option: OnceCell::new(),
        };
        let pod = Pod::new(config.clone(), runtime, blocking, counters);
        let sessions = SessionTable::new(config.streams.session_limit, pod.heap.clone());
        let services = Services {
            streams: StreamServer::new(pod.clone(), sessions.clone()).expect("without TLS there is nothing to fail"),
            attach: AttachSockets::new(pod.clone(), sessions.clone()),
            sessions,
            captures: Rc::default(),
            namespaces: Namespaces::new(pod.clone()),
            fds: FdSocket::new(pod.clone()),
            traces: Rc::new(Traces::start(None)),
            pod,
        };
        services.pod.close();
        services.streams.stop_accepting();
        services.fds.close();
        services.namespaces.close(false).await;
        Self { services: Rc::new(services) }
    }

    pub(crate) async fn client(&self, parts: &[&[u8]], done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let connection = Rc::<Connection>::default();
        let served = async {
            tokio::select! {
                () = connection.closed() => {}
                () = serve(ours, &self.services, &connection) => {}
            }
        };
        let both = async { tokio::join!(served, exchange(theirs, parts, done)).1 };
        let replies = timeout(LIMIT, both).await.expect("a connection answers, and ends after its client");
        for _ in 0..100 {
            if Rc::strong_count(&connection) == 1 && self.services.pod.is_empty() {
                break;
            }
            yield_now().await;
        }
        assert!(connection.is_idle(), "no call outlives its connection here");
        assert_eq!(Rc::strong_count(&connection), 1, "nothing that the connection had is left");
        assert!(self.services.pod.is_empty() && Rc::strong_count(&self.services) == 1, "nothing was started");
        replies
    }

    pub(crate) fn decode(&self, message: &[u8]) {
        let Ok(reader) = serialize::read_message(message, reader_options()) else { return };
        /// Decodes the message as a request of this form; what comes out is looked at.
        macro_rules! request {
            ($($form:ident)::+, $decode:expr, $decoded:pat => $check:expr) => {
                if let Ok(request) = reader.get_root::<$($form)::+::Reader<'_>>() {
                    let _ = request.get_metadata().map(traced::parent);
                    if let Ok($decoded) = $decode(request) {
                        $check;
                    }
                }
            };
        }
        let slots = &self.services.fds.slots;
        request!(conmon::create_container_request, |request| decode::create(request, slots), create => check_create(&create));
        request!(conmon::exec_sync_container_request, decode::exec_sync, (spec, _) => check_exec(&spec));
        request!(conmon::serve_exec_container_request, decode::serve_exec, (spec, _) => check_exec(&spec));
        request!(conmon::serve_attach_container_request, decode::serve_attach, (id, ..) => check_id(&id));
        request!(conmon::attach_request, decode::attach, attach => check_path(&attach.socket_path));
        request!(conmon::reopen_log_request, decode::reopen_log, id => check_id(&id));
        request!(conmon::set_window_size_request, decode::window_size, (id, _) => check_id(&id));
        request!(conmon::create_namespaces_request, decode::namespaces::request, request => {
            check_path(&request.base);
            assert!(!request.pod_id.contains('/') && (1..=255).contains(&request.pod_id.len()));
            assert!(request.uid_mappings.len() <= 340 && request.gid_mappings.len() <= 340);
        });
        request!(conmon::serve_port_forward_container_request, decode::ports::container, destination => drop(destination));
        request!(holdfast::serve_port_forward_request, decode::ports::forward, (destination, ports) => {
            assert!(destination.pod.len() <= 256 && ports.len() <= 128 && !ports.contains(&0));
        });
    }
}

/// Sends everything, waits until enough has come back or the server ends, and returns all that came back.
async fn exchange(stream: UnixStream, parts: &[&[u8]], done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut reader, mut writer) = stream.into_split();
    let (enough, mut is_enough) = watch::channel(false);
    let send = async {
        for part in parts {
            if writer.write_all(part).await.is_err() {
                break;
            }
            yield_now().await;
        }
        // An error: the server has ended.
        let _ = is_enough.wait_for(|enough| *enough).await;
        drop(writer);
    };
    let receive = async {
        let mut replies = Vec::new();
        loop {
            if done(&replies) {
                enough.send_replace(true);
            }
            match reader.read_buf(&mut replies).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        enough.send_replace(true);
        replies
    };
    tokio::join!(send, receive).1
}

fn check_create(create: &CreateRequest) {
    check_id(&create.spec.id);
    check_path(&create.spec.bundle);
    for paths in [&create.exit_paths, &create.oom_exit_paths] {
        assert!(paths.len() <= 1000);
        paths.iter().for_each(|path| check_path(path));
    }
    assert!(create.logs.len() <= 16);
    for log in &create.logs {
        if let LogSpec::File { path, .. } = log {
            check_path(path);
        }
    }
    assert!(create.leak_fds.is_empty() && create.spec.additional_fds.is_empty(), "nobody has sent any");
    assert!(create.cleanup_command.first().is_none_or(|program| !program.is_empty()));
    assert!(create.spec.env.iter().all(|(name, _)| !name.is_empty() && !name.contains(['=', '\0'])));
}

fn check_id(id: &ContainerId) {
    assert!(ContainerId::parse(id.as_str()).is_ok());
}

fn check_path(path: &Path) {
    let text = path.to_str().expect("it came as UTF-8");
    assert!(path.is_absolute() && path.file_name().is_some() && text.len() <= 4095 && !text.contains('\0'));
}

fn check_exec(spec: &ExecSpec) {
    check_id(&spec.id);
    assert!(spec.command.first().is_some_and(|program| !program.is_empty()));
    assert!(spec.command.iter().all(|word| !word.contains('\0')));
}
