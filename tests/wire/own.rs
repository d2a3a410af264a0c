//! What is ours, in the same notation: clients of released versions rely on it as much.

pub(super) const OWN_METHODS: &str = "\
servePortForward @0 0xb31da36144ece41c request :ServePortForwardRequest -> 0x8364c9decbb61871 response :ServePortForwardResponse
listContainers @1 0xb8fbb8b7a7912a54 request :ListContainersRequest -> 0x9b0ccb116d702604 response :ListContainersResponse
listSessions @2 0xa32741541d002c54 request :ListSessionsRequest -> 0x9678287e9eb1a250 response :ListSessionsResponse
forget @3 0x846c24001031e999 request :ForgetRequest -> 0x98efbcaec823da1d response :ForgetResponse
";

pub(super) const OWN_STRUCTS: &str = "\
ServePortForwardRequest 0xb753f7b1bf474f98 0/4
  metadata @0 :List(TextTextMapEntry) [p0]
  netNsPath @1 :Text [p1]
  podId @2 :Text [p2]
  ports @3 :List(UInt16) [p3]
ServePortForwardResponse 0x919fabee25acdf24 0/1
  url @0 :Text [p0]
ListContainersRequest 0xa7db970ccb482b27 2/2
  metadata @0 :List(TextTextMapEntry) [p0]
  id @1 :Text [p1]
  after @2 :UInt64 [b0]
  limit @3 :UInt32 [b64]
ContainerEntry 0xb33f8e4af4d1a9a5 7/1
  number @0 :UInt64 [b0]
  id @1 :Text [p0]
  state @2 :ContainerState [b64]
  terminal @3 :Bool [b80]
  oomKilled @4 :Bool [b81]
  pid @5 :UInt32 [b96]
  exitCode @6 :Int32 [b128]
  createdAt @7 :UInt64 [b192]
  exitedAt @8 :UInt64 [b256]
  loggedBytes @9 :UInt64 [b320]
  lostBytes @10 :UInt64 [b384]
ListContainersResponse 0xe442252b24432998 2/1
  containers @0 :List(ContainerEntry) [p0]
  next @1 :UInt64 [b0]
  dropped @2 :UInt64 [b64]
ListSessionsRequest 0xd51e5f53d1b5d888 2/2
  metadata @0 :List(TextTextMapEntry) [p0]
  id @1 :Text [p1]
  after @2 :UInt64 [b0]
  limit @3 :UInt32 [b64]
SessionEntry 0xa3d06189f15edd5f 7/3
  number @0 :UInt64 [b0]
  kind @1 :SessionKind [b64]
  state @2 :SessionState [b80]
  transport @3 :SessionTransport [b96]
  exited @4 :Bool [b112]
  id @5 :Text [p0]
  podId @6 :Text [p1]
  peer @7 :Text [p2]
  pid @8 :UInt32 [b128]
  exitCode @9 :Int32 [b160]
  createdAt @10 :UInt64 [b192]
  endedAt @11 :UInt64 [b256]
  receivedBytes @12 :UInt64 [b320]
  sentBytes @13 :UInt64 [b384]
ListSessionsResponse 0xc49c7b71a194e68e 2/1
  sessions @0 :List(SessionEntry) [p0]
  next @1 :UInt64 [b0]
  dropped @2 :UInt64 [b64]
ForgetRequest 0x852b584a9b68d780 0/3
  metadata @0 :List(TextTextMapEntry) [p0]
  containers @1 :List(UInt64) [p1]
  sessions @2 :List(UInt64) [p2]
ForgetResponse 0xdc1797098a0af823 1/0
  containers @0 :UInt32 [b0]
  sessions @1 :UInt32 [b32]
";

pub(super) const OWN_ENUMS: &str = "\
ContainerState 0xa575b3a7b2b3c390 creating 0, live 1, exiting 2, exited 3
SessionKind 0xc89a6bb6c6eef0ee exec 0, attach 1, portForward 2, execSync 3
SessionState 0xf9e8df7e17d1b617 waiting 0, active 1, detached 2, ended 3
SessionTransport 0xbebd26a290da9fcc none 0, webSocket 1, spdy 2, tunnel 3, attachSocket 4
";
