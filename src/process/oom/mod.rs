//! Whether the kernel's OOM killer hit a container: counters of its memory cgroup, compared with what they were at first.
//!
//! The counters decide. A notification (inotify on version 2, an eventfd on version 1) only says when to look, so that a
//! kill is remembered when the cgroup goes before the last look; it may come too early, too often, for a removal, or for
//! another container.

mod bell;
mod events;

use std::{
    cell::Cell,
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

pub(crate) use self::bell::Bells;
use self::{
    bell::Bell,
    events::{MemoryEvents, OomCounts},
};
use super::cgroup::{Cgroups, is_named_by};
use crate::sys::{SysError, notify};

/// When to look after a notification: at once, and again, since version 1 notifies before it kills and counts. The pauses
/// also keep a cgroup that notifies all the time (each reclaim at `memory.high` does) from costing more than a few looks.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(5), Duration::from_millis(50)];

/// The OOM counters of one container.
#[derive(Debug)]
pub(crate) struct OomWatch {
    own: PathBuf,
    parent: Option<PathBuf>,
    baseline: MemoryEvents,
    /// `None` where the kernel gave none: then the last look decides alone.
    bell: Option<Bell>,
    /// A kernel without a counter of kills: the notification itself counts, while the cgroup is there.
    bell_decides: bool,
    /// State, not events: once true, nothing further matters.
    killed: Cell<bool>,
}

impl OomWatch {
    /// The counters of the memory cgroup that a process is in; `None` where there are none. `cgroups_path` is what the
    /// bundle says (`linux.cgroupsPath`, or the container's id where it says nothing): it tells a cgroup that the runtime
    /// made inside the container's own, as crun does, from one that siblings share.
    pub(crate) fn of(bells: &Bells, cgroups: &Cgroups, cgroups_path: &str) -> Option<Self> {
        match cgroups.v1("memory") {
            Some(directory) => {
                let bell = Bell::eventfd(&directory);
                Self::at(directory.join("memory.oom_control"), None, bell)
            }
            None => {
                let directory = cgroups.v2()?;
                let own = directory.join("memory.events");
                let above = directory
                    .parent()
                    .filter(|above| !is_named_by(cgroups_path, &directory) && is_named_by(cgroups_path, above));
                let parent = above.map(|above| above.join("memory.events")).filter(|file| file.exists());
                let files = [Some(&*own), parent.as_deref()].into_iter().flatten();
                let bell = bells.inotify(files.filter(|file| file.exists()));
                Self::at(own, parent, bell)
            }
        }
    }

    fn at(own: PathBuf, parent: Option<PathBuf>, bell: Result<Bell, SysError>) -> Option<Self> {
        let baseline = look(&own, parent.as_deref());
        let any = baseline.own.or(baseline.parent)?;
        if let Err(error) = &bell {
            tracing::warn!(%error, "an OOM kill is looked for only when the container ends");
        }
        let (bell, killed) = (bell.ok(), Cell::new(false));
        Some(Self { own, parent, baseline, bell, bell_decides: !any.tell(), killed })
    }

    /// Remembers a kill as soon as there is one. Never resolves: to be dropped when the container has ended. Ends watching
    /// with the first kill, and with the cgroup.
    pub(crate) async fn watch(&self) -> Infallible {
        if let Some(bell) = self.bell.as_ref().map(Bell::fd) {
            while self.is_there() && !self.killed.get() {
                let Ok(mut ready) = bell.readable().await else { break };
                ready.clear_ready();
                let rang = notify::drain(bell);
                self.killed.set(self.bell_decides && rang && self.is_there());
                for pause in LOOKS {
                    sleep(pause).await;
                    self.look();
                }
            }
        }
        std::future::pending().await
    }

    /// The last look. To be taken at once when the container has ended: the counters go with the cgroup.
    pub(crate) fn killed(&self) -> bool {
        self.look();
        if self.bell_decides && self.bell.as_ref().map(Bell::fd).is_some_and(notify::drain) && self.is_there() {
            self.killed.set(true);
        }
        self.killed.get()
    }

    fn look(&self) {
        if !self.killed.get() && look(&self.own, self.parent.as_deref()).kill_since(&self.baseline) {
            tracing::info!("the OOM killer has killed a process of the container");
            self.killed.set(true);
        }
    }

    /// A removed cgroup notifies too.
    fn is_there(&self) -> bool {
        [Some(&self.own), self.parent.as_ref()].into_iter().flatten().any(|file| file.exists())
    }
}

/// A file that cannot be read, as one of a removed cgroup, tells nothing.
fn look(own: &Path, parent: Option<&Path>) -> MemoryEvents {
    let counts = |file: &Path| fs::read_to_string(file).ok().map(|text| OomCounts::parse(&text));
    MemoryEvents { own: counts(own), parent: parent.and_then(counts) }
}

#[cfg(test)]
mod tests;
