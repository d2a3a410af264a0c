//! Port forward and what holds for the whole streaming server, against the list of the streaming specification (sections
//! 9.7 and 9.8). The names of tests begin with the numbers of the items.
//!
//! | item | tests |
//! |---|---|
//! | 1 (the address and port of the URL) | `server::p001_…` |
//! | 101, 102, 103, 104, 105, 115 | `pairs` |
//! | 106, 107, 108, 109 | `ends` |
//! | 110, 111, 112 | `many`; who is reset when a connection is held up: the unit tests of `session::port_forward` |
//! | 113, 114, 124 | `places` |
//! | 116, 125, 126, 127, 129, 130, 131, 132 | `server`; 127 with TLS: tests/tls.rs |
//! | 117, 118, 119, 120 | `channels` |
//! | 121, 122 | `tunnel` |
//! | 123 | not here: real clients are run by contrib/interop |
//! | 128 | `dead`; that keep-alive is on: `d65_a_client_that_vanished_without_a_word_is_noticed` in tests/defects |
//!
//! With `HOLDFAST_LONG=1` also what takes minutes: 128, the 30 s of 110, the 100 000 pairs of 111, the gigabyte of 112. Not
//! tested is the minute after which the pair of a client that never answers the pod's end is freed (108).

mod channels;
mod dead;
mod ends;
mod many;
mod pairs;
mod places;
mod pod;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tunnel;
