//! The status a streaming session ends with, as the error channel carries it (streaming 3).

use crate::{
    model::Outcome,
    proto::status::{StatusError, decode},
};

/// What the bytes of the error channel say. Protocols before v4 write plain text, and that only on failure.
pub(super) fn outcome(bytes: &[u8]) -> Outcome {
    decode(bytes).unwrap_or_else(|error| match error {
        StatusError::Malformed(_) => Outcome::Failed(String::from_utf8_lossy(bytes).trim().to_owned()),
        error => Outcome::Failed(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_status_is_the_text_of_a_failure() {
        let failed = |text: &str| Outcome::Failed(text.to_owned());
        for (bytes, expected) in [
            (r#"{"metadata":{},"status":"Success"}"#, Outcome::Exited(0)),
            (r#"{"status":"Failure","message":"no","reason":"InternalError","code":500}"#, failed("no")),
            (r#"{"status":"Odd"}"#, failed("unknown status \"Odd\"")),
            ("plain text\n", failed("plain text")),
            ("", failed("")),
        ] {
            assert_eq!(outcome(bytes.as_bytes()), expected, "{bytes}");
        }
    }
}
