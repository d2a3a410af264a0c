//! Log encoders, pure: (time, stream, bytes) to bytes.
