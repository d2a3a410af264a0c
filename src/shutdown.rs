//! Phases of the daemon's life.
