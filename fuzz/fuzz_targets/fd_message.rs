//! Any packet through both parsers of the descriptor socket: what they take they write again in the same way.
#![no_main]

use holdfast::proto::fd_message::{Reply, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match Request::parse(data) {
        Ok(request) => assert_eq!(request.packet(), data),
        Err(error) => assert!(data.len() != 8 && (data.len() > 8 || error.id == 0)),
    }
    match Reply::parse(data) {
        Some((id, reply @ Reply::Kept(_))) => assert_eq!(reply.packet(id), data),
        // Bytes that are no UTF-8 are replaced, once.
        Some((id, reply @ Reply::Refused(_))) => assert_eq!(Reply::parse(&reply.packet(id)), Some((id, reply))),
        None => {}
    }
});
