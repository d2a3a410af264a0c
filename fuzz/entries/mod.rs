//! The bodies of the fuzz targets: plain functions that take any bytes, and panic where a promise is broken.
//! `fuzz/target.rs` gives them to libFuzzer, `tests/fuzz_corpora.rs` to every run of the tests.

mod control;
mod http;
mod log;
mod small;
mod spdy;
mod streams;
mod websocket;

/// A target: its name, which is that of its program and of its folder in `fuzz/corpus`, and its body.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All targets.
pub(crate) const TARGETS: [Target; 21] = [
    ("attach_packet", small::attach_packet),
    ("channel", websocket::channel),
    ("control_bytes", control::bytes),
    ("control_calls", control::calls),
    ("control_request", control::request),
    ("fd_message", small::fd_message),
    ("http_head", http::head),
    ("line_splitter", log::line_splitter),
    ("log_records", log::records),
    ("negotiation", http::negotiation),
    ("port_channels", websocket::port_channels),
    ("port_pairs", streams::port_pairs),
    ("resize", small::resize),
    ("spdy_bytes", spdy::bytes),
    ("spdy_headers", spdy::headers),
    ("spdy_ops", spdy::operations),
    ("status", small::status),
    ("stream_set", streams::stream_set),
    ("traceparent", small::traceparent),
    ("upgrade_head", http::upgrade_head),
    ("ws_frame", websocket::frames),
];
