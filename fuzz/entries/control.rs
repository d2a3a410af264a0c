//! What a client of the control socket sends.

use capnp::message::Builder;
use capnp::serialize::write_message_to_words;
use capnp_rpc::rpc_capnp::{call, cap_descriptor, message, message_target, payload, promised_answer, resolve, return_};
use holdfast::client::conmon_capnp::conmon;
use holdfast::client::holdfast_capnp::holdfast as ours;
use holdfast::fuzzing;

/// Of the last call, which tells that everything before it has been looked at.
const LAST: u32 = 0x7fff_0001;
/// What stands before the only segment of a message, in bytes.
const TABLE: usize = 8;

/// Any bytes as one message that is the request of any method: what is decoded keeps its limits.
pub(crate) fn request(data: &[u8]) {
    fuzzing::request(data);
}

/// Any bytes as all that a client sends, in any cuts: the connection ends and leaves nothing behind. The first byte is the
/// size of the cuts.
pub(crate) fn bytes(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    let parts: Vec<&[u8]> = data.chunks(usize::from(cut) * 64 + 1).collect();
    fuzzing::control_client(&parts, |_| true);
}

/// Any messages of the RPC protocol: the connection ends, or every call on it has its answer.
pub(crate) fn calls(data: &[u8]) {
    let mut input = Input(data);
    let (mut messages, mut asked): (Vec<Vec<u8>>, Vec<u32>) = (vec![bootstrap(0)], Vec::new());
    while !input.0.is_empty() && messages.len() < 200 {
        let next = match input.byte() % 16 {
            0 => bootstrap(input.number()),
            1..=7 => {
                let question = input.number();
                asked.push(question);
                message(|root| fill_call(&mut input, question, root.init_call()))
            }
            8 | 9 => message(|root| {
                let mut finish = root.init_finish();
                finish.set_question_id(input.number());
                finish.set_release_result_caps(input.byte() & 1 != 0);
            }),
            10 => message(|root| {
                let mut release = root.init_release();
                release.set_id(input.number());
                release.set_reference_count(input.number());
            }),
            11 => message(|root| fill_resolve(&mut input, root.init_resolve())),
            12 => message(|root| {
                let mut disembargo = root.init_disembargo();
                fill_target(&mut input, disembargo.reborrow().init_target());
                let mut context = disembargo.init_context();
                match input.byte() % 4 {
                    0 => context.set_sender_loopback(input.number()),
                    1 => context.set_receiver_loopback(input.number()),
                    2 => context.set_accept(()),
                    _ => context.set_provide(input.number()),
                }
            }),
            13 => message(|root| fill_return(&mut input, root.init_return())),
            14 => message(|root| match input.byte() % 6 {
                0 => fill_resolve(&mut input, root.init_unimplemented().init_resolve()),
                1 => root.init_unimplemented().init_bootstrap().set_question_id(input.number()),
                2 => fill_target(&mut input, root.init_provide().init_target()),
                3 => root.init_accept().set_question_id(input.number()),
                4 => fill_target(&mut input, root.init_join().init_target()),
                _ => root.init_abort().set_reason(input.text()),
            }),
            // Broken after it was made, but not in its length: nobody could tell then where the next one begins.
            _ => {
                let mut broken = messages.last().cloned().unwrap_or_default();
                let at = TABLE + usize::from(input.byte()) % (broken.len() - TABLE).max(1);
                broken[at] ^= input.byte();
                broken
            }
        };
        messages.push(next);
    }
    // On a question of its own, since the first may be finished by now.
    messages.push(bootstrap(LAST - 1));
    messages.push(message(|root| {
        let mut call = root.init_call();
        call.set_question_id(LAST);
        call.set_interface_id(fuzzing::CONMON);
        call.reborrow().init_target().init_promised_answer().set_question_id(LAST - 1);
    }));
    let parts: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    fuzzing::control_client(&parts, |replies| answers(replies).contains(&LAST));
}

