//! Slow, silent and dead clients; see the table in `main.rs`.
