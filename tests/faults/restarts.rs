//! The runtime dies and comes back; see the table in `main.rs`.
