//! What went wrong in monitors before this one, one test or more for each row: the numbers are those of the list of defects
//! that the control interface was specified with (D1 to D66), and each test is named after what went wrong.
//!
//! | module | rows |
//! |---|---|
//! | `output` | D1 to D4, D11, D41, D42, D44, D45, D48, D56, D57 |
//! | `rotation` | D43 |
//! | `processes` | D5 to D8, D10, D33, D34, D40, D47, D49, D55, D59, D60, D63 |
//! | `exec_sync` | D50 to D53, D58: execSync, and what is killed when |
//! | `attach` | D12 to D17, D30 to D32 |
//! | `streaming` | D9, D18 to D26, D65, D66 |
//! | `oom` | D27 to D29 |
//! | `edges` | D35 to D37, D46 |
//! | `startup` | D38, D39, D61, D62, D64 |
//!
//! Not complete:
//! - D40: where the daemon may not lower its OOM score, only that its children have the one it was started with.
//! - D54 (nothing known after a crash) is not ruled out yet.
//! - D64 are faults of clients: tested is that they cost a client nothing here.
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

mod attach;
mod edges;
mod exec_sync;
mod oom;
mod output;
mod processes;
mod rotation;
mod startup;
mod streaming;
#[path = "../support/mod.rs"]
mod support;
