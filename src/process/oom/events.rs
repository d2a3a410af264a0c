//! What the kernel's OOM counters say, as pure data: a look now, compared with a look at the begin.

/// The counters of one cgroup: of `memory.events` in version 2, of `memory.oom_control` in version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct OomCounts {
    /// How often memory ran out. Only version 2 counts that.
    oom: Option<u64>,
    /// How many processes were killed for it. Kernels before 4.13 do not say.
    oom_kill: Option<u64>,
}

impl OomCounts {
    /// Each counter is a line of its own: `NAME NUMBER`.
    pub(super) fn parse(text: &str) -> Self {
        let value = |name| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            values.next()?.trim().parse().ok()
        };
        Self { oom: value("oom"), oom_kill: value("oom_kill") }
    }

    /// Whether kills are counted at all; where they are not, only a notification can tell.
    pub(super) fn tell(&self) -> bool {
        self.oom_kill.or(self.oom).is_some()
    }

    fn rose_since(&self, before: &Self) -> bool {
        match (before.oom_kill, self.oom_kill) {
            (Some(before), Some(now)) => now > before,
            // Memory that ran out without a kill is no OOM kill; but a kernel that counts only this means both by it.
            (None, None) => before.oom.zip(self.oom).is_some_and(|(before, now)| now > before),
            _ => false,
        }
    }
}

/// One look at all counters that concern a container. `None`: no such file, or none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MemoryEvents {
    /// Of the cgroup its processes are in.
    pub(super) own: Option<OomCounts>,
    /// Of the cgroup above, only where the runtime made both of them for this container: else that is the pod's, and counts
    /// the kills of siblings.
    pub(super) parent: Option<OomCounts>,
}

impl MemoryEvents {
    /// Whether something was OOM-killed since. Each counter is compared with itself; a file that is gone tells nothing.
    pub(super) fn kill_since(&self, before: &Self) -> bool {
        let rose = |before: Option<OomCounts>, now: Option<OomCounts>| {
            before.zip(now).is_some_and(|(before, now)| now.rose_since(&before))
        };
        rose(before.own, self.own) || rose(before.parent, self.parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(own: &str, parent: &str) -> MemoryEvents {
        let parse = |text: &str| (text != "gone").then(|| OomCounts::parse(text));
        MemoryEvents { own: parse(own), parent: parse(parent) }
    }

    #[test]
    fn counters_are_found_by_their_exact_names() {
        let v2 = OomCounts::parse("low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 7\n");
        assert_eq!(v2, OomCounts { oom: Some(4), oom_kill: Some(2) });
        let v1 = OomCounts::parse("oom_kill_disable 5\nunder_oom 6\noom_kill 3\n");
        assert_eq!(v1, OomCounts { oom: None, oom_kill: Some(3) });
        let old = OomCounts::parse("oom_kill_disable 0\nunder_oom 0\n");
        assert!(!old.tell() && v1.tell() && v2.tell());
        for nonsense in ["", "oom_kill\n", "oom_kill x\n", "oom_kill -1\n", "oom_kill3\n"] {
            assert_eq!(OomCounts::parse(nonsense), OomCounts::default(), "{nonsense:?}");
        }
    }

    #[test]
    fn a_kill_is_a_counter_of_kills_above_its_own_baseline_and_nothing_else() {
        let (quiet, one) = ("oom 0\noom_kill 0\n", "oom 1\noom_kill 1\n");
        for (before, now, killed) in [
            ((quiet, "gone"), (quiet, "gone"), false),
            ((quiet, "gone"), (one, "gone"), true),
            // Different counters have different values from the start.
            (("oom 5\noom_kill 2\n", "gone"), ("oom 5\noom_kill 2\n", "gone"), false),
            (("oom 5\noom_kill 2\n", "gone"), ("oom 5\noom_kill 3\n", "gone"), true),
            // Memory ran out, and nothing had to die.
            ((quiet, "gone"), ("oom 3\noom_kill 0\n", "gone"), false),
            // The parent had kills before this container was there.
            ((quiet, "oom_kill 7\n"), (quiet, "oom_kill 7\n"), false),
            ((quiet, "oom_kill 7\n"), (quiet, "oom_kill 8\n"), true),
            // A counter that starts anew is another cgroup of the same name.
            (("oom_kill 7\n", "gone"), ("oom_kill 1\n", "gone"), false),
            // Removal is no OOM, of either.
            ((quiet, "gone"), ("gone", "gone"), false),
            (("oom_kill 3\n", "oom_kill 3\n"), ("gone", "gone"), false),
            ((quiet, quiet), ("gone", quiet), false),
            ((quiet, quiet), ("gone", one), true),
            // A file that appears later has no baseline.
            (("gone", "gone"), (one, one), false),
            // Version 1, and a version 2 kernel that does not count kills.
            (("under_oom 0\noom_kill 0\n", "gone"), ("under_oom 1\noom_kill 0\n", "gone"), false),
            (("under_oom 0\noom_kill 0\n", "gone"), ("under_oom 0\noom_kill 1\n", "gone"), true),
            (("oom 1\n", "gone"), ("oom 2\n", "gone"), true),
            (("oom 1\n", "gone"), ("oom 1\n", "gone"), false),
            (("under_oom 0\n", "gone"), ("under_oom 1\n", "gone"), false),
        ] {
            assert_eq!(events(now.0, now.1).kill_since(&events(before.0, before.1)), killed, "{before:?} {now:?}");
        }
    }
}
