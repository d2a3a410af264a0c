//! Nothing lost, nobody blocked: what is promised under load, with faults, and to peers that mean harm.
//!
//! The quick form is part of every run of the tests; `contrib/soak` runs the long one (`HOLDFAST_LONG=1`), with the sizes that
//! docs/RELIABILITY.md has figures of. Tests assert that nothing is lost, that nothing leaks and that stated bounds hold;
//! what they measure besides goes through [`support::figure`] and is asserted nowhere.
//!
//! | module | the promise |
//! |---|---|
//! | `output` | every byte of a process's output and input arrives, then its status, whatever else the machine does |
//! | `clients` | a client that is slow, silent or dead costs the container and the other clients nothing |
//! | `logs` | a log that cannot be written blocks nobody; what it lost is counted and said; rotation has no gap and no double |
//! | `processes` | processes that stay, hide, hang or come by the thousand; no descriptors, no memory |
//! | `restarts` | the runtime may die at any step; the next one finds everything |
//! | `privileges` | containers inherit nothing of the daemon; files have the least mode; no secret is in any log |

mod clients;
mod logs;
mod output;
mod privileges;
mod processes;
mod restarts;
#[path = "../support/mod.rs"]
mod support;
