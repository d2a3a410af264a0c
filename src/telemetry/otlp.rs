//! Spans of calls to a collector, by OTLP/gRPC (<https://opentelemetry.io/docs/specs/otlp/>).
//!
//! A thread of its own speaks to the collector: the daemon's one thread hands over what has ended and never waits. A
//! collector that is away or slow costs spans and a warning, nothing else.

use std::{
    cell::RefCell,
    fmt::Display,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status, span::SpanKind, status::StatusCode},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{
    model::trimmed,
    proto::traceparent::{TraceId, TraceParent},
    sys::random::random_bytes,
};

/// Spans that wait for the thread, of at most 1.2 KiB each. Full: the span is dropped and counted.
const QUEUE: usize = 1024;
/// Spans in one message.
const BATCH: usize = 256;
/// How long a span may wait for more to come, so that many calls make few messages.
const LINGER: Duration = Duration::from_secs(1);
/// How long one message may take. Longer: its spans are dropped and counted.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);
/// How long the shutdown waits for the last spans.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// The shortest time between two warnings.
const WARN_PAUSE: Duration = Duration::from_secs(60);
/// The longest text of a call's error, in bytes.
const TEXT_LIMIT: usize = 1024;

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    #[error("the endpoint is no URL: write http://HOST:PORT")]
    Url(#[source] tonic::transport::Error),
    #[error(
        "the endpoint does not begin with http://, and nothing else is spoken: let a collector on this host do the rest"
    )]
    Scheme,
    #[error("the thread of the exporter cannot be started")]
    Thread(#[source] io::Error),
}

/// A handle on the exporting thread.
#[derive(Debug)]
pub(super) struct Exporter {
    queue: Queue,
    closing: CancellationToken,
    /// Resolves when the thread has nothing left to do.
    ended: RefCell<Option<oneshot::Receiver<()>>>,
}

#[derive(Debug, Clone)]
struct Queue {
    sender: mpsc::Sender<Finished>,
    /// Spans that never reached the collector.
    lost: Arc<AtomicU64>,
}

