# The control contract a CRI runtime speaks with its pod monitor.
#
# Wire compatible with the 1.x contract: the file id and the names below yield the interface id, the ordinals yield
# the method numbers and field positions. Nothing here may be renumbered, renamed or removed; `tests/wire.rs` compares
# the compiled schema with the published positions. Additions of our own live in `holdfast.capnp`.
@0xffaaf7385bc4adad;

interface Conmon {
    # Ids of containers are chosen by the caller. Every method takes one `request` and returns one `response`.

    # --- version ------------------------------------------------------------------------------------------------------

    struct VersionRequest {
        verbose @0 :Bool;           # also return `cargoTree`
        metadataOld @1 :Void;       # ordinal of a removed first form
        metadata @2 :Metadata;
    }

    struct VersionResponse {
        processId @0 :UInt32;       # of the monitor, as the caller sees it
        version @1 :Text;           # strict SemVer, no leading "v"
        tag @2 :Text;               # may be empty
        commit @3 :Text;
        buildDate @4 :Text;
        target @5 :Text;
        rustVersion @6 :Text;
        cargoVersion @7 :Text;
        cargoTree @8 :Text;         # empty unless `verbose`
        metadata @9 :Void;          # placeholder
    }

    version @0 (request :VersionRequest) -> (response :VersionResponse);

    # --- createContainer ----------------------------------------------------------------------------------------------

    struct CreateContainerRequest {
        id @0 :Text;
        bundlePath @1 :Text;
        terminal @2 :Bool;
        stdin @3 :Bool;
        exitPaths @4 :List(Text);       # each receives the exit code
        oomExitPaths @5 :List(Text);    # each is made, empty, when the container was OOM-killed
        logDrivers @6 :List(LogDriver);
        cleanupCmd @7 :List(Text);      # argv, run after the exit files are there
        globalArgs @8 :List(Text);      # for the runtime, before "create"
        commandArgs @9 :List(Text);     # for the runtime, after "create"
        metadataOld @10 :Void;
        metadata @11 :Metadata;
        envVars @12 :TextTextMap;       # added to the runtime's environment
        cgroupManager @13 :CgroupManager;
        additionalFds @14 :List(UInt64);    # fd-socket slots that become fd 3, 4, ... of the runtime
        leakFds @15 :List(UInt64);          # fd-socket slots held open until the container has exited
    }

    struct LogDriver {
        enum Type {
            containerRuntimeInterface @0;
            json @1;
            journald @2;
        }

        type @0 :Type;
        path @1 :Text;
        maxSize @2 :UInt64;     # bytes, 0 = no limit
    }

    struct CreateContainerResponse {
        containerPid @0 :UInt32;
    }

    createContainer @1 (request :CreateContainerRequest) -> (response :CreateContainerResponse);

    # --- execSyncContainer --------------------------------------------------------------------------------------------

    struct ExecSyncContainerRequest {
        id @0 :Text;
        timeoutSec @1 :UInt64;      # 0 = no limit
        command @2 :List(Text);
        terminal @3 :Bool;
        metadataOld @4 :Void;
        metadata @5 :Metadata;
        envVars @6 :TextTextMap;    # for the runtime's environment, not the command's
        cgroupManager @7 :CgroupManager;
    }

    struct ExecSyncContainerResponse {
        exitCode @0 :Int32;         # 0 to 255, -1 status lost, -2 could not start, -3 timed out
        stdout @1 :Data;
        stderr @2 :Data;
        timedOut @3 :Bool;
    }

    execSyncContainer @2 (request :ExecSyncContainerRequest) -> (response :ExecSyncContainerResponse);

    # --- attachContainer ----------------------------------------------------------------------------------------------

    struct AttachRequest {
        id @0 :Text;
        socketPath @1 :Text;
        execSessionId @2 :Text;         # logged only
        stopAfterStdinEof @3 :Bool;
        metadataOld @4 :Void;
        metadata @5 :Metadata;
    }

