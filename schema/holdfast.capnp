# What this monitor offers beyond the compatible contract. The bootstrap capability implements it, so a client may
# call either interface on the same object. What is here is never renumbered, renamed or removed; `tests/wire.rs`
# compares the compiled schema with the positions below.
@0xbc1d66572929c7f5;

using Contract = import "conmon.capnp";

interface Holdfast extends(Contract.Conmon) {

    # --- servePortForward ---------------------------------------------------------------------------------------------

    struct ServePortForwardRequest {
        metadata @0 :List(Contract.Conmon.TextTextMapEntry);
        netNsPath @1 :Text;         # absolute; empty: the host's network
        podId @2 :Text;             # named in the error texts that clients are shown; may be empty
        ports @3 :List(UInt16);     # for clients of the old WebSocket form, which cannot name them; others name their own
    }

    struct ServePortForwardResponse {
        url @0 :Text;
    }

    # As `servePortForwardContainer`, for a caller that knows more.
    servePortForward @0 (request :ServePortForwardRequest) -> (response :ServePortForwardResponse);
}
