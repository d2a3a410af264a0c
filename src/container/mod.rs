//! One container.
