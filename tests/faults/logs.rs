//! Logs that cannot be written, and their rotation; see the table in `main.rs`.
