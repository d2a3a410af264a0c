//! Sans-IO wire protocols: bytes in, events and bytes out.
//!
//! # The contract
//!
//! A core here is plain data with methods. It has no descriptor, no clock and no task: whoever owns the socket reads into
//! a buffer, hands the buffer in, acts on the events, and writes what the core returns. So every rule of a wire can be
//! tested without a socket, at any cut of the bytes, and in virtual time.
//!
//! * **Input** is a buffer the caller keeps. A core takes from its front what it understands and leaves the rest; "not
//!   enough yet" is `Ok(None)`, never an error. How the bytes were cut into reads changes no event, only into how many
//!   pieces a payload falls (`testing::split_invariant` holds every decoder to it).
//! * **Memory** of a core is bounded by constants in its file, whatever the peer sends: payload passes through in pieces
//!   and is not copied.
//! * **Errors** of the peer are values that know their wire code (`close_code`, a status, a refusal). They end the
//!   connection; what the peer may get wrong without harm is ignored here and never reported. Input never panics.
//! * **Output** is a small head plus the caller's own bytes, written together with `writev`.
//!
//! # Reading order
//!
//! [`upgrade_head`] turns an HTTP request into a session kind, its token and an upgrade; [`remotecommand`] names the
//! protocol versions it chose from. Then, on a WebSocket, [`ws_frame`] cuts frames, [`channel`] makes sense of their
//! payload, and [`status`] writes the last message. The other transport is [`spdy`]: there, [`stream_set`] knows the streams
//! of an exec, and [`port_forward`] those of forwarded connections, which [`port_channels`] are on a WebSocket.
//! [`attach_packet`] and [`fd_message`] stand alone: the other sockets of the contract. [`traceparent`] belongs to the
//! control interface.

pub mod attach_packet;
mod base64;
pub mod channel;
pub mod fd_message;
pub mod port_channels;
pub mod port_forward;
pub mod remotecommand;
pub mod resize;
pub mod spdy;
pub mod status;
pub mod stream_set;
pub mod traceparent;
pub mod upgrade_head;
pub mod ws_frame;

#[cfg(test)]
pub(crate) mod testing;

/// Where the virtual time of the tests begins.
#[cfg(test)]
fn epoch() -> std::time::Instant {
    std::time::Instant::now()
}
