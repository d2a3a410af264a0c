//! SPDY/3.1, as Kubernetes speaks it (streaming spec 5).
//!
//! # Primer
//!
//! One connection carries many streams. Every frame has a head of eight bytes:
//!
//! ```text
//! control: 1 | version 3 (15 bits) | type (16)        data: 0 | stream id (31)
//!          flags (8) | length (24)                          flags (8) | length (24)
//! ```
//!
//! A client opens a stream with SYN_STREAM (ids 1, 3, 5, …), whose headers say what it is for; the server answers with
//! SYN_REPLY at once, or refuses with RST_STREAM. Each direction of a stream ends by itself with the flag FIN. GOAWAY ends
//! the connection. There is no preface and there are no settings: the first bytes are the first SYN_STREAM.
//!
//! What is unlike the specification:
//!
//! * **No windows.** Nobody in this ecosystem waits for a WINDOW_UPDATE, nor do we; back-pressure is TCP's, and so one for
//!   the whole connection. We send updates for the one client that keeps windows; the others ignore them.
//! * **Header blocks form one zlib stream per direction**, over all frames of the connection. So each block that comes must
//!   be inflated, also that of a refused stream. Ours are stored blocks, which need no compressor.
//! * RST_STREAM 5 (cancel) is the answer to nearly everything.
//!
//! # The parts
//!
//! [`Connection`] is what a driver uses: `connection` for what comes, `calls` for what goes. It puts together `frame` (heads
//! and limits), `header` (blocks), `stream` (states), `outbox` (what waits to be sent) and `backlog` (what was received and
//! is not consumed yet).

mod backlog;
mod calls;
mod connection;
mod error;
mod event;
mod frame;
mod header;
mod outbox;
mod stream;

pub use backlog::{CONNECTION_BACKLOG, STREAM_BACKLOG};
pub use connection::{Connection, MAX_STREAMS};
pub use error::{ConnectionError, GoAwayStatus, HeaderError, RstStatus, SendError, StreamError};
pub use event::{Event, Pause, Side};
pub use frame::{MAX_PIECE, StreamId, Transmit};
pub use header::{HeaderReader, HeaderWriter, Headers};
pub use outbox::OUT_QUEUE;

#[cfg(test)]
mod tests;
