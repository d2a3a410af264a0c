//! See the table in `main.rs`.

mod fds;
mod namespaces;
