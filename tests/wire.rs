//! The control contract, byte for byte: ids, method numbers and field positions of `schema/conmon.capnp`, as compiled,
//! against the published ones. Clients in the field were built from those and never see our schema file.
//!
//! Notation: `name @ordinal :Type [position]`; `bN` is a bit offset in the data section, `pN` a pointer slot; after the id
//! of a struct stand data words/pointers, after that of an enum its values.
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

use std::{collections::BTreeMap, fs::File, io::BufReader};

use own::{OWN_ENUMS, OWN_METHODS, OWN_STRUCTS};

use capnp::{
    message::{Reader, ReaderOptions},
    schema_capnp::{code_generator_request, field, method, node, type_, value},
    serialize::{self, OwnedSegments},
};

#[path = "wire/own.rs"]
mod own;

const CONMON: u64 = 0xb737e899dd6633f1;

/// With the ids of the implicit parameter and result structs.
const METHODS: &str = "\
version @0 0xcc2f70676afee4e7 request :VersionRequest -> 0xe313695ea9477b30 response :VersionResponse
createContainer @1 0xf44732c48f949ab8 request :CreateContainerRequest -> 0xceba3c1a97be15f8 response :CreateContainerResponse
execSyncContainer @2 0x83479da67279e173 request :ExecSyncContainerRequest -> 0xf8e86a5c0baa01bc response :ExecSyncContainerResponse
attachContainer @3 0xaa2f3c8ad1c3af24 request :AttachRequest -> 0xc5e65eec3dcf5b10 response :AttachResponse
reopenLogContainer @4 0xe5ea916eb0c31336 request :ReopenLogRequest -> 0xa0ef8355b64ee985 response :ReopenLogResponse
setWindowSizeContainer @5 0xc76ccd4502bb61e7 request :SetWindowSizeRequest -> 0xe00e522611477055 response :SetWindowSizeResponse
createNamespaces @6 0x8b4c03a0662a38dc request :CreateNamespacesRequest -> 0x8aef91973dc8a4f5 response :CreateNamespacesResponse
startFdSocket @7 0xce733f0914c80b6b request :StartFdSocketRequest -> 0xf4e3e92ae0815f15 response :StartFdSocketResponse
serveExecContainer @8 0x90a3950a51412b8b request :ServeExecContainerRequest -> 0xdebaeed2a782ac80 response :ServeExecContainerResponse
serveAttachContainer @9 0xa3cb406c522dcab1 request :ServeAttachContainerRequest -> 0xedd2e5b018f17bbb response :ServeAttachContainerResponse
servePortForwardContainer @10 0x9d82529754851252 request :ServePortForwardContainerRequest -> 0xae5e0ae5001ebdfe response :ServePortForwardContainerResponse
";

const STRUCTS: &str = "\
VersionRequest 0xad2a33d6b9304413 1/1
  verbose @0 :Bool [b0]
  metadataOld @1 :Void
  metadata @2 :List(TextTextMapEntry) [p0]
VersionResponse 0xf34be5cbac1feed1 1/8
  processId @0 :UInt32 [b0]
  version @1 :Text [p0]
  tag @2 :Text [p1]
  commit @3 :Text [p2]
  buildDate @4 :Text [p3]
  target @5 :Text [p4]
  rustVersion @6 :Text [p5]
  cargoVersion @7 :Text [p6]
  cargoTree @8 :Text [p7]
  metadata @9 :Void
CreateContainerRequest 0xba77e3fa3aa9b6ca 1/12
  id @0 :Text [p0]
  bundlePath @1 :Text [p1]
  terminal @2 :Bool [b0]
  stdin @3 :Bool [b1]
  exitPaths @4 :List(Text) [p2]
  oomExitPaths @5 :List(Text) [p3]
  logDrivers @6 :List(LogDriver) [p4]
  cleanupCmd @7 :List(Text) [p5]
  globalArgs @8 :List(Text) [p6]
  commandArgs @9 :List(Text) [p7]
  metadataOld @10 :Void
  metadata @11 :List(TextTextMapEntry) [p8]
  envVars @12 :List(TextTextMapEntry) [p9]
  cgroupManager @13 :CgroupManager [b16]
  additionalFds @14 :List(UInt64) [p10]
  leakFds @15 :List(UInt64) [p11]
LogDriver 0xae78ee8eb6b3a134 2/1
  type @0 :Type [b0]
  path @1 :Text [p0]
  maxSize @2 :UInt64 [b64]
CreateContainerResponse 0xde3a625e70772b9a 1/0
  containerPid @0 :UInt32 [b0]
