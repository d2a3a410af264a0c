//! Resolved, immutable settings of a daemon.
