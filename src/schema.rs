//! Code generated from `schema/*.capnp`. Only `rpc/`, `client/` and `upgrade/` may name it.

pub mod conmon_capnp {
    include!(concat!(env!("OUT_DIR"), "/conmon_capnp.rs"));
}

pub mod holdfast_capnp {
    include!(concat!(env!("OUT_DIR"), "/holdfast_capnp.rs"));
}
