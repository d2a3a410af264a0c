//! What the daemon drops, refuses or cuts: each by a decision, each counted.

use std::cell::Cell;

/// A number that only grows. Belongs to the daemon's one thread.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Counts one more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts so many more; stays at the largest number instead of starting anew.
    pub fn add(&self, more: u64) {
        self.0.set(self.0.get().saturating_add(more));
    }

    /// How many so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.get()
    }
}

/// Declares the counters once: fields and the names they are reported under cannot drift apart.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// All counters of a daemon. One is made by the daemon and shared by `Rc`.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Name and value of each, in the order of declaration.
            #[must_use]
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.value()),)*]
            }
        }
    };
}

counters! {
    /// Bytes of container output that did not get into a log.
    log_lost_bytes,
    /// Log records that did not get into a log.
    log_lost_lines,
    /// Bytes of container output that slow attach clients did not get.
    attach_cut_bytes,
    /// Bytes of exec output beyond what one reply may hold.
    exec_cut_bytes,
    /// Streaming requests dropped for newer ones.
    pending_evicted,
    /// Streaming clients refused because there were too many sessions.
    sessions_refused,
    /// Streaming connections closed for newer ones before they asked for anything.
    connections_closed_early,
    /// Control connections closed for newer ones.
    control_connections_evicted,
    /// Descendants reaped that nobody watched.
    orphans_reaped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_reported_by_name_and_never_wrap() {
        let counters = Counters::default();
        counters.orphans_reaped.increment();
        counters.log_lost_bytes.add(u64::MAX);
        counters.log_lost_bytes.add(5);
        let entries = counters.entries();
        assert!(entries.contains(&("orphans_reaped", 1)) && entries.contains(&("log_lost_bytes", u64::MAX)));
        assert!(entries.contains(&("pending_evicted", 0)));
    }
}
