//! Exec and attach on the wire: the first 100 items of the list that streaming was specified with. Most tests carry the
//! number of their item (`s79_…`); of what was tested before there was this folder, and of the pure parts, the table says
//! where. `unit:` are tests beside the code in `src/`. Items 101 and later, port forward and the server as a whole, are in
//! `tests/port_forward`.
//!
//! | item | what | proved by |
//! |---|---|---|
//! | 1 | absolute URL | `streams/http::a_url_is_absolute_and_good_for_one_connection` |
//! | 2 | a token works once | the same, `http::s2` |
//! | 3 | a token expires | `http::s3`, unit: `session/pending::a_token_expires_after_its_lifetime` |
//! | 4 | unknown token | `streams/http::an_unknown_path_or_token_is_404_and_the_connection_can_be_used_on`, `bad_input/http::a_wrong_token_is_not_found_and_uses_up_nothing` |
//! | 5 | token of another kind | `defects/streaming::d25_a_token_is_good_for_its_own_path_alone` |
//! | 6 | cap of tokens | `http::s6`, `defects/streaming::d25_a_waiting_url_is_not_dropped_for_the_next_25` |
//! | 7 | other methods | `defects/streaming::d25_a_token_is_good_for_its_own_path_alone`, `bad_input/http::other_methods_are_not_allowed_and_use_up_nothing` |
//! | 8 | unknown path | as 4; unit: `proto/upgrade_head::an_unknown_path_gets_404_whatever_the_method` |
//! | 9 | forms of the SPDY upgrade | `http::s9` |
//! | 10, 11, 14 | offers over SPDY | `http::s10_s11_s14` |
//! | 12, 13 | refused SPDY upgrades | `http::s12`, `http::s13` |
//! | 15 | WebSocket accept value | every session of `support/raw_ws`; `defects/streaming::d23_not_only_v5_is_served_and_nothing_is_spoken_without_agreement` |
//! | 16 | offers in one or two lines | the same |
//! | 17 | port forward gets v4 | `http::s17`; unit: `proto/remotecommand::a_port_forward_is_the_tunnel_or_channels_of_v4` |
//! | 18 | no common WebSocket protocol | `defects/streaming::d23_not_only_…`; client-go's fallback: `interop/client-go` |
//! | 19, 20 | no offer; extensions | `defects/streaming::d23_not_only_…`, `streams/frames::before_v4_success_has_no_status_and_failure_a_text` |
//! | 21 | WebSocket version 8 | `bad_input/http::a_request_that_cannot_become_a_session_is_told_why` |
//! | 22, 23 | early frames; proxies' headers | `http::s22`, `http::s23` |
//! | 24 | large or slow heads | `http::s24`, `bad_input/http::a_client_that_is_slow_with_its_head_holds_up_nobody_and_is_closed` |
//! | 25 | first message | `streams/frames::the_first_message_is_one_channel_byte_and_the_last_a_status_then_close_1000` |
//! | 26, 32 | stdin as text, binary, fragments | `streams/frames::stdin_comes_in_text_or_binary_messages_whole_or_in_fragments_around_a_ping` |
//! | 27 | base64 | `streams/frames::base64_messages_are_text_both_ways_and_so_is_the_status` |
//! | 28 | end of stdin | `defects/streaming::d19_the_end_of_stdin_does_not_end_the_output` |
//! | 29, 31 | nonsense; a second end of stdin | `streams/frames::what_makes_no_sense_is_ignored_and_a_second_end_of_stdin_too` |
//! | 30 | no end of stdin in v4 | `streams/frames::before_v5_there_is_no_end_of_stdin` |
//! | 33 | frames against the rules | `streams/frames::a_frame_against_the_rules_is_answered_with_1002` |
//! | 34 | limit of a message | `defects/streaming::d65_a_message_has_a_limit_and_is_not_kept_whole` |
//! | 35 | bad sizes | `websocket::s35`, `bad_input/frames::a_good_size_counts_after_any_amount_of_bad_ones` |
//! | 36 | first and later sizes | `streams/websocket::a_size_sent_first_is_the_size_the_command_starts_with_and_later_ones_are_signalled`, `streams/frames::of_two_sizes_in_one_message_the_last_counts_and_zeros_and_nonsense_are_ignored`, `tty::s36` |
//! | 37 | size of messages | `streams/frames::messages_are_whole_and_at_most_32_kib_and_their_channel_byte` |
//! | 38 | pings | `streams/frames::a_ping_is_answered_while_the_process_does_not_read_its_stdin`, `streams/frames::a_ping_is_answered_while_output_flows` |
//! | 39 | status last, slow reader | `websocket::s39` |
//! | 40, 90 | client that pauses | `faults/output/paused::a_client_that_pauses_and_reads_slowly_gets_every_line_then_the_status` |
//! | 41 | wait for the client's Close | `streams/frames::the_server_keeps_the_connection_until_the_client_has_answered_its_close` |
//! | 42 | client vanishes | `defects/streaming::d26_…`, `defects/streaming::d65_a_client_that_vanished_without_a_word_is_noticed`, `websocket::s42`, `bad_input/frames::a_client_that_resets_its_connection_takes_only_its_own_command_with_it` |
//! | 43 | client closes first | `streams/frames::a_clients_close_is_echoed` |
//! | 44 | no stdin | `streams/websocket::a_silent_pause_between_outputs_is_not_the_end` |
//! | 45 | attach without stdin | `websocket::s45` |
//! | 46 | command that cannot start | `defects/streaming::d20_a_command_that_cannot_be_started_is_no_success`, `status::s46` |
//! | 47 | real clients | `interop/` |
//! | 48, 49 | codes and signals | `streams/websocket::both_streams_and_the_code_of_a_command_reach_the_client`, `status::s48`, `status::s49` |
//! | 50 | JSON | `streams/frames::a_failed_command_is_told_as_kubernetes_does`; exact in every test here by `failure` and `SUCCESS` |
//! | 51 | before v4 | `streams/frames::before_v4_success_has_no_status_and_failure_a_text`, `status::s51` |
//! | 52 | stdin open, ended, absent | `status::s52` |
//! | 53 | kubectl's exit code | `interop/client-go`, through kubectl's own library |
//! | 54 | attach succeeds | `streams/attach::a_client_types_into_a_terminal_and_sees_it_until_the_container_exits`, `status::s54` |
//! | 55 | flags of a request | `streams/websocket::a_terminal_has_one_stream_even_when_stderr_was_asked_for`, `streams/http::requests_without_streams_or_for_unknown_containers_are_failed_calls` |
//! | 56 | terminal without stderr | the first of these, `tty::s56` |
//! | 57 | last bytes of a terminal | `streams/websocket::the_last_bytes_of_a_short_command_with_a_terminal_arrive`, `tty::s57` |
//! | 58, 59 | set of a terminal; storms of sizes | `tty::s58`, `tty::s59` |
//! | 60 | header vectors | unit: `proto/spdy/header::the_golden_blocks_are_read_in_sequence`; `spdy::what_we_write_is_what_the_go_library_was_shown`; every session of `support/raw_spdy` |
//! | 61, 62 | refused streams and cuts | `spdy_framing::s61`, `spdy_framing::s62`; unit: `proto/spdy/tests` and `proto/spdy/frame`, at every cut |
//! | 63 | each stream is answered at once | `RawSpdy::open`, which every test opens its streams with |
//! | 64 to 69 | ids, ends, stray frames, pings | `spdy_framing::s64` to `s69` |
//! | 70 | no windows | `spdy_exec::s87`, whose client sends and heeds none |
//! | 71 to 76, 84 | what is meant to do harm | `spdy_harm::s71` to `s84`; fuzzed: `fuzz_corpora` |
//! | 77 to 83 | good-byes, sets of streams, headers | `spdy_framing::s77` to `s83` |
//! | 85 to 99 | exec | `spdy_exec::s85` to `s99` |
//! | 100 | crictl, kubectl, critest | `interop/` |
//! | 4.6 | attach over SPDY | `spdy_attach` |
//! | | the engine's death | `survives` |
//!
//! Smaller than the list says, unless `HOLDFAST_LONG=1`: 6 (10,000 calls), 39 (1 MB/s), 40 and 90 (3,000,000 lines), 57 (1,000
//! rounds), 87 (100 MB), 89 (500 MB), 96 (200 sessions at once), 97 (10,000 in turn). Not tested: the times in 71 and 87, since
//! a loaded machine decides them. The memory in 40, 71 to 76, 84, 90 and 97 is that of the daemon.
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

