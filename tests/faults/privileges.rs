//! What the daemon may do and what it keeps to itself; see the table in `main.rs`.

mod inherited;
mod modes;
mod secrets;