impl Queue {
    fn push(&self, span: Finished) {
        if self.sender.try_send(span).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

impl Exporter {
    /// Starts the thread; connects when there is something to export.
    pub(super) fn start(endpoint: &str) -> Result<Self, ExportError> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(ExportError::Url)?;
        if endpoint.uri().scheme_str() != Some("http") {
            return Err(ExportError::Scheme);
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let queue = Queue { sender, lost: Arc::default() };
        let closing = CancellationToken::new();
        let runtime = Builder::new_current_thread().enable_all().build().map_err(ExportError::Thread)?;
        let worker =
            Worker { receiver, closing: closing.clone(), lost: queue.lost.clone(), resource: resource(), warned: None };
        let thread = std::thread::Builder::new().name("otlp".to_owned());
        thread.spawn(move || run(&runtime, &endpoint, worker, end)).map_err(ExportError::Thread)?;
        Ok(Self { queue, closing, ended: RefCell::new(Some(ended)) })
    }

    /// A call begins; `None` when its caller does not record the trace.
    pub(super) fn begin(&self, method: &'static str, parent: Option<&TraceParent>) -> Option<Open> {
        if parent.is_some_and(|parent| !parent.sampled) {
            return None;
        }
        let trace = match parent {
            Some(parent) => parent.trace,
            None => TraceId(random_bytes().ok()?),
        };
        let started = Finished {
            method,
            trace,
            span: random_bytes().ok()?,
            parent: parent.map(|parent| parent.span),
            start: SystemTime::now(),
            end: UNIX_EPOCH,
            error: Some("cancelled: the caller has gone".to_owned()),
        };
        Some(Open { span: Some(started), queue: self.queue.clone() })
    }

    /// Waits until everything that has ended is exported, but no longer than `FLUSH_LIMIT`.
    pub(super) async fn flush(&self) {
        self.closing.cancel();
        let ended = self.ended.take();
        if let Some(ended) = ended
            && timeout(FLUSH_LIMIT, ended).await.is_err()
        {
            tracing::warn!("the last traces were not exported: the collector does not answer");
        }
    }
}

/// The span of a call under way; goes into the queue when it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    span: Option<Finished>,
    queue: Queue,
}

impl Open {
    pub(super) fn ended(mut self, result: Result<(), &impl Display>) {
        if let Some(span) = &mut self.span {
            span.error = result.err().map(|error| trimmed(error.to_string(), TEXT_LIMIT));
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.end = SystemTime::now();
            self.queue.push(span);
        }
    }
}

/// A call that has ended.
#[derive(Debug)]
struct Finished {
    method: &'static str,
    trace: TraceId,
    span: [u8; 8],
    parent: Option<[u8; 8]>,
    start: SystemTime,
    end: SystemTime,
    error: Option<String>,
}

impl Finished {
    /// Names and attributes by the conventions for RPC servers.
    fn into_span(self) -> Span {
        let remote = if self.parent.is_some() { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
        let (code, message) = match self.error {
            None => (StatusCode::Unset, String::new()),
            Some(error) => (StatusCode::Error, error),
        };
        Span {
            trace_id: self.trace.0.to_vec(),
            span_id: self.span.to_vec(),
            parent_span_id: self.parent.map(Vec::from).unwrap_or_default(),
            // Sampled, and where the parent is.
            flags: 1 | SpanFlags::ContextHasIsRemoteMask as u32 | remote,
            name: format!("Conmon/{}", self.method),
            kind: SpanKind::Server.into(),
            start_time_unix_nano: nanoseconds(self.start),
            end_time_unix_nano: nanoseconds(self.end.max(self.start)),
            attributes: vec![
                text("rpc.system", "capnp"),
                text("rpc.service", "Conmon"),
                text("rpc.method", self.method),
            ],
            status: Some(Status { message, code: code.into() }),
            ..Span::default()
        }
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

/// Who we are.
fn resource() -> Resource {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let attributes = vec![
        text("service.name", env!("CARGO_PKG_NAME")),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("host.name", host.trim()),
        attribute("process.pid", Value::IntValue(std::process::id().into())),
    ];
    Resource { attributes, ..Resource::default() }
}

fn run(runtime: &Runtime, endpoint: &Endpoint, worker: Worker, end: oneshot::Sender<()>) {
    runtime.block_on(async {
        let client = TraceServiceClient::new(endpoint.connect_lazy());
        worker.work(client).await;
    });
    // Nobody waits for it when the shutdown was in a hurry.
    let _ = end.send(());
}

struct Worker {
    receiver: mpsc::Receiver<Finished>,
    closing: CancellationToken,
    lost: Arc<AtomicU64>,
    resource: Resource,
    warned: Option<Instant>,
}

impl Worker {
    async fn work(mut self, mut client: TraceServiceClient<Channel>) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                _ = self.receiver.recv_many(&mut batch, BATCH) => {}
                () = self.closing.cancelled(), if !self.receiver.is_closed() => self.receiver.close(),
            }
            if batch.is_empty() {
                // Either just closed, or closed and nothing left.
                if self.receiver.is_closed() && self.receiver.is_empty() {
                    return;
                }
                continue;
            }
            // An error means that there was none to wait for.
            let _ = timeout(LINGER, self.closing.cancelled()).await;
            while batch.len() < BATCH
                && let Ok(span) = self.receiver.try_recv()
            {
                batch.push(span);
            }
            self.export(&mut client, batch.drain(..).map(Finished::into_span).collect()).await;
        }
    }

    async fn export(&mut self, client: &mut TraceServiceClient<Channel>, spans: Vec<Span>) {
        let count = spans.len();
        let scope = InstrumentationScope { name: env!("CARGO_PKG_NAME").to_owned(), ..InstrumentationScope::default() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
        let resource_spans =
            vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans, ..ResourceSpans::default() }];
        let reason = match timeout(EXPORT_LIMIT, client.export(ExportTraceServiceRequest { resource_spans })).await {
            Ok(Ok(_)) => None,
            Ok(Err(status)) => Some(status.to_string()),
            Err(_) => Some("the collector does not answer".to_owned()),
        };
        if reason.is_some() {
            self.lost.fetch_add(count as u64, Relaxed);
        }
        self.warn(reason.as_deref());
    }

    fn warn(&mut self, reason: Option<&str>) {
        let lost = self.lost.load(Relaxed);
        if lost > 0 && self.warned.is_none_or(|at| at.elapsed() >= WARN_PAUSE) {
            self.warned = Some(Instant::now());
            self.lost.fetch_sub(lost, Relaxed);
            tracing::warn!(lost, reason = reason.unwrap_or("they came too fast"), "traces were not exported");
        }
    }
}
