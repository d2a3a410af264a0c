//! The byte path of one process.
