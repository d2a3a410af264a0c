# What this monitor offers beyond the compatible contract. The bootstrap capability implements it, so a client may
# call either interface on the same object.
@0xbc1d66572929c7f5;

using Contract = import "conmon.capnp";

interface Holdfast extends(Contract.Conmon) {
}
