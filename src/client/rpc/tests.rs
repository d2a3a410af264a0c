use std::rc::Rc;

use super::*;
use crate::client::{CgroupManager, LogDriver, LogDriverKind};

/// Answers with what it was asked, so that a test sees whether every field arrived in its place.
struct Echo;

impl holdfast::Server for Echo {
    async fn serve_port_forward(
        self: Rc<Self>,
        params: holdfast::ServePortForwardParams,
        mut results: holdfast::ServePortForwardResults,
    ) -> capnp::Result<()> {
        results.get().init_response().set_url(format!("{:?}", params.get()?.get_request()?));
        Ok(())
    }
}

impl conmon::Server for Echo {
    async fn create_container(
        self: Rc<Self>,
        params: conmon::CreateContainerParams,
        _: conmon::CreateContainerResults,
    ) -> capnp::Result<()> {
        Err(capnp::Error::failed(format!("{:?}", params.get()?.get_request()?)))
    }

    async fn serve_exec_container(
        self: Rc<Self>,
        params: conmon::ServeExecContainerParams,
        mut results: conmon::ServeExecContainerResults,
    ) -> capnp::Result<()> {
        results.get().init_response().set_url(format!("{:?}", params.get()?.get_request()?));
        Ok(())
    }
}

/// A client of [`Echo`], and its server's task.
fn echo(stream: UnixStream) -> JoinHandle<()> {
    let (reader, writer) = stream.compat().split();
    let network = Box::new(VatNetwork::new(reader, writer, Side::Server, Default::default()));
    let holdfast: holdfast::Client = capnp_rpc::new_client(Echo);
    let system = RpcSystem::new(network, Some(holdfast.client));
    #[allow(clippy::disallowed_methods, reason = "a test's task ends with its runtime")]
    tokio::task::spawn_local(async { drop(system.await) })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    runtime.unwrap().block_on(test);
}

#[test]
fn every_field_of_a_create_request_arrives_in_its_place() {
    run(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let _server = echo(theirs);
        let create = CreateContainer {
            id: "i".to_owned(),
            bundle: "/b".into(),
            terminal: true,
            stdin: true,
            exit_paths: vec!["/e1".into(), "/e2".into()],
            oom_exit_paths: vec!["/o".into()],
            log_drivers: vec![LogDriver { kind: LogDriverKind::Json, path: "/l".into(), max_size: 7 }],
            cleanup_command: vec!["c".to_owned()],
            global_args: vec!["g".to_owned()],
            command_args: vec!["a".to_owned()],
            env: vec![("k".to_owned(), "v".to_owned())],
            cgroup_manager: CgroupManager::Cgroupfs,
            additional_fds: vec![1, 2],
            leak_fds: vec![3],
        };
        let error = Client::over(ours).create_container(&create).await.unwrap_err();
        let ClientError::Refused { call: "createContainer", reason } = error else { panic!("{error}") };
        assert_eq!(
            reason,
            "(id = \"i\", bundlePath = \"/b\", terminal = true, stdin = true, exitPaths = [\"/e1\", \"/e2\"], \
             oomExitPaths = [\"/o\"], logDrivers = [(type = json, path = \"/l\", maxSize = 7)], cleanupCmd = \
             [\"c\"], globalArgs = [\"g\"], commandArgs = [\"a\"], metadataOld = (), envVars = [(key = \"k\", value \
             = \"v\")], cgroupManager = cgroupfs, additionalFds = [1, 2], leakFds = [3])"
        );
    });
}

#[test]
fn a_call_whose_daemon_goes_away_says_so() {
    run(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = Client::over(ours);
        drop(theirs);
        let error = client.version(false).await.unwrap_err();
        assert!(matches!(error, ClientError::Gone { call: "version" }), "{error}");
        assert!(!client.is_connected());
    });
}

#[test]
fn a_socket_path_beyond_the_limit_of_addresses_is_reached() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        let none = Client::connect(&deep).await.unwrap_err();
        assert!(matches!(none, ClientError::NoDaemon(_)), "{none}");
        std::fs::create_dir(&deep).unwrap();
        let handle = File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", handle.as_raw_fd());
        let listener = tokio::net::UnixListener::bind(short).unwrap();
        let client = Client::connect(&deep).await.unwrap();
        let _server = echo(listener.accept().await.unwrap().0);
        let exec = ServeExec { id: "i".to_owned(), command: vec!["c".to_owned()], tty: true, ..ServeExec::default() };
        let asked = client.serve_exec(&exec).await.unwrap();
        assert!(asked.starts_with("(id = \"i\", command = [\"c\"], tty = true"), "{asked}");
    });
}

#[test]
fn our_own_call_names_the_pod_and_its_ports() {
    run(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let _server = echo(theirs);
        let serve = ServePortForward { net_ns: "/n".into(), pod_id: "p".to_owned(), ports: vec![80, 443] };
        let asked = Client::over(ours).serve_pod_ports(&serve).await.unwrap();
        assert_eq!(asked, "(netNsPath = \"/n\", podId = \"p\", ports = [80, 443])");
    });
}
