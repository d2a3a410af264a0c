//! Every fuzz target is this program under its own name, which says which body it runs.
#![no_main]

#[path = "entries/mod.rs"]
mod entries;

const NAME: &str = env!("CARGO_BIN_NAME");

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (_, body) = entries::TARGETS.iter().find(|(name, _)| *name == NAME).expect("every program is a target");
    body(data);
});
