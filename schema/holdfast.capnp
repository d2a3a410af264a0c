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

    # --- listContainers -----------------------------------------------------------------------------------------------

    struct ListContainersRequest {
        metadata @0 :List(Contract.Conmon.TextTextMapEntry);
        id @1 :Text;                # only the containers of this id; empty: all
        after @2 :UInt64;           # only those with larger numbers; 0: all
        limit @3 :UInt32;           # at most so many; 0 and more than 256: 256
    }

    enum ContainerState {
        creating @0;                # the runtime is at work: no process yet
        live @1;                    # created or running: the engine itself runs the runtime's `start`
        exiting @2;                 # its process has ended; log, OOM and exit file are not complete yet
        exited @3;                  # complete; kept until it is forgotten, 256 at most, then the oldest goes
    }

    struct ContainerEntry {
        number @0 :UInt64;          # of this daemon, in the order of creation, never used twice; ids may be
        id @1 :Text;
        state @2 :ContainerState;
        terminal @3 :Bool;
        oomKilled @4 :Bool;         # of one that has exited
        pid @5 :UInt32;             # of the init process; 0 while it is created
        exitCode @6 :Int32;         # of one that has exited: as in its exit file; -1: the status was lost
        createdAt @7 :UInt64;       # when its creation was asked for; nanoseconds since 1970, UTC
        exitedAt @8 :UInt64;        # when its process ended; 0: it has not exited
        loggedBytes @9 :UInt64;     # of its output, in all its logs together
        lostBytes @10 :UInt64;      # of its output, that did not get into a log; counted when it is given up
    }

    struct ListContainersResponse {
        containers @0 :List(ContainerEntry);    # by number
        next @1 :UInt64;            # `after` for those that did not fit; 0: these were all
        dropped @2 :UInt64;         # exits that went for newer ones before anybody forgot them, since the daemon started
    }

    # The containers that are there, and those that have exited and are not forgotten yet.
    listContainers @1 (request :ListContainersRequest) -> (response :ListContainersResponse);

    # --- listSessions -------------------------------------------------------------------------------------------------

    struct ListSessionsRequest {
        metadata @0 :List(Contract.Conmon.TextTextMapEntry);
        id @1 :Text;                # only the sessions of the container with this id; empty: all
        after @2 :UInt64;           # as above
        limit @3 :UInt32;
    }

    enum SessionKind {
        exec @0;
        attach @1;
        portForward @2;
        execSync @3;                # a call, and what became of one whose caller is gone
    }

    enum SessionState {
        waiting @0;                 # its URL was given out; no client has come yet
        active @1;
        detached @2;                # its client is gone, its command runs on
        ended @3;                   # its command has ended and nobody was told; kept like an exited container
    }

    enum SessionTransport {
        none @0;
        webSocket @1;
        spdy @2;
        tunnel @3;                  # SPDY in the messages of a WebSocket
        attachSocket @4;
    }

    struct SessionEntry {
        number @0 :UInt64;          # of this daemon, in the order of the calls and connections, never used twice
        kind @1 :SessionKind;
        state @2 :SessionState;
        transport @3 :SessionTransport;
        exited @4 :Bool;            # the command of an exec has ended
        id @5 :Text;                # the container; empty for a port forward
        podId @6 :Text;             # of a port forward, as its caller named it
        peer @7 :Text;              # the client's address and port, where it has one
        pid @8 :UInt32;             # of an exec's process; 0: it has not been started
        exitCode @9 :Int32;         # once it has ended, as execSyncContainer answers it: -1 lost, -2 not started, -3 timed out
        createdAt @10 :UInt64;      # when it was asked for; nanoseconds since 1970, UTC
        endedAt @11 :UInt64;        # when it ended; 0: it has not
        receivedBytes @12 :UInt64;  # from the client, without what the transport adds
        sentBytes @13 :UInt64;      # to the client, likewise
    }

    struct ListSessionsResponse {
        sessions @0 :List(SessionEntry);        # by number
        next @1 :UInt64;
        dropped @2 :UInt64;
    }

    # What clients do or may come and do, and ends of commands that nobody was told. Tokens, command lines and
    # environments are in none of it.
    listSessions @2 (request :ListSessionsRequest) -> (response :ListSessionsResponse);

    # --- forget -------------------------------------------------------------------------------------------------------

    struct ForgetRequest {
        metadata @0 :List(Contract.Conmon.TextTextMapEntry);
        containers @1 :List(UInt64);            # numbers of exited ones
        sessions @2 :List(UInt64);              # numbers of ended ones
    }

    struct ForgetResponse {
        containers @0 :UInt32;      # how many were forgotten
        sessions @1 :UInt32;
    }

    # The caller has collected these ends: they are listed no more. Numbers of others are no error and change nothing.
    forget @3 (request :ForgetRequest) -> (response :ForgetResponse);
}
