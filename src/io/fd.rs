//! Async reads and writes of pipes and terminals.