/// The questions that are answered in a stream of messages.
fn answers(mut replies: &[u8]) -> Vec<u32> {
    let mut answers = Vec::new();
    while let Ok(reader) = capnp::serialize::read_message_from_flat_slice(&mut replies, Default::default()) {
        let root: message::Reader<'_> = reader.get_root().expect("what the server sends can be read");
        if let Ok(message::Return(Ok(ret))) = root.which() {
            answers.push(ret.get_answer_id());
        }
    }
    answers
}

/// What is left of the input.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// 0 at the end.
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// Mostly one of few, so that messages name the same things.
    fn number(&mut self) -> u32 {
        match self.byte() {
            byte @ 0..=250 => u32::from(byte) % 8,
            251 => u32::MAX,
            byte => u32::from_le_bytes([byte, self.byte(), self.byte(), self.byte()]),
        }
    }

    fn bytes(&mut self) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at((usize::from(self.byte()) % 32).min(self.0.len().saturating_sub(1)));
        self.0 = rest;
        bytes
    }

    /// Words that come further than any bytes do, or any bytes.
    fn text(&mut self) -> &'a str {
        const WORDS: [&str; 12] =
            ["", "c", "/", "/x/y", "/x/../y", "a=b", "0 1000 1", "traceparent", "..", "-c", "/bin/sh", "pod"];
        match usize::from(self.byte()) {
            word @ 0..192 => WORDS[word % WORDS.len()],
            _ => str::from_utf8(self.bytes()).unwrap_or("\0"),
        }
    }

    fn count(&mut self) -> u32 {
        u32::from(self.byte() % 4)
    }
}

fn message(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut builder = Builder::new_default();
    fill(builder.init_root());
    write_message_to_words(&builder)
}

fn bootstrap(question: u32) -> Vec<u8> {
    message(|root| root.init_bootstrap().set_question_id(question))
}

fn fill_call(input: &mut Input<'_>, question: u32, mut call: call::Builder<'_>) {
    call.set_question_id(question);
    let method = u16::from(input.byte() % 13);
    let (interface, method) = match method {
        11 => (fuzzing::HOLDFAST, 0),
        12 => (u64::from(input.byte()), 3),
        method => (fuzzing::CONMON, method),
    };
    call.set_interface_id(interface);
    call.set_method_id(method);
    match input.byte() {
        // As the contract's own client does it.
        0..=200 => call.reborrow().init_target().init_promised_answer().set_question_id(0),
        _ => fill_target(input, call.reborrow().init_target()),
    }
    match input.byte() {
        0..=230 => {}
        231..=245 => call.reborrow().get_send_results_to().set_yourself(()),
        _ => _ = call.reborrow().get_send_results_to().init_third_party(),
    }
    fill_payload(input, (interface, method), call.init_params());
}

fn fill_target(input: &mut Input<'_>, mut target: message_target::Builder<'_>) {
    match input.byte() % 3 {
        0 => target.set_imported_cap(input.number()),
        _ => fill_answer(input, target.init_promised_answer()),
    }
}

fn fill_answer(input: &mut Input<'_>, mut answer: promised_answer::Builder<'_>) {
    answer.set_question_id(input.number());
    let count = input.count();
    let mut transform = answer.init_transform(count);
    for index in 0..count {
        match input.byte() {
            0..=80 => transform.reborrow().get(index).set_noop(()),
            field => transform.reborrow().get(index).set_get_pointer_field(u16::from(field - 81)),
        }
    }
}

fn fill_descriptor(input: &mut Input<'_>, mut descriptor: cap_descriptor::Builder<'_>) {
    match input.byte() % 6 {
        0 => descriptor.set_none(()),
        1 => descriptor.set_sender_hosted(input.number()),
        2 => descriptor.set_sender_promise(input.number()),
        3 => descriptor.set_receiver_hosted(input.number()),
        4 => fill_answer(input, descriptor.init_receiver_answer()),
        _ => descriptor.init_third_party_hosted().set_vine_id(input.number()),
    }
}

fn fill_resolve(input: &mut Input<'_>, mut resolve: resolve::Builder<'_>) {
    resolve.set_promise_id(input.number());
    match input.byte() % 2 {
        0 => fill_descriptor(input, resolve.init_cap()),
        _ => resolve.init_exception().set_reason(input.text()),
    }
}

