//! See the entry function.
#![no_main]

#[path = "../entries/spdy.rs"]
#[allow(dead_code, reason = "each target has one entry")]
mod entries;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entries::operations(data));
