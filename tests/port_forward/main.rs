mod channels;
mod ends;
mod many;
mod pairs;
mod places;
mod pod;
#[path = "../support/mod.rs"]
mod support;
mod tunnel;
