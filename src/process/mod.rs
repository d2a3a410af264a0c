//! Processes we wait for.
