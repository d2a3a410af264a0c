//! Every field of every call, found by walking the schema, with values that make no sense, one at a time.
//!
//! The runtime of these tests makes no container: a create that the daemon takes for good is refused in its words.

use capnp::{
    any_pointer, dynamic_list, dynamic_struct,
    dynamic_value::{self, Enum},
    introspect::TypeVariant,
    schema::{Field, StructSchema},
    text,
};
use holdfast::client::{conmon_capnp::conmon, holdfast_capnp::holdfast as own};

use crate::support::{
    BundleSpec, FakeRuntime, Sandbox, beside_a_neighbour,
    raw_rpc::{OWN, RawRpc, Reply, bootstrap, call},
};

/// By their numbers.
const CALLS: [(&str, u16); 12] = [
    ("version", 0),
    ("createContainer", 1),
    ("execSyncContainer", 2),
    ("reopenLogContainer", 4),
    ("setWindowSizeContainer", 5),
    ("serveExecContainer", 8),
    ("serveAttachContainer", 9),
    ("servePortForwardContainer", 10),
    ("servePortForward", OWN),
    ("listContainers", OWN + 1),
    ("listSessions", OWN + 2),
    ("forget", OWN + 3),
];
/// What the runtime says.
const NO: &str = "the runtime says no";

/// The request in the parameters of a call.
fn request<'a>(number: u16, params: any_pointer::Builder<'a>) -> dynamic_struct::Builder<'a> {
    const LIST_CONTAINERS: u16 = OWN + 1;
    const LIST_SESSIONS: u16 = OWN + 2;
    const FORGET: u16 = OWN + 3;
    macro_rules! of {
        (own $params:ident) => {
            dynamic_value::Builder::from(params.init_as::<own::$params::Builder<'a>>().init_request()).downcast()
        };
        ($params:ident) => {
            dynamic_value::Builder::from(params.init_as::<conmon::$params::Builder<'a>>().init_request()).downcast()
        };
    }
    match number {
        0 => of!(version_params),
        1 => of!(create_container_params),
        2 => of!(exec_sync_container_params),
        4 => of!(reopen_log_container_params),
        5 => of!(set_window_size_container_params),
        8 => of!(serve_exec_container_params),
        9 => of!(serve_attach_container_params),
        10 => of!(serve_port_forward_container_params),
        OWN => of!(own serve_port_forward_params),
        LIST_CONTAINERS => of!(own list_containers_params),
        LIST_SESSIONS => of!(own list_sessions_params),
        FORGET => of!(own forget_params),
        _ => panic!("no call of these tests"),
    }
}

/// A request that is good but for what is then done to it.
fn good(number: u16, bundle: &str, mut request: dynamic_struct::Builder<'_>) {
    const CREATE: u16 = 1;
    let fields: Vec<Field> = fields(request.get_schema());
    for field in fields {
        match name(field) {
            "id" => request.set(field, if number == CREATE { "victim" } else { "neighbour" }.into()).unwrap(),
            "bundlePath" => request.set(field, bundle.into()).unwrap(),
            "netNsPath" => request.set(field, "/proc/self/ns/net".into()).unwrap(),
            "stdout" => request.set(field, true.into()).unwrap(),
            "command" => list(request.reborrow(), field, 1).set(0, "true".into()).unwrap(),
            _ => {}
        }
    }
}

fn fields(schema: StructSchema) -> Vec<Field> {
    schema.get_fields().unwrap().iter().collect()
}

fn name(field: Field) -> &'static str {
    field.get_proto().get_name().unwrap().to_str().unwrap()
}

fn list<'a>(request: dynamic_struct::Builder<'a>, field: Field, length: u32) -> dynamic_list::Builder<'a> {
    request.initn(field, length).unwrap().downcast()
}

/// A field of a request, or of the structs in a list of it.
#[derive(Clone, Copy)]
struct Place {
    field: Field,
    within: Option<Field>,
}