ExecSyncContainerRequest 0xf41122f890a371a6 2/4
  id @0 :Text [p0]
  timeoutSec @1 :UInt64 [b0]
  command @2 :List(Text) [p1]
  terminal @3 :Bool [b64]
  metadataOld @4 :Void
  metadata @5 :List(TextTextMapEntry) [p2]
  envVars @6 :List(TextTextMapEntry) [p3]
  cgroupManager @7 :CgroupManager [b80]
ExecSyncContainerResponse 0xd9d61d1d803c85fc 1/2
  exitCode @0 :Int32 [b0]
  stdout @1 :Data [p0]
  stderr @2 :Data [p1]
  timedOut @3 :Bool [b32]
AttachRequest 0xdf703ca0befc3afc 1/4
  id @0 :Text [p0]
  socketPath @1 :Text [p1]
  execSessionId @2 :Text [p2]
  stopAfterStdinEof @3 :Bool [b0]
  metadataOld @4 :Void
  metadata @5 :List(TextTextMapEntry) [p3]
AttachResponse 0xace5517aafc86077 0/0
ReopenLogRequest 0xd0476e0f34d1411a 0/2
  id @0 :Text [p0]
  metadataOld @1 :Void
  metadata @2 :List(TextTextMapEntry) [p1]
ReopenLogResponse 0xa20f49456be85b99 0/0
SetWindowSizeRequest 0xb5418b8ea8ead17b 1/2
  id @0 :Text [p0]
  width @1 :UInt16 [b0]
  height @2 :UInt16 [b16]
  metadataOld @3 :Void
  metadata @4 :List(TextTextMapEntry) [p1]
SetWindowSizeResponse 0xf9b3cd8033aba1f8 0/0
CreateNamespacesRequest 0x8b5b1693940f607e 0/6
  metadataOld @0 :Void
  namespaces @1 :List(Namespace) [p0]
  uidMappings @2 :List(Text) [p1]
  gidMappings @3 :List(Text) [p2]
  basePath @4 :Text [p3]
  podId @5 :Text [p4]
  metadata @6 :List(TextTextMapEntry) [p5]
CreateNamespacesResponse 0x9887a60f577a1ecb 0/1
  namespaces @0 :List(NamespaceResponse) [p0]
NamespaceResponse 0xa93853d6a4e3fa16 1/1
  type @0 :Namespace [b0]
  path @1 :Text [p0]
StartFdSocketRequest 0xba53ab87a688ec29 0/1
  metadata @0 :List(TextTextMapEntry) [p0]
StartFdSocketResponse 0xb62f418e0ae4e003 0/1
  path @0 :Text [p0]
TextTextMapEntry 0xfabbfdde6d4ad392 0/2
  key @0 :Text [p0]
  value @1 :Text [p1]
ServeExecContainerRequest 0xd01c697281e61c21 1/3
  metadata @0 :List(TextTextMapEntry) [p0]
  id @1 :Text [p1]
  command @2 :List(Text) [p2]
  tty @3 :Bool [b0]
  stdin @4 :Bool [b1]
  stdout @5 :Bool [b2]
  stderr @6 :Bool [b3]
  cgroupManager @7 :CgroupManager [b16]
ServeExecContainerResponse 0xa9e93cf268b17735 0/1
  url @0 :Text [p0]
ServeAttachContainerRequest 0xca8c8e0d7826ae86 1/2
  metadata @0 :List(TextTextMapEntry) [p0]
  id @1 :Text [p1]
  stdin @2 :Bool [b0]
  stdout @3 :Bool [b1]
  stderr @4 :Bool [b2]
ServeAttachContainerResponse 0x94a72d9a2ccb9a30 0/1
  url @0 :Text [p0]
ServePortForwardContainerRequest 0xc865d8a1122038c5 0/2
  metadata @0 :List(TextTextMapEntry) [p0]
  netNsPath @1 :Text [p1]
ServePortForwardContainerResponse 0xf7507d1843e734e4 0/1
  url @0 :Text [p0]
";

const ENUMS: &str = "\
Type 0xf026e3d750335bc1 containerRuntimeInterface 0, json 1, journald 2
CgroupManager 0xaa4bbac12765a78a systemd 0, cgroupfs 1
Namespace 0xd61491b560a8f3a3 ipc 0, net 1, pid 2, user 3, uts 4
";

/// The output of the Cap'n Proto compiler, kept by the build script.
struct Schema(Reader<OwnedSegments>);

impl Schema {
    fn compiled() -> Self {
        let mut file = BufReader::new(File::open(env!("HOLDFAST_SCHEMA_BIN")).unwrap());
        let options = ReaderOptions { traversal_limit_in_words: None, ..ReaderOptions::new() };
        Self(serialize::read_message(&mut file, options).unwrap())
    }

