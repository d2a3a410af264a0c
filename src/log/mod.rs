//! Log drivers of a container.
