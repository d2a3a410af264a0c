//! The only door to the blocking pool.