    fn nodes(&self) -> Nodes<'_> {
        let request = self.0.get_root::<code_generator_request::Reader<'_>>().unwrap();
        Nodes(request.get_nodes().unwrap().iter().map(|node| (node.get_id(), node)).collect())
    }
}

/// Everything the schema declares, by id.
struct Nodes<'a>(BTreeMap<u64, node::Reader<'a>>);

impl<'a> Nodes<'a> {
    /// The id of what the contract's file calls so.
    fn find(&self, wanted: &str) -> u64 {
        self.find_in("conmon.capnp:", wanted)
    }

    fn find_in(&self, file: &str, wanted: &str) -> u64 {
        let ours = |node: &&node::Reader<'_>| {
            let full = node.get_display_name().unwrap().to_str().unwrap();
            full.strip_prefix(file).is_some_and(|path| path.rsplit('.').next() == Some(wanted))
        };
        let mut found = self.0.values().filter(ours);
        let id = found.next().unwrap_or_else(|| panic!("{wanted} is missing")).get_id();
        assert!(found.next().is_none(), "{wanted} is there twice");
        id
    }

    fn methods(&self, interface: u64) -> Vec<method::Reader<'a>> {
        let node::Interface(of) = self.0[&interface].which().unwrap() else { panic!("no interface") };
        of.get_methods().unwrap().iter().collect()
    }

    /// A line for each method of an interface.
    fn method_lines(&self, interface: u64) -> String {
        let line = |(number, method): (usize, method::Reader<'_>)| {
            let name = method.get_name().unwrap().to_str().unwrap();
            let params = self.implicit(method.get_param_struct_type());
            format!("{name} @{number} {params} -> {}\n", self.implicit(method.get_result_struct_type()))
        };
        self.methods(interface).into_iter().enumerate().map(line).collect()
    }

    /// The lines of the structs of a file that `published` names.
    fn struct_lines(&self, file: &str, published: &str) -> String {
        let mut lines = String::new();
        for name in published.lines().filter(|line| !line.starts_with(' ')).map(|line| line.split(' ').next().unwrap())
        {
            let id = self.find_in(file, name);
            let of = self.structure(id);
            lines += &format!("{name} {id:#018x} {}/{}\n", of.get_data_word_count(), of.get_pointer_count());
            of.get_fields().unwrap().iter().for_each(|field| lines += &format!("  {}\n", self.field(field)));
        }
        lines
    }

    /// The lines of the enums of a file that `published` names.
    fn enum_lines(&self, file: &str, published: &str) -> String {
        let line = |line: &str| {
            let wanted = line.split(' ').next().unwrap();
            let id = self.find_in(file, wanted);
            let node::Enum(of) = self.0[&id].which().unwrap() else { panic!("{wanted} is no enum") };
            let names = of.get_enumerants().unwrap().iter().map(|of| of.get_name().unwrap().to_string().unwrap());
            let values: Vec<_> = names.enumerate().map(|(number, name)| format!("{name} {number}")).collect();
            format!("{wanted} {id:#018x} {}\n", values.join(", "))
        };
        published.lines().map(line).collect()
    }

    fn structure(&self, id: u64) -> node::struct_::Reader<'a> {
        let node::Struct(of) = self.0[&id].which().unwrap() else { panic!("{id:#018x} is no struct") };
        assert_eq!((of.get_discriminant_count(), of.get_is_group()), (0, false), "the contract has no unions");
        of
    }

    /// The type of a field, and the size of one in bits; `None` is a pointer.
    fn type_of(&self, of: type_::Reader<'_>) -> (String, Option<u32>) {
        let named = |id| name(&self.0[&id]);
        match of.which().unwrap() {
            type_::Void(()) => ("Void".to_owned(), Some(0)),
            type_::Bool(()) => ("Bool".to_owned(), Some(1)),
            type_::Int32(()) => ("Int32".to_owned(), Some(32)),
            type_::Uint16(()) => ("UInt16".to_owned(), Some(16)),
            type_::Uint32(()) => ("UInt32".to_owned(), Some(32)),
            type_::Uint64(()) => ("UInt64".to_owned(), Some(64)),
            type_::Enum(of) => (named(of.get_type_id()), Some(16)),
            type_::Text(()) => ("Text".to_owned(), None),
            type_::Data(()) => ("Data".to_owned(), None),
            type_::Struct(of) => (named(of.get_type_id()), None),
            type_::List(of) => (format!("List({})", self.type_of(of.get_element_type().unwrap()).0), None),
            _ => panic!("a type that the contract does not use"),
        }
    }

    /// `name @ordinal :Type [position]`
    fn field(&self, of: field::Reader<'_>) -> String {
        let name = of.get_name().unwrap().to_str().unwrap();
        let field::Slot(slot) = of.which().unwrap() else { panic!("{name} is a group") };
        let field::ordinal::Explicit(ordinal) = of.get_ordinal().which().unwrap() else { panic!("{name}: no ordinal") };
        let (of, size) = self.type_of(slot.get_type().unwrap());
        match size {
            Some(0) => format!("{name} @{ordinal} :{of}"),
            Some(size) => format!("{name} @{ordinal} :{of} [b{}]", slot.get_offset() * size),
            None => format!("{name} @{ordinal} :{of} [p{}]", slot.get_offset()),
        }
    }

    /// `ID name :Type` of an implicit struct: no data, one pointer, in slot 0.
    fn implicit(&self, id: u64) -> String {
        let of = self.structure(id);
        assert_eq!((of.get_data_word_count(), of.get_pointer_count(), of.get_fields().unwrap().len()), (0, 1, 1));
        let field = of.get_fields().unwrap().get(0);
        let field::Slot(slot) = field.which().unwrap() else { panic!("a group") };
        assert_eq!(slot.get_offset(), 0);
        format!(
            "{id:#018x} {} :{}",
            field.get_name().unwrap().to_str().unwrap(),
            self.type_of(slot.get_type().unwrap()).0
        )
    }
}