fn fill_return(input: &mut Input<'_>, mut ret: return_::Builder<'_>) {
    ret.set_answer_id(input.number());
    match input.byte() % 6 {
        0 => fill_payload(input, (0, 0), ret.init_results()),
        1 => ret.init_exception().set_reason(input.text()),
        2 => ret.set_canceled(()),
        3 => ret.set_results_sent_elsewhere(()),
        4 => ret.set_take_from_other_question(input.number()),
        _ => _ = ret.init_accept_from_third_party(),
    }
}

fn fill_payload(input: &mut Input<'_>, method: (u64, u16), mut payload: payload::Builder<'_>) {
    if input.byte() > 220 {
        let count = input.count();
        let mut table = payload.reborrow().init_cap_table(count);
        for index in 0..count {
            fill_descriptor(input, table.reborrow().get(index));
        }
    }
    let params = payload.get_content();
    match method {
        (fuzzing::HOLDFAST, _) => {
            let mut request = params.init_as::<ours::serve_port_forward_params::Builder<'_>>().init_request();
            request.set_net_ns_path(input.text());
            request.set_pod_id(input.text());
            let ports = input.bytes();
            let mut list = request.init_ports(u32::try_from(ports.len()).unwrap_or_default());
            for (index, port) in (0..).zip(ports) {
                list.set(index, u16::from(*port) * 256);
            }
        }
        (fuzzing::CONMON, method) => fill_request(input, method, params),
        _ => {}
    }
}

fn fill_request(input: &mut Input<'_>, method: u16, params: capnp::any_pointer::Builder<'_>) {
    /// Fills a list of texts.
    macro_rules! texts {
        ($input:ident, $request:ident.$list:ident) => {
            let count = $input.count();
            let mut list = $request.reborrow().$list(count);
            for index in 0..count {
                list.set(index, $input.text());
            }
        };
    }
    match method {
        1 => {
            let mut request = params.init_as::<conmon::create_container_params::Builder<'_>>().init_request();
            request.set_id(input.text());
            request.set_bundle_path(input.text());
            texts!(input, request.init_exit_paths);
            texts!(input, request.init_cleanup_cmd);
            texts!(input, request.init_global_args);
            let count = input.count();
            let mut logs = request.reborrow().init_log_drivers(count);
            for index in 0..count {
                logs.reborrow().get(index).set_path(input.text());
            }
            request.init_leak_fds(input.count());
        }
        2 => {
            let mut request = params.init_as::<conmon::exec_sync_container_params::Builder<'_>>().init_request();
            request.set_id(input.text());
            request.set_timeout_sec(input.number().into());
            texts!(input, request.init_command);
            let count = input.count();
            let mut env = request.init_env_vars(count);
            for index in 0..count {
                env.reborrow().get(index).set_key(input.text());
                env.reborrow().get(index).set_value(input.text());
            }
        }
        3 => {
            let mut request = params.init_as::<conmon::attach_container_params::Builder<'_>>().init_request();
            request.set_id(input.text());
            request.set_socket_path(input.text());
        }
        6 => {
            let mut request = params.init_as::<conmon::create_namespaces_params::Builder<'_>>().init_request();
            request.set_base_path(input.text());
            request.set_pod_id(input.text());
            texts!(input, request.init_uid_mappings);
            texts!(input, request.init_gid_mappings);
        }
        8 => {
            let mut request = params.init_as::<conmon::serve_exec_container_params::Builder<'_>>().init_request();
            request.set_id(input.text());
            request.set_stdin(true);
            texts!(input, request.init_command);
        }
        10 => {
            let params = params.init_as::<conmon::serve_port_forward_container_params::Builder<'_>>();
            params.init_request().set_net_ns_path(input.text());
        }
        // The others have an id and what cannot be wrong.
        _ => {
            let mut request = params.init_as::<conmon::reopen_log_container_params::Builder<'_>>().init_request();
            request.set_id(input.text());
            let mut metadata = request.init_metadata(1).get(0);
            metadata.set_key("traceparent");
            metadata.set_value(input.text());
        }
    }
}
