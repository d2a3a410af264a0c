//! The life of a container: create, logs, terminal, exit.

mod create;
mod crun;
mod exit;
mod journald;
mod logs;
#[path = "../support/mod.rs"]
mod support;
mod terminal;