/// The name of a node without the scopes around it.
fn name(node: &node::Reader<'_>) -> String {
    let full = node.get_display_name().unwrap().to_string().unwrap();
    full[node.get_display_name_prefix_length() as usize..].to_owned()
}

#[test]
fn the_file_and_the_interface_have_the_published_ids() {
    let schema = Schema::compiled();
    let nodes = schema.nodes();
    assert_eq!(nodes.find("Conmon"), CONMON);
    assert_eq!(nodes.0[&CONMON].get_scope_id(), 0xffaaf7385bc4adad);
}

#[test]
fn methods_have_the_published_numbers_and_one_request_and_response_each() {
    assert_eq!(Schema::compiled().nodes().method_lines(CONMON), METHODS);
}

#[test]
fn structs_have_the_published_ids_sizes_and_field_positions() {
    assert_eq!(Schema::compiled().nodes().struct_lines("conmon.capnp:", STRUCTS), STRUCTS);
}

#[test]
fn enums_have_the_published_ids_and_values() {
    let schema = Schema::compiled();
    let nodes = schema.nodes();
    assert_eq!(nodes.enum_lines("conmon.capnp:", ENUMS), ENUMS);
}

#[test]
fn the_contract_has_nothing_that_is_not_published() {
    let schema = Schema::compiled();
    let nodes = schema.nodes();
    let published = |text: &str| text.lines().filter(|line| !line.starts_with(' ')).count();
    let inside = |node: &&node::Reader<'_>| {
        let scope = node.get_scope_id();
        scope == CONMON || nodes.0.get(&scope).is_some_and(|outer| outer.get_scope_id() == CONMON)
    };
    assert_eq!(nodes.0.values().filter(inside).count(), published(STRUCTS) + published(ENUMS));
}

#[test]
fn our_own_interface_extends_the_contract_and_keeps_its_positions() {
    let schema = Schema::compiled();
    let nodes = schema.nodes();
    let holdfast = nodes.0.values().find(|node| name(node) == "Holdfast").unwrap();
    let node::Interface(of) = holdfast.which().unwrap() else { panic!("no interface") };
    let extended: Vec<_> = of.get_superclasses().unwrap().iter().map(|of| of.get_id()).collect();
    assert_eq!(extended, [CONMON]);
    assert_eq!(nodes.method_lines(holdfast.get_id()), OWN_METHODS);
    assert_eq!(nodes.struct_lines("holdfast.capnp:", OWN_STRUCTS), OWN_STRUCTS);
    assert_eq!(nodes.enum_lines("holdfast.capnp:", OWN_ENUMS), OWN_ENUMS);
}

/// A field that is not set is zero or null on the wire. A default would make it mean something else to us alone.
#[test]
fn no_field_has_a_default_of_its_own() {
    let schema = Schema::compiled();
    for node in schema.nodes().0.values() {
        let node::Struct(of) = node.which().unwrap() else { continue };
        for field in of.get_fields().unwrap() {
            let field::Slot(slot) = field.which().unwrap() else { continue };
            let null = match slot.get_default_value().unwrap().which().unwrap() {
                value::Struct(pointer) | value::List(pointer) | value::AnyPointer(pointer) => pointer.is_null(),
                _ => true,
            };
            let field = field.get_name().unwrap().to_str().unwrap();
            assert!(null && !slot.get_had_explicit_default(), "{field} of {} has a default", name(node));
        }
    }
}
