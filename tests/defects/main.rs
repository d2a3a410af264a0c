//! What went wrong in monitors before this one, one test for each row: the numbers are those of the list of defects that
//! the control interface was specified with (D1 to D66), and each test is named after what went wrong.
//!
//! | module | rows |
//! |---|---|
//! | `output` | D1 to D4, D11, D41 to D45, D48, D56, D57 |
//! | `processes` | D5 to D8, D10, D33, D34, D40, D47, D49 to D53, D55, D58 to D60, D63 |
//! | `attach` | D12 to D17, D30 to D32 |
//! | `streaming` | D9, D18 to D26, D65, D66 |
//! | `oom` | D27 to D29 |
//! | `edges` | D35 to D39, D46, D61, D62, D64 |
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

mod attach;
mod edges;
mod oom;
mod output;
mod processes;
mod streaming;
#[path = "../support/mod.rs"]
mod support;
