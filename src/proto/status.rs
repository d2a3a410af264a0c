//! The status of a session: the last message of the error stream (streaming spec 3).
//!
//! From v4 on it is one JSON object, a Kubernetes `metav1.Status`, sent exactly once whatever happened, because clients
//! read a missing one as success. Before v4 it is plain text and sent on failure only.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::remotecommand::Version;
use crate::model::Outcome;

/// The status message of `outcome`, without a channel byte; `None` if this version says nothing (success before v4).
///
/// The form is the one with `"metadata":{}`, which has been deployed longest; keys come in the order clients have always
/// seen (spec 3.1).
#[must_use]
pub fn encode(outcome: &Outcome, version: Version) -> Option<Bytes> {
    if !version.json_status() {
        return match outcome {
            Outcome::Exited(0) => None,
            Outcome::Exited(code) => Some(exit_text(*code).into()),
            Outcome::Failed(text) => Some(text.clone().into()),
        };
    }
    let status = match outcome {
        Outcome::Exited(0) => Status { status: SUCCESS.into(), ..Status::default() },
        Outcome::Exited(code) => Status {
            status: FAILURE.into(),
            message: exit_text(*code),
            reason: NON_ZERO_EXIT_CODE.into(),
            details: Some(Details { causes: vec![Cause { reason: EXIT_CODE.into(), message: code.to_string() }] }),
            ..Status::default()
        },
        Outcome::Failed(text) => Status {
            status: FAILURE.into(),
            message: format!("Internal error occurred: {text}"),
            reason: "InternalError".into(),
            details: Some(Details { causes: vec![Cause { reason: String::new(), message: text.clone() }] }),
            code: 500,
            ..Status::default()
        },
    };
    Some(serde_json::to_vec(&status).expect("strings and numbers always have a JSON form").into())
}

fn exit_text(code: u8) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

/// Reads a JSON status as a client does (spec 3.3). Fields and members it does not need may be missing or unknown.
///
/// # Errors
/// No status can be read from it; an empty message counts as that, too.
pub fn decode(message: &[u8]) -> Result<Outcome, StatusError> {
    let status: Status = serde_json::from_slice(message).map_err(|error| StatusError::Malformed(error.to_string()))?;
    match status.status.as_str() {
        SUCCESS => Ok(Outcome::Exited(0)),
        FAILURE if status.reason == NON_ZERO_EXIT_CODE => {
            let causes = status.details.unwrap_or_default().causes;
            let code = causes.into_iter().find(|cause| cause.reason == EXIT_CODE).map(|cause| cause.message);
            let code = code.unwrap_or_default();
            match code.parse() {
                Ok(number @ 1..) => Ok(Outcome::Exited(number)),
                _ => Err(StatusError::ExitCode(code)),
            }
        }
        FAILURE => Ok(Outcome::Failed(if status.message.is_empty() { status.reason } else { status.message })),
        _ => Err(StatusError::Unknown(status.status)),
    }
}

/// A message on the error stream that is not a status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// It is not a JSON object of the right form.
    #[error("malformed status: {0}")]
    Malformed(String),
    /// The `status` field is neither `Success` nor `Failure`.
    #[error("unknown status {0:?}")]
    Unknown(String),
    /// The exit code is missing or not a number from 1 to 255.
    #[error("status with invalid exit code {0:?}")]
    ExitCode(String),
}

const SUCCESS: &str = "Success";
const FAILURE: &str = "Failure";
const NON_ZERO_EXIT_CODE: &str = "NonZeroExitCode";
const EXIT_CODE: &str = "ExitCode";

/// The part of `metav1.Status` that is used here. Fields are written in this order.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(skip_deserializing)]
    metadata: Empty,
    status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "is_zero", skip_deserializing)]
    code: u16,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    message: String,
}

#[derive(Debug, Default, Serialize)]
struct Empty {}

fn is_zero(code: &u16) -> bool {
    *code == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(outcome: &Outcome, version: Version) -> String {
        String::from_utf8(encode(outcome, version).unwrap().to_vec()).unwrap()
    }

    // Spec items 48, 50 and 54; the literals are those of spec 3.1.
    #[test]
    fn from_v4_on_every_outcome_has_its_json_form() {
        for version in [Version::V4, Version::V5] {
            assert_eq!(json(&Outcome::Exited(0), version), r#"{"metadata":{},"status":"Success"}"#);
            assert_eq!(
                json(&Outcome::Exited(3), version),
                r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
            );
            assert_eq!(
                json(&Outcome::Failed("error executing command in container: boom".into()), version),
                r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: error executing command in container: boom","reason":"InternalError","details":{"causes":[{"message":"error executing command in container: boom"}]},"code":500}"#
            );
        }
    }

    // Spec item 51.
    #[test]
    fn before_v4_success_is_silent_and_failure_is_text() {
        for version in [Version::V1, Version::V2, Version::V3] {
            assert_eq!(encode(&Outcome::Exited(0), version), None);
            let text = "command terminated with non-zero exit code: exit status 3";
            assert_eq!(json(&Outcome::Exited(3), version), text);
            assert_eq!(json(&Outcome::Failed("boom".into()), version), "boom");
        }
    }

    // Spec items 48 and 49.
    #[test]
    fn every_exit_code_survives_the_round_trip() {
        for code in 0..=255 {
            let outcome = Outcome::Exited(code);
            assert_eq!(decode(&encode(&outcome, Version::V5).unwrap()), Ok(outcome));
        }
    }

    #[test]
    fn awkward_error_texts_stay_one_valid_object() {
        let text = "line\n\"quoted\" \\ \u{1b}[0m ä \0";
        let message = encode(&Outcome::Failed(text.into()), Version::V4).unwrap();
        let failed = Outcome::Failed(format!("Internal error occurred: {text}"));
        assert_eq!(decode(&message), Ok(failed));
    }

    #[test]
    fn the_forms_of_other_servers_are_read() {
        for (message, outcome) in [
            (r#"{"status":"Success"}"#, Outcome::Exited(0)),
            (
                r#"{"kind":"Status","metadata":{"x":1},"status":"Failure","message":"no","reason":"InternalError","code":500}"#,
                Outcome::Failed("no".into()),
            ),
            (r#"{"status":"Failure","reason":"NotFound"}"#, Outcome::Failed("NotFound".into())),
            (
                r#"{"status":"Failure","reason":"NonZeroExitCode","details":{"name":"x","causes":[{"reason":"Other","message":"1"},{"reason":"ExitCode","message":"7"}]}}"#,
                Outcome::Exited(7),
            ),
        ] {
            assert_eq!(decode(message.as_bytes()), Ok(outcome), "{message}");
        }
    }

    // Spec 3.3: what client-go refuses is refused.
    #[test]
    fn what_is_no_status_is_an_error() {
        for code in ["300", "-1", "0", "", "x"] {
            let message = format!(
                r#"{{"status":"Failure","reason":"NonZeroExitCode","details":{{"causes":[{{"reason":"ExitCode","message":"{code}"}}]}}}}"#
            );
            assert_eq!(decode(message.as_bytes()), Err(StatusError::ExitCode(code.into())));
        }
        assert_eq!(decode(br#"{"status":"Maybe"}"#), Err(StatusError::Unknown("Maybe".into())));
        for message in [&b""[..], b"null", b"{", b"boom", b"{\"status\":1}"] {
            assert!(matches!(decode(message), Err(StatusError::Malformed(_))), "{message:?}");
        }
    }
}