mod http;
mod spdy_attach;
mod spdy_exec;
mod spdy_framing;
mod spdy_harm;
mod status;
#[path = "../support/mod.rs"]
mod support;
mod survives;
mod tty;
mod websocket;

use holdfast::client::ServeExec;

use support::Sandbox;

/// The streams of an exec with everything and without a terminal, in the order of client-go.
const ALL: [&str; 4] = ["error", "stdin", "stdout", "stderr"];
/// Those of one without stdin.
const OUTPUT: [&str; 3] = ["error", "stdout", "stderr"];
/// Those of one with a terminal.
const TTY: [&str; 4] = ["error", "stdin", "stdout", "resize"];

/// The status of a command that ended with 0.
const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

/// The status of one that ended with another code.
fn failure(code: usize) -> String {
    format!(
        r#"{{"metadata":{{}},"status":"Failure","message":"command terminated with non-zero exit code: exit status {code}","reason":"NonZeroExitCode","details":{{"causes":[{{"reason":"ExitCode","message":"{code}"}}]}}}}"#
    )
}

/// The URL of a command in the container `c` with stdin, stdout and stderr.
async fn exec_url(sandbox: &Sandbox, command: &[&str]) -> String {
    sandbox.exec_url("c", command).await
}

/// The URL of one without stdin.
async fn output_url(sandbox: &Sandbox, command: &[&str]) -> String {
    url(sandbox, ServeExec { stdout: true, stderr: true, ..exec(command) }).await
}

/// The URL of one with a terminal.
async fn tty_url(sandbox: &Sandbox, command: &[&str]) -> String {
    url(sandbox, ServeExec { stdin: true, stdout: true, tty: true, ..exec(command) }).await
}

async fn url(sandbox: &Sandbox, exec: ServeExec) -> String {
    sandbox.client().serve_exec(&exec).await.expect("the exec gets a URL")
}

fn exec(command: &[&str]) -> ServeExec {
    let command = command.iter().map(|arg| (*arg).to_owned()).collect();
    ServeExec { id: "c".to_owned(), command, ..ServeExec::default() }
}

/// What `seq` writes.
fn numbers(to: u32) -> String {
    (1..=to).map(|number| format!("{number}\n")).collect()
}

/// Bytes without a pattern.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
