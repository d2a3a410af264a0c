//! The Rust client of the control interface.
