//! What comes out of the pipes while the runtime is still running, when nobody can say yet whose it is.

use bytes::BytesMut;

use crate::{
    io::queue::ByteQueue,
    model::{Chunk, StdStream},
};

/// The most that is kept for an error text: the end of what the runtime said.
const ERROR_TEXT: usize = 64 * 1024;
/// What an exec's process may have written before its runtime has ended. Full: the pipe is not read until the runtime has
/// ended; if that does not come soon it is the runtime that floods, and [`Capture::give_up`] keeps only the end.
const EARLY_OUTPUT: usize = 1024 * 1024;

/// Output in the order read.
#[derive(Debug)]
pub(crate) struct Capture {
    queue: ByteQueue<StdStream>,
    /// Drop the oldest beyond [`ERROR_TEXT`]; otherwise wait at [`EARLY_OUTPUT`].
    keep_end: bool,
    lost: bool,
}

impl Capture {
    /// For pipes that carry only the runtime's own words (create: the container's init waits for `start`).
    pub(crate) fn of_runtime() -> Self {
        Self { queue: ByteQueue::new(), keep_end: true, lost: false }
    }

    /// For pipes that a process started by the runtime may already write to.
    pub(crate) fn of_exec() -> Self {
        Self { keep_end: false, ..Self::of_runtime() }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.keep_end || self.queue.cost() < EARLY_OUTPUT
    }

    pub(crate) fn push(&mut self, stream: StdStream, bytes: BytesMut) {
        self.queue.push(stream, bytes.freeze());
        if self.keep_end {
            self.drop_oldest();
        }
    }

    /// From now on only the end is kept, for an error text: what was the process's is lost, which [`Capture::lost`] tells.
    pub(crate) fn give_up(&mut self) {
        self.keep_end = true;
        self.drop_oldest();
    }

    /// Whether anything was dropped.
    pub(crate) fn lost(&self) -> bool {
        self.lost
    }

    fn drop_oldest(&mut self) {
        while self.queue.cost() > ERROR_TEXT + 16 * 1024 {
            self.queue.pop();
            self.lost = true;
        }
    }

    /// The output to hand on.
    pub(crate) fn into_chunks(mut self) -> Vec<Chunk> {
        std::iter::from_fn(|| self.queue.pop()).map(|(stream, bytes)| Chunk { stream, bytes }).collect()
    }

    /// The runtime's words: its standard error, or its standard output when it said nothing there.
    pub(crate) fn text(&self) -> String {
        let of = |wanted| {
            let pieces = self.queue.iter().filter(|(stream, _)| *stream == wanted);
            let bytes: Vec<u8> = pieces.flat_map(|(_, bytes)| bytes.iter().copied()).collect();
            String::from_utf8_lossy(&bytes).trim().to_owned()
        };
        Some(of(StdStream::Stderr)).filter(|text| !text.is_empty()).unwrap_or_else(|| of(StdStream::Stdout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_prints_megabytes_leaves_the_end_of_its_words() {
        let mut capture = Capture::of_runtime();
        for n in 0..1000u32 {
            capture.push(StdStream::Stderr, BytesMut::from(format!("{n:1024}").as_bytes()));
        }
        assert!(capture.queue.cost() <= ERROR_TEXT + 16 * 1024 && capture.lost());
        assert!(capture.text().ends_with("999"));
    }

    #[test]
    fn output_of_an_exec_waits_instead_of_being_dropped() {
        let mut capture = Capture::of_exec();
        while capture.has_room() {
            capture.push(StdStream::Stdout, BytesMut::from(&[b'x'; 4096][..]));
        }
        assert!((EARLY_OUTPUT..EARLY_OUTPUT + 4096 + 64).contains(&capture.queue.cost()));
        assert!(!capture.lost());
    }

    #[test]
    fn standard_error_is_preferred_for_the_error_text() {
        let mut capture = Capture::of_runtime();
        capture.push(StdStream::Stdout, BytesMut::from("noise"));
        assert_eq!(capture.text(), "noise");
        capture.push(StdStream::Stderr, BytesMut::from("reason\n"));
        assert_eq!(capture.text(), "reason");
    }
}
