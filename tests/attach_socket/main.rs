//! The legacy attach socket (`attachContainer`, control-api 4.4) as its clients see it. What other monitors got wrong here is
//! in `tests/defects/attach.rs`.
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

mod input;
mod listener;
mod output;
mod paths;
#[path = "../support/mod.rs"]
mod support;
