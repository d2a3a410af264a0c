//! Input that no good client sends, on both doors of the daemon: each gets a clear error, leaves nothing behind and
//! disturbs nobody else. Faults of the runtime are in `bad_runtime.rs`.

#![allow(clippy::unwrap_used, reason = "what is called by tests alone is a test")]

mod support;

#[path = "bad_input/crowds.rs"]
mod crowds;
#[path = "bad_input/fields.rs"]
mod fields;
#[path = "bad_input/files.rs"]
mod files;
#[path = "bad_input/frames.rs"]
mod frames;
#[path = "bad_input/http.rs"]
mod http;
#[path = "bad_input/malformed.rs"]
mod malformed;
#[path = "bad_input/raw_http.rs"]
mod raw_http;
#[path = "bad_input/requests.rs"]
mod requests;
