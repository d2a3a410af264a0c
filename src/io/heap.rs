//! Memory that was used and is not any more.

use std::{rc::Rc, time::Duration};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::sys::heap::{empty_thread_cache, trim};

/// How long after something has ended: much often ends together, and what was sent last is on its way a moment longer.
const REST: Duration = Duration::from_secs(1);
/// How long after the last end: what was on its way for longer, as threads of the pool and processes that are looked at.
const LAST: Duration = Duration::from_secs(10);

/// Gives memory back to the kernel. The allocator alone would keep nearly all that a pod ever used at once, which would be
/// this pod's for ever: it gives back only what is free at the end of its heap, and has the more patience with that the
/// larger the pieces are that it has seen.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    freed: Notify,
}

impl Heap {
    /// Says that something has ended that may have held much.
    pub(crate) fn freed(&self) {
        self.freed.notify_one();
    }

    /// Gives back, a while after each time that something has ended, and once more after the last. An idle daemon is not
    /// woken.
    pub(crate) async fn give_back(self: Rc<Self>) {
        loop {
            self.freed.notified().await;
            let mut more = true;
            while more {
                sleep(REST).await;
                trim();
                more = timeout(LAST, self.freed.notified()).await.is_ok();
            }
            empty_thread_cache();
            trim();
        }
    }
}
