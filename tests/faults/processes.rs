//! Processes that stay, hide, hang or come by the thousand, and a daemon that is short of what it needs.
//!
//! Beside what is here: children that hold the output of an ended container (`containers/exit.rs`) or exec
//! (`defects/output.rs`, `defects/exec_sync.rs`), `--exec-client-gone` for whole families of processes
//! (`streams/client_gone.rs`), pidfiles that name somebody else's process (`bad_runtime.rs`).

mod limits;
mod many;
mod memory;
mod numbers;
mod scarce;
mod stay;
mod stuck;