    struct AttachResponse {
    }

    attachContainer @3 (request :AttachRequest) -> (response :AttachResponse);

    # --- reopenLogContainer -------------------------------------------------------------------------------------------

    struct ReopenLogRequest {
        id @0 :Text;
        metadataOld @1 :Void;
        metadata @2 :Metadata;
    }

    struct ReopenLogResponse {
    }

    reopenLogContainer @4 (request :ReopenLogRequest) -> (response :ReopenLogResponse);

    # --- setWindowSizeContainer ---------------------------------------------------------------------------------------

    struct SetWindowSizeRequest {
        id @0 :Text;
        width @1 :UInt16;       # columns
        height @2 :UInt16;      # rows
        metadataOld @3 :Void;
        metadata @4 :Metadata;
    }

    struct SetWindowSizeResponse {
    }

    setWindowSizeContainer @5 (request :SetWindowSizeRequest) -> (response :SetWindowSizeResponse);

    # --- createNamespaces ---------------------------------------------------------------------------------------------

    enum Namespace {
        ipc @0;
        net @1;
        pid @2;
        user @3;
        uts @4;
    }

    struct CreateNamespacesRequest {
        metadataOld @0 :Void;
        namespaces @1 :List(Namespace);
        uidMappings @2 :List(Text);     # "CONTAINER_ID HOST_ID SIZE"
        gidMappings @3 :List(Text);
        basePath @4 :Text;
        podId @5 :Text;
        metadata @6 :Metadata;
    }

    struct NamespaceResponse {
        type @0 :Namespace;
        path @1 :Text;
    }

    struct CreateNamespacesResponse {
        namespaces @0 :List(NamespaceResponse);
    }

    createNamespaces @6 (request :CreateNamespacesRequest) -> (response :CreateNamespacesResponse);

    # --- startFdSocket ------------------------------------------------------------------------------------------------

    struct StartFdSocketRequest {
        metadata @0 :Metadata;
    }

    struct StartFdSocketResponse {
        path @0 :Text;
    }

    startFdSocket @7 (request :StartFdSocketRequest) -> (response :StartFdSocketResponse);

    # --- streaming ----------------------------------------------------------------------------------------------------
    # Each answer is the URL of a session; what it describes starts when a client connects there.

    struct ServeExecContainerRequest {
        metadata @0 :Metadata;
        id @1 :Text;
        command @2 :List(Text);
        tty @3 :Bool;
        stdin @4 :Bool;
        stdout @5 :Bool;
        stderr @6 :Bool;            # ignored with `tty`
        cgroupManager @7 :CgroupManager;
    }

    struct ServeExecContainerResponse {
        url @0 :Text;
    }

    serveExecContainer @8 (request :ServeExecContainerRequest) -> (response :ServeExecContainerResponse);

    struct ServeAttachContainerRequest {
        metadata @0 :Metadata;
        id @1 :Text;
        stdin @2 :Bool;
        stdout @3 :Bool;
        stderr @4 :Bool;            # ignored when the container has a terminal
    }

    struct ServeAttachContainerResponse {
        url @0 :Text;
    }

    serveAttachContainer @9 (request :ServeAttachContainerRequest) -> (response :ServeAttachContainerResponse);

    struct ServePortForwardContainerRequest {
        metadata @0 :Metadata;
        netNsPath @1 :Text;
    }

    struct ServePortForwardContainerResponse {
        url @0 :Text;
    }

    servePortForwardContainer @10 (request :ServePortForwardContainerRequest)
        -> (response :ServePortForwardContainerResponse);

    # --- shared -------------------------------------------------------------------------------------------------------

    enum CgroupManager {
        systemd @0;
        cgroupfs @1;
    }

    struct TextTextMapEntry {
        key @0 :Text;
        value @1 :Text;
    }

    using TextTextMap = List(TextTextMapEntry);
    using Metadata = TextTextMap;   # trace context of the caller; unknown keys are ignored
}
