//! The root owner: builds, runs and shuts down everything.
