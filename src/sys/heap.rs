//! What the C library's allocator keeps, and how it is told to give it back.

/// Gives memory that the allocator keeps for later back to the kernel.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and locks the allocator itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has `malloc` give up what it keeps at hand for this thread: some pieces of each of 64 sizes, which lie wherever they were
/// freed. After much that came and went nearly each keeps a page of its own in memory, up to 1.75 MiB, and no call gives
/// them back. So they are taken out and freed by a thread that ends, and with it what was at hand for it. Takes less than a
/// millisecond; to be followed by [`trim`].
pub(crate) fn empty_thread_cache() {
    #[cfg(target_env = "gnu")]
    {
        let pieces = Pieces::of_all_sizes();
        // Where no thread can be made they are freed here, and at hand again.
        if let Ok(thread) = std::thread::Builder::new().stack_size(64 << 10).spawn(move || drop(pieces)) {
            let _ = thread.join();
        }
    }
}

#[cfg(target_env = "gnu")]
struct Pieces(Vec<usize>);

#[cfg(target_env = "gnu")]
impl Pieces {
    fn of_all_sizes() -> Self {
        /// Of each size, in glibc 2.41 and before: 7.
        const AT_HAND: usize = 16;
        // 24, 40, … 1032 bytes: one request for each size of which pieces are kept.
        let sizes = (0..64).flat_map(|index| [24 + 16 * index; AT_HAND]);
        // SAFETY: malloc takes any size; what it returns, null too, is only freed.
        Self(sizes.map(|size| std::hint::black_box(unsafe { libc::malloc(size) }).expose_provenance()).collect())
    }
}

#[cfg(target_env = "gnu")]
impl Drop for Pieces {
    fn drop(&mut self) {
        for &piece in &self.0 {
            // SAFETY: from malloc, and freed once.
            unsafe { libc::free(std::ptr::with_exposed_provenance_mut(piece)) };
        }
    }
}

/// What `malloc` takes from the kernel for itself, in bytes, and gives back when it is freed.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Makes the process's calls of `malloc` use one arena: a daemon with one busy thread needs no second one, and every
/// arena costs anonymous memory per pod. And keeps large pieces out of it for good: else the first that is freed moves
/// the limit beyond its size (up to 32 MiB), the next is in the heap, and what is small lies around it afterwards.
pub(crate) fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;
    use crate::sys::testing::holds_in_child;

    /// What the allocator has given out, in bytes; what is at hand for a thread counts as such.
    fn given_out() -> usize {
        // SAFETY: takes nothing, returns numbers.
        usize::try_from(unsafe { libc::mallinfo() }.uordblks).unwrap_or_default()
    }

    // They kept half a megabyte in memory for as long as the daemon lived.
    #[test]
    fn small_pieces_stayed_at_hand_after_much_had_come_and_gone() {
        assert!(holds_in_child(|| {
            empty_thread_cache();
            let before = given_out();
            let sizes = (0..60).flat_map(|index| [24 + 16 * index; 7]);
            let pieces: Vec<Vec<u8>> = sizes.map(Vec::with_capacity).collect();
            drop(pieces);
            let kept = given_out().saturating_sub(before);
            empty_thread_cache();
            kept > 100_000 && given_out() <= before + 4096
        }));
    }
}
