//! Calls as parts of distributed traces: what the log says about a call carries its trace's number, and a build with the
//! feature `otel` exports a span per call.

use std::fmt::Display;

use tracing::{Instrument as _, Span};

#[cfg(feature = "otel")]
use super::otlp::{Exporter, Open};
use crate::proto::traceparent::TraceParent;

/// Where the spans of calls go.
#[derive(Debug)]
pub(crate) struct Traces {
    #[cfg(feature = "otel")]
    exporter: Option<Exporter>,
}

impl Traces {
    /// Begins to export, when there is an endpoint. A daemon without traces is better than none: a failure is a warning.
    #[cfg(feature = "otel")]
    pub(crate) fn start(endpoint: Option<&str>) -> Self {
        let started = endpoint.map(Exporter::start).transpose();
        let exporter = started.unwrap_or_else(|error| {
            tracing::warn!(endpoint, "no traces are exported: {}", crate::model::one_line(&error));
            None
        });
        Self { exporter }
    }

    /// Says that this build exports nothing, when there is an endpoint.
    #[cfg(not(feature = "otel"))]
    pub(crate) fn start(endpoint: Option<&str>) -> Self {
        if endpoint.is_some() {
            tracing::warn!(
                "no traces are exported: tracing was asked for, but this build is one without the feature otel"
            );
        }
        Self {}
    }

    /// A call has come; `None` when nobody wants to know. What `parent` says is believed: whoever may call may do more.
    pub(crate) fn call(&self, method: &'static str, parent: Option<&TraceParent>) -> Option<Call> {
        #[cfg(feature = "otel")]
        let open = self.exporter.as_ref().and_then(|exporter| exporter.begin(method, parent));
        #[cfg(feature = "otel")]
        let exported = open.is_some();
        #[cfg(not(feature = "otel"))]
        let exported = false;
        if parent.is_none() && !exported {
            return None;
        }
        let span = parent.map_or_else(Span::none, |parent| {
            // Of the highest level, so that it is there whatever level its events have. Tasks that the call starts live on
            // in this span, for as long as a container does: it is not the one whose length is exported.
            tracing::error_span!("call", call = method, trace_id = %parent.trace)
        });
        Some(Call {
            span,
            #[cfg(feature = "otel")]
            open,
        })
    }

    /// Waits, not for long, until what has ended is exported.
    pub(crate) async fn flush(&self) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = &self.exporter {
            exporter.flush().await;
        }
    }
}

/// A call that is traced.
#[derive(Debug)]
pub(crate) struct Call {
    span: Span,
    #[cfg(feature = "otel")]
    open: Option<Open>,
}

impl Call {
    /// Does the call's work. Dropped before its end, it is exported as cancelled.
    pub(crate) async fn watch<T, E: Display>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let result = work.instrument(self.span).await;
        #[cfg(feature = "otel")]
        if let Some(open) = self.open {
            open.ended(result.as_ref().map(|_| ()));
        }
        result
    }
}
