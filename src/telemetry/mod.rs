//! The daemon's own log: where events of `tracing` go.
//!
//! Writing never waits: a log that nobody reads must not stop a pod. An event that finds no room is dropped, and the next
//! one that finds some tells how many were (`lost_lines`). `traces` is about calls as parts of distributed traces.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use tracing::{
    Event, Subscriber,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record as Changes},
};
use tracing_subscriber::{
    Registry,
    filter::filter_fn,
    layer::{Context, Layer, SubscriberExt as _},
    registry::LookupSpan,
};

use self::{
    journal::Journal,
    record::{Fields, Record},
    stdout::Lines,
};

use crate::format::journal::SOCKET;

pub mod counters;
mod journal;
#[cfg(feature = "otel")]
mod otlp;
mod record;
mod stdout;
pub(crate) mod traces;

/// Logs to standard output, one line per event.
///
/// # Errors
/// When standard output cannot be used: then there is no log.
pub fn log_to_stdout(level: LevelFilter) -> io::Result<()> {
    Lines::stdout().map(|lines| install(Sink::Lines(lines), level))
}

/// Logs to the systemd journal.
///
/// # Errors
/// When journald is not there: then there is no log.
pub fn log_to_journal(level: LevelFilter) -> io::Result<()> {
    Journal::open(Path::new(SOCKET)).map(|journal| install(Sink::Journal(journal), level))
}

fn install(sink: Sink, level: LevelFilter) {
    // Fails when there is a subscriber already: then the first one stays.
    let _ = tracing::subscriber::set_global_default(subscriber(sink, level));
}

fn subscriber(sink: Sink, level: LevelFilter) -> impl Subscriber {
    // The libraries beneath us tell of every frame they see.
    let ours = filter_fn(|metadata| metadata.target().starts_with(env!("CARGO_PKG_NAME")));
    Registry::default().with(Recorder { sink, lost: AtomicU64::new(0) }).with(ours).with(level)
}

#[derive(Debug)]
enum Sink {
    Lines(Lines),
    Journal(Journal),
}

impl Sink {
    fn write(&self, record: &Record) -> bool {
        match self {
            Self::Lines(lines) => lines.write(record),
            Self::Journal(journal) => journal.write(record),
        }
    }
}

/// Turns events and the spans around them into records.
#[derive(Debug)]
struct Recorder {
    sink: Sink,
    /// Events dropped since the last one that was written. Atomic because `tracing` asks for it.
    lost: AtomicU64,
}

impl Recorder {
    fn write(&self, mut record: Record) {
        let lost = self.lost.load(Relaxed);
        if lost > 0 {
            record.fields.set("lost_lines", lost.to_string());
        }
        if self.sink.write(&record) {
            self.lost.fetch_sub(lost, Relaxed);
        } else {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, changes: &Changes<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            changes.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.extend(outer);
            }
        }
        event.record(&mut fields);
        let message = fields.take_message();
        self.write(Record { level: *event.metadata().level(), message, fields });
    }
}

#[cfg(test)]
mod tests {
    use tracing::{debug, info, info_span, subscriber::with_default, warn};

    use super::{
        journal::tests::{journald, receive},
        *,
    };

    #[test]
    fn an_event_carries_the_fields_of_its_spans_and_the_innermost_wins() {
        let (_dir, server, journal) = journald();
        with_default(subscriber(Sink::Journal(journal), LevelFilter::INFO), || {
            let outer = info_span!("container", container = "web", pid = tracing::field::Empty);
            outer.record("pid", 42);
            let _outer = outer.entered();
            let _inner = info_span!("exec", container = %"db", r#type = ?Some(1)).entered();
            info!(bytes = 3, "done with {}", "it");
        });
        let told = receive(&server);
        let fields = "MESSAGE=done with it\nHOLDFAST_CONTAINER=db\nHOLDFAST_PID=42\nHOLDFAST_TYPE=Some(1)\n\
                      HOLDFAST_BYTES=3\n";
        assert!(told.ends_with(fields), "{told}");
    }

    #[test]
    fn events_below_the_level_are_left_out() {
        let (_dir, server, journal) = journald();
        with_default(subscriber(Sink::Journal(journal), LevelFilter::WARN), || {
            debug!("no");
            info!("no");
            warn!("yes");
        });
        assert!(receive(&server).contains("MESSAGE=yes\n"));
    }

    #[test]
    fn events_of_libraries_are_left_out() {
        let (_dir, server, journal) = journald();
        with_default(subscriber(Sink::Journal(journal), LevelFilter::TRACE), || {
            tracing::error!(target: "h2::codec", "no");
            tracing::trace!("yes");
        });
        assert!(receive(&server).contains("MESSAGE=yes\n"));
    }

    #[test]
    fn the_first_event_after_a_gap_tells_how_many_were_lost() {
        let (dir, server, journal) = journald();
        let recorder = Recorder { sink: Sink::Journal(journal), lost: AtomicU64::new(0) };
        let write = || {
            recorder.write(Record { level: tracing::Level::INFO, message: "m".to_owned(), fields: Fields::default() });
        };
        drop(server);
        write();
        write();
        let path = dir.path().join("socket");
        std::fs::remove_file(&path).unwrap();
        let server = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        write();
        assert!(receive(&server).ends_with("MESSAGE=m\nHOLDFAST_LOST_LINES=2\n"));
        write();
        assert!(receive(&server).ends_with("MESSAGE=m\n"));
    }
}
