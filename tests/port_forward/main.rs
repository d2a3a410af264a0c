mod channels;
mod ends;
mod pairs;
mod places;
mod pod;
#[path = "../support/mod.rs"]
mod support;