impl Place {
    /// All places of a request that hold a value of a kind, be it in a list.
    fn all(number: u16, kind: fn(TypeVariant) -> bool) -> Vec<Self> {
        let mut places = Vec::new();
        call(0, number, |params| {
            for field in fields(request(number, params).get_schema()) {
                match field.get_type().which() {
                    TypeVariant::List(element) => match element.which() {
                        TypeVariant::Struct(inner) => {
                            let inner = fields(inner.into()).into_iter().filter(|field| kind(field.get_type().which()));
                            places.extend(inner.map(|inner| Self { field: inner, within: Some(field) }));
                        }
                        other if kind(other) => places.push(Self { field, within: None }),
                        _ => {}
                    },
                    other if kind(other) => places.push(Self { field, within: None }),
                    _ => {}
                }
            }
        });
        places
    }

    fn name(self) -> String {
        match self.within {
            Some(outer) => format!("{}.{}", name(outer), name(self.field)),
            None => name(self.field).to_owned(),
        }
    }

    /// Puts a value there. What else is in the struct or list is good.
    fn set(self, request: dynamic_struct::Builder<'_>, value: dynamic_value::Reader<'_>) {
        let mut into = match self.within {
            None => request,
            Some(outer) => {
                let mut inner: dynamic_struct::Builder<'_> = list(request, outer, 1).get(0).unwrap().downcast();
                good_element(inner.reborrow());
                inner
            }
        };
        match self.field.get_type().which() {
            TypeVariant::List(_) => list(into, self.field, 1).set(0, value).unwrap(),
            _ => into.set(self.field, value).unwrap(),
        }
    }
}

fn good_element(mut element: dynamic_struct::Builder<'_>) {
    for field in fields(element.get_schema()) {
        match name(field) {
            "key" => element.set(field, "KEY".into()).unwrap(),
            // Nobody makes this log: the runtime of these tests says no after it was opened.
            "path" => element.set(field, "/dev/null".into()).unwrap(),
            _ => {}
        }
    }
}

/// One connection, which must stay good through all the calls.
struct Caller {
    raw: RawRpc,
    question: u32,
    bundle: String,
}

impl Caller {
    async fn of(sandbox: &Sandbox) -> Self {
        FakeRuntime::of(sandbox).plan("create", &format!("echo {NO} >&2; exit 1"));
        let mut raw = RawRpc::connect(&sandbox.runtime_dir()).await;
        raw.send(&bootstrap(0)).await;
        let bundle = sandbox.bundle("victim", &BundleSpec::idle()).to_str().unwrap().to_owned();
        Self { raw, question: 0, bundle }
    }

