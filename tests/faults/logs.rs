//! A log that cannot be written blocks nobody; what it lost is counted and said; rotation has no gap and no double.
//!
//! | file | what it has |
//! |---|---|
//! | `faults` | each fault alone, with everything that may not notice it |
//! | `combined` | faults together: parts of lines, rotation on a full disk, a directory that goes |
//! | `crowd` | many containers on one frozen file system, and the end of the daemon meanwhile |
//! | `rotation` | numbered lines at full speed through many files |
//! | `fault`, `mount`, `sick_fs` | file systems that fail on demand, and surely go away again |
//! | `account` | what a log says, compared with what the container wrote |
//! | `watch` | who was held up, and for how long |

mod account;
mod combined;
mod crowd;
mod fault;
mod faults;
mod mount;
mod rotation;
mod sick_fs;
mod watch;

use std::{fs, path::Path, time::Duration};

use holdfast::client::{CreateContainer, LogDriver, LogDriverKind};

use crate::support::{self, BundleSpec, Sandbox, which, within};

/// How long one log write that does not return may hold up its container (docs/ARCHITECTURE.md, "Queues").
const LOG_STALL: Duration = Duration::from_secs(5);

/// Less than the least time for which somebody would be held up who waits for a sick log, more than a busy machine takes.
const NOT_BLOCKED: Duration = Duration::from_secs(4);

fn cri(path: &Path) -> LogDriver {
    driver(LogDriverKind::Cri, path, 0)
}

fn json(path: &Path) -> LogDriver {
    driver(LogDriverKind::Json, path, 0)
}

fn driver(kind: LogDriverKind, path: &Path, max_size: u64) -> LogDriver {
    LogDriver { kind, path: path.into(), max_size }
}

/// Starts a script with these logs.
async fn start(sandbox: &Sandbox, id: &str, script: &str, log_drivers: Vec<LogDriver>) {
    let request = sandbox.create_request(id, &BundleSpec::shell(script));
    let request = CreateContainer { log_drivers, ..request };
    within(sandbox.client().create_container(&request)).await.expect("the container is created");
    sandbox.start(id);
}

/// How many lines a container writes at once, and how many seconds it sleeps then.
type Pace = (u32, &'static str);

/// So much that a container is soon held up by a log that takes nothing.
const FAST: Pace = (100, "0.005");

/// So little that what comes while a log is written finds room, also when the machine is busy: a second gap would follow.
const SLOW: Pace = (20, "0.02");

/// Starts a container that writes numbered lines until it is told to [`stop`]. After each write the last number is in the
/// file `/at-ID`. It ends with 99 when a write fails or kills the process that writes.
async fn count_lines(sandbox: &Sandbox, id: &str, (count, pause): Pace, log_drivers: Vec<LogDriver>) {
    let script = format!(
        "i=0; while [ ! -e /stop-{id} ]; do seq $((i + 1)) $((i + {count})) || exit 99; i=$((i + {count})); \
         echo $i >/at-{id}; sleep {pause}; done"
    );
    start(sandbox, id, &script, log_drivers).await;
}

/// The last number that a counting container has written.
fn last(sandbox: &Sandbox, id: &str) -> u64 {
    let path = sandbox.in_rootfs(&format!("at-{id}"));
    loop {
        let Ok(text) = fs::read_to_string(&path) else { return 0 };
        // Empty only while it is being written.
        if let Ok(number) = text.trim().parse() {
            return number;
        }
        std::thread::yield_now();
    }
}

/// Lets a counting container end, which must be well; returns its last number.
async fn stop(sandbox: &Sandbox, id: &str) -> u64 {
    fs::write(sandbox.in_rootfs(&format!("stop-{id}")), "").expect("our directory");
    assert_eq!(sandbox.wait_exit(id).await, 0, "a write of {id} failed");
    last(sandbox, id)
}

/// Whether the programs are there that make file systems.
fn tools() -> bool {
    ["mkfs.ext4", "fsfreeze"].into_iter().all(|name| which(name).is_some() || support::require(name))
}
