//! Running the OCI runtime.