    /// Makes a call that is good but for what `spoil` does.
    async fn call(&mut self, number: u16, spoil: impl FnOnce(dynamic_struct::Builder<'_>)) -> Reply {
        self.question += 1;
        let bytes = call(self.question, number, |params| {
            let mut request = request(number, params);
            good(number, &self.bundle, request.reborrow());
            spoil(request);
        });
        self.raw.send(&bytes).await;
        self.raw.reply(self.question).await
    }
}

/// The daemon has taken the request for good: what came then is a result, or says what the container or runtime is not up to.
fn is_taken(reply: &Reply) -> bool {
    match reply {
        Reply::Results => true,
        Reply::Refused(said) => [NO, "Argument list too long", "has no terminal"].iter().any(|end| said.contains(end)),
        _ => false,
    }
}

fn is_invalid(reply: &Reply, place: &str) -> bool {
    let field = place.strip_prefix("envVars.").map_or(place, |_| "envVars");
    matches!(reply, Reply::Refused(said) if said.starts_with(&format!("invalid-request: {field}: ")))
}

/// Runs a test for each call beside a neighbour, on a connection that must stay good through it.
fn for_every_call(test: impl AsyncFn(&mut Caller, &str, u16)) {
    beside_a_neighbour(async |sandbox, neighbour| {
        // A list of megabytes is a string for each entry, several times on its way.
        neighbour.growth_kib = 24 << 10;
        for (call, number) in CALLS {
            neighbour
                .undisturbed(call, async || {
                    let mut caller = Caller::of(sandbox).await;
                    Box::pin(test(&mut caller, call, number)).await;
                    assert_eq!(caller.call(0, |_| {}).await, Reply::Results, "the connection is good after {call}");
                })
                .await;
        }
    });
}

#[test]
fn a_good_request_is_taken_by_every_call() {
    for_every_call(async |caller, call, number| {
        let reply = caller.call(number, |_| {}).await;
        assert!(is_taken(&reply), "{call}: {reply:?}");
    });
}

#[test]
fn no_text_of_any_call_may_be_noise_and_only_words_may_be_empty_or_long() {
    const WORDS: [&str; 5] = ["globalArgs", "commandArgs", "cleanupCmd", "command", "envVars.value"];
    let long = format!("/{}", "x".repeat(1 << 20));
    let values = [&b"bad\xff"[..], b"a\0b", b"", long.as_bytes()];
    for_every_call(async |caller, call, number| {
        let places = Place::all(number, |kind| matches!(kind, TypeVariant::Text));
        assert!(!places.is_empty(), "every call has metadata");
        for place in places {
            let mut replies = Vec::new();
            for value in values {
                let value = dynamic_value::Reader::Text(text::Reader(value));
                replies.push(caller.call(number, |request| place.set(request, value)).await);
            }
            let [noise, nul, empty, long] = &replies[..] else { panic!("one for each value") };
            let name = place.name();
            if name.starts_with("metadata.") {
                // It never fails a call (control-api 7).
                assert!(replies.iter().all(is_taken), "{call} {name}: {replies:?}");
                continue;
            }
            assert!(is_invalid(noise, &name) && is_invalid(nul, &name), "{call} {name}: {noise:?}, {nul:?}");
            let word = WORDS.contains(&&*name);
            // Without a namespace it is the host's network; a pod needs no name, and a list is of all containers.
            let is_list = number == OWN + 1 || number == OWN + 2;
            let may_be_empty = name == "netNsPath"
                || name == "podId"
                || (is_list && name == "id")
                || (word && name != "command" && name != "cleanupCmd");
            assert!(if may_be_empty { is_taken(empty) } else { is_invalid(empty, &name) }, "{call} {name}: {empty:?}");
            let may_be_long = word || name == "envVars.key";
            assert!(if may_be_long { is_taken(long) } else { is_invalid(long, &name) }, "{call} {name}: {long:?}");
        }
    });
}

#[test]
fn no_enum_of_any_call_may_be_out_of_range() {
    assert_eq!(Place::all(1, |kind| matches!(kind, TypeVariant::Enum(_))).len(), 2, "of createContainer");
    for_every_call(async |caller, call, number| {
        for place in Place::all(number, |kind| matches!(kind, TypeVariant::Enum(_))) {
            let TypeVariant::Enum(schema) = place.field.get_type().which() else { panic!("asked for") };
            for value in [3, 77, u16::MAX] {
                let bad = dynamic_value::Reader::Enum(Enum::new(value, schema.into()));
                let reply = caller.call(number, |request| place.set(request, bad)).await;
                let known = |said: &str| said.starts_with("invalid-request: ") && said.contains(&value.to_string());
                assert!(matches!(&reply, Reply::Refused(said) if known(said)), "{call} {}: {reply:?}", place.name());
            }
        }
    });
}

#[test]
fn a_list_of_100_000_entries_is_taken_or_refused_in_every_call() {
    // What would be opened, written or claimed for each entry. What the runtime is given has the kernel's limit.
    const LIMITED: [&str; 6] = ["exitPaths", "oomExitPaths", "logDrivers", "additionalFds", "leakFds", "ports"];
    for_every_call(async |caller, call, number| {
        let lists = call_fields(number).into_iter().filter(|f| matches!(f.get_type().which(), TypeVariant::List(_)));
        for field in lists {
            let reply = caller.call(number, |request| fill(list(request, field, 100_000))).await;
            let limited = LIMITED.contains(&name(field));
            assert!(
                if limited { is_invalid(&reply, name(field)) } else { is_taken(&reply) },
                "{call} {}: {reply:?}",
                name(field)
            );
        }
    });
}

fn call_fields(number: u16) -> Vec<Field> {
    let mut found = Vec::new();
    call(0, number, |params| found = fields(request(number, params).get_schema()));
    found
}

/// Entries that are good one by one.
fn fill(mut list: dynamic_list::Builder<'_>) {
    for index in 0..list.len() {
        match list.element_type().which() {
            TypeVariant::Text => list.set(index, "/x".into()).unwrap(),
            TypeVariant::UInt64 => list.set(index, u64::from(index).into()).unwrap(),
            TypeVariant::UInt16 => list.set(index, 80_u16.into()).unwrap(),
            TypeVariant::Struct(_) => good_element(list.reborrow().get(index).unwrap().downcast()),
            _ => panic!("no such list in the schema"),
        }
    }
}
