//! The exporter against a collector of our own.
#![allow(clippy::disallowed_methods, reason = "the collector's tasks end with the test")]

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::{Arc, Mutex},
};

use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, codegen::Service as _};

use super::*;

/// What a collector was sent.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("nobody panics with it").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// What hyper's tasks run on.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move { _ = task.await });
    }
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        let service = TraceServiceServer::new(collector.clone());
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                let answer = service_fn(move |request: hyper::Request<Incoming>| service.clone().call(request));
                tokio::task::spawn_local(http2::Builder::new(Local).serve_connection(TokioIo::new(stream), answer));
            }
        });
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().expect("nobody panics with it");
        let resources = requests.iter().flat_map(|request| request.resource_spans.clone());
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    fn resource(&self) -> Vec<KeyValue> {
        let requests = self.0.lock().expect("nobody panics with it");
        let spans = requests.first().and_then(|request| request.resource_spans.first()).expect("spans came");
        spans.resource.clone().expect("who we are").attributes
    }

    async fn wait(&self, count: usize) -> Vec<Span> {
        eventually("spans", || (self.spans().len() >= count).then(|| self.spans())).await
    }
}

async fn traced(address: impl std::fmt::Display) -> (Background, Client) {
    let mut daemon = Background::new("run");
    // Its own log says nothing: that must not keep spans back.
    let mut command = daemon.command();
    command.args(["--enable-tracing", "--log-level", "off", "--tracing-endpoint", &format!("http://{address}")]);
    let output = daemon.start(&mut command);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
    (daemon, client)
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_span_of_a_call_is_a_child_of_the_callers() {
    support::run(async {
        let (collector, address) = Collector::start().await;
        let (daemon, client) = traced(address).await;
        failing_exec(&client, Some(&traceparent("01"))).await;
        let spans = collector.wait(1).await;
        let [span] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), "b7ad6b7169203331".to_owned()));
        assert!(span.span_id.len() == 8 && span.span_id != span.parent_span_id);
        assert_eq!((span.name.as_str(), span.kind()), ("Conmon/execSyncContainer", SpanKind::Server));
        assert!(span.start_time_unix_nano < span.end_time_unix_nano && span.start_time_unix_nano > 0);
        assert_eq!(span.status.as_ref().map(|status| status.code()), Some(StatusCode::Unset));
        let resource = collector.resource();
        assert_eq!(text(&resource, "service.name"), Some(&Value::StringValue("holdfast".to_owned())));
        let pid = daemon.pid.expect("started");
        assert_eq!(text(&resource, "process.pid"), Some(&Value::IntValue(pid.into())));
        let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("procfs");
        assert_eq!(text(&resource, "host.name"), Some(&Value::StringValue(host.trim().to_owned())));
    });
}

#[test]
fn calls_without_a_trace_begin_one_and_traces_nobody_records_are_left_alone() {
    support::run(async {
        let (collector, address) = Collector::start().await;
        let (mut daemon, client) = traced(address).await;
        failing_exec(&client, Some(&traceparent("00"))).await;
        failing_exec(&client, Some("00-nonsense")).await;
        let mut reopen = client.conmon().reopen_log_container_request();
        reopen.get().init_request().set_id("nobody");
        reopen.send().promise.await.err().expect("nobody has that name");
        // What has not been sent yet is sent now.
        daemon.signal(Signal::SIGTERM);
        daemon.gone().await;
        let spans = collector.spans();
        let [exec, reopen] = &spans[..] else { panic!("{spans:?}") };
        for span in [exec, reopen] {
            assert!(span.parent_span_id.is_empty() && span.trace_id.len() == 16 && hex(&span.trace_id) != TRACE);
        }
        assert_ne!(exec.trace_id, reopen.trace_id);
        let status = reopen.status.clone().expect("it failed");
        assert_eq!((reopen.name.as_str(), status.code()), ("Conmon/reopenLogContainer", StatusCode::Error));
        assert!(status.message.contains("not-found"), "{}", status.message);
    });
}

#[test]
fn a_call_whose_caller_goes_away_is_exported_as_cancelled() {
    support::run(async {
        let (collector, address) = Collector::start().await;
        let mut daemon = Background::new("run");
        // A runtime that does not answer.
        let runtime = daemon.path().join("runtime");
        fs::write(&runtime, "#!/bin/sh\nexec sleep 1000\n").expect("ours");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command
            .arg("--runtime")
            .arg(&runtime)
            .arg("--runtime-dir")
            .arg(&daemon.runtime_dir)
            .env("CONMON_LOG_DRIVER", "none");
        command.args(["--enable-tracing", "--tracing-endpoint", &format!("http://{address}")]);
        let output = daemon.start(&mut command);
        assert!(output.status.success(), "{output:?}");
        let mut raw = RawRpc::connect(&daemon.runtime_dir).await;
        let exec = call(1, 2, |params| {
            let mut request = params.init_as::<conmon::exec_sync_container_params::Builder<'_>>().init_request();
            request.set_id("c");
            request.init_command(1).set(0, "true");
        });
        raw.send(&[bootstrap(0), exec].concat()).await;
        let pid = daemon.pid.expect("started");
        eventually("the runtime", || (!support::procfs::children(pid).is_empty()).then_some(())).await;
        drop(raw);
        let spans = collector.wait(1).await;
        let status = spans[0].status.clone().expect("it did not succeed");
        assert!(status.code() == StatusCode::Error && status.message.starts_with("cancelled"), "{status:?}");
        daemon.signal(Signal::SIGTERM);
        daemon.gone().await;
    });
}

#[test]
fn a_collector_that_is_not_there_or_silent_costs_a_warning() {
    support::run(async {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let away = TcpListener::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("it is bound");
        let quiet = silent.local_addr().expect("it is bound");
        for (endpoint, warning) in [
            (format!("http://{away}"), "traces were not exported"),
            (format!("http://{quiet}"), "the collector does not answer"),
            ("https://127.0.0.1:1".to_owned(), "does not begin with http://"),
            ("127.0.0.1:1".to_owned(), "no traces are exported"),
            ("no URL".to_owned(), "no traces are exported"),
        ] {
            let mut daemon = logging("warn", |command| {
                command.args(["--enable-tracing", "--tracing-endpoint", &endpoint]);
            });
            let client = Client::connect(&daemon.runtime_dir).await.expect("it listens");
            for _ in 0..2000 {
                client.version(false).await.expect("an answer");
            }
            daemon.signal(Signal::SIGTERM);
            daemon.gone().await;
            let log = log(&daemon);
            assert!(log.contains(warning) && log.lines().count() <= 2, "{endpoint}: {log}");
        }
    });
}
