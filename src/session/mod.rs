//! One client doing one thing.
