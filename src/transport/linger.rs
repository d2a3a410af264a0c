//! The wait for the client's good-bye.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, sleep};

use super::socket::Socket;

/// After the last word the client has so long to say good-bye, counted from when it has acknowledged everything.
const LINGER: Duration = Duration::from_secs(30);
/// And so long in all: it may be reading a lot, slowly.
const LINGER_MAX: Duration = Duration::from_secs(15 * 60);
/// How often the acknowledgements are looked at meanwhile.
const LINGER_LOOK: Duration = Duration::from_secs(1);

/// Waits until `discard`, which reads and keeps nothing, sees the client's end, within limits. A socket closed with unread
/// input would make the kernel throw away output the client has not read yet (streaming 2.9, 5.9).
pub(super) async fn linger(socket: &Socket, is_flushed: impl Fn() -> bool, discard: impl Future<Output = ()>) {
    let start = Instant::now();
    let mut quiet_since = None;
    let mut discard = pin!(discard);
    while start.elapsed() < LINGER_MAX {
        tokio::select! {
            () = &mut discard => return,
            () = sleep(LINGER_LOOK) => {}
        }
        let acknowledged = is_flushed() && socket.unacknowledged() == 0;
        if acknowledged && quiet_since.get_or_insert_with(Instant::now).elapsed() >= LINGER {
            return;
        }
    }
}
