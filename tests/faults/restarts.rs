//! The runtime dies and comes back; see the table in `main.rs`.
#![allow(clippy::disallowed_methods, reason = "the tasks of these tests end with their runtime")]

mod cuts;
mod ends;
mod relay;
