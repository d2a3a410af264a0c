//! What tests of system calls share.

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};

/// Whether `body` returned true in a forked child. It must not panic, nor take locks but the allocator's.
pub(super) fn holds_in_child(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `body` and leaves by _exit, so it shares no lock or destructor with the other threads.
    match unsafe { fork() }.unwrap() {
        // SAFETY: always safe; skips the test harness' own exit.
        ForkResult::Child => unsafe { libc::_exit(if body() { 0 } else { 1 }) },
        ForkResult::Parent { child } => waitpid(child, None).unwrap() == WaitStatus::Exited(child, 0),
    }
}
