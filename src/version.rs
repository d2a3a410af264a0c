//! What was built, when, with what.
