//! One event of the daemon's own log: its message, and the fields of the event and of the spans around it.

use std::fmt::{self, Write as _};

use tracing::{
    Level,
    field::{Field, Visit},
};

/// The longest message or value kept, in bytes: an error text may quote what a peer sent.
const MAX_VALUE: usize = 8 * 1024;

/// An event, before it takes the form of a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) level: Level,
    pub(crate) message: String,
    pub(crate) fields: Fields,
}

/// Names and values in the order they were recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Sets a field; the last value of a name counts.
    pub(crate) fn set(&mut self, name: &'static str, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// Sets all of the others.
    pub(crate) fn extend(&mut self, others: &Self) {
        for (name, value) in others.iter() {
            self.set(name, value.to_owned());
        }
    }

    /// Takes out what an event says in words.
    pub(crate) fn take_message(&mut self) -> String {
        let at = self.0.iter().position(|(name, _)| *name == "message");
        at.map(|at| self.0.remove(at).1).unwrap_or_default()
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(name(field), value[..value.floor_char_boundary(MAX_VALUE)].to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut bounded = Bounded(String::new());
        // An error only says that the bound was reached.
        let _ = write!(bounded, "{value:?}");
        self.set(name(field), bounded.0);
    }
}

/// A field named by a keyword is written `r#type`.
fn name(field: &Field) -> &'static str {
    field.name().trim_start_matches("r#")
}

/// Takes text up to the bound, then refuses more: a huge value is not even formatted to its end.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_VALUE - self.0.len();
        let fitting = text.floor_char_boundary(room);
        self.0.push_str(&text[..fitting]);
        if fitting == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_name_counts_and_the_message_is_no_field() {
        let mut fields = Fields::default();
        for (name, value) in [("a", "1"), ("message", "hello"), ("b", "2"), ("a", "3")] {
            fields.set(name, value.to_owned());
        }
        assert_eq!(fields.take_message(), "hello");
        assert_eq!(fields.iter().collect::<Vec<_>>(), [("a", "3"), ("b", "2")]);
        assert_eq!(fields.take_message(), "");
    }

    #[test]
    fn a_huge_value_is_cut_at_a_character() {
        let mut bounded = Bounded("x".to_owned());
        assert!(write!(bounded, "{}", "ä".repeat(MAX_VALUE)).is_err());
        assert_eq!(bounded.0.len(), MAX_VALUE - 1);
        assert!(bounded.0.ends_with('ä'));
    }
}
