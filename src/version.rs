//! What was built, when, with what: the texts of `--version` and the answer of the `version` call.

use std::fmt::Write as _;

use serde::Serialize;

/// Facts about this binary. `build.rs` finds them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Strict SemVer without a leading `v`: clients parse it (control-api 2.2).
    pub version: &'static str,
    /// `git describe`; empty when built outside a repository.
    pub tag: &'static str,
    /// The full commit id.
    pub commit: &'static str,
    /// UTC, `YYYY-MM-DD HH:MM:SS`.
    pub build_date: &'static str,
    /// The target triple.
    pub target: &'static str,
    /// What `rustc --version` said.
    pub rust_version: &'static str,
    /// What `cargo --version` said.
    pub cargo_version: &'static str,
    /// What `cargo tree` said, with `|` for its line ends.
    packed_tree: &'static str,
}

/// How much a version text tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// All but the dependencies.
    Default,
    /// All, with the tree of dependencies.
    Full,
}

/// The keys and their order are the contract (control-api 2.2).
#[derive(Serialize)]
struct Json<'a> {
    verbose: bool,
    version: &'a str,
    tag: &'a str,
    commit: &'a str,
    build_date: &'a str,
    target: &'a str,
    rust_version: &'a str,
    cargo_version: &'a str,
    cargo_tree: &'a str,
}

impl Version {
    /// Of this binary.
    #[must_use]
    pub const fn current() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            tag: env!("HOLDFAST_BUILD_TAG"),
            commit: env!("HOLDFAST_BUILD_COMMIT"),
            build_date: env!("HOLDFAST_BUILD_DATE"),
            target: env!("HOLDFAST_BUILD_TARGET"),
            rust_version: env!("HOLDFAST_BUILD_RUSTC"),
            cargo_version: env!("HOLDFAST_BUILD_CARGO"),
            packed_tree: env!("HOLDFAST_BUILD_CARGO_TREE"),
        }
    }

    /// The tree of dependencies as `cargo tree` prints it, without a final line end.
    #[must_use]
    pub fn cargo_tree(&self) -> String {
        self.packed_tree.replace('|', "\n")
    }

    /// The text of `--version`, without a final line end.
    #[must_use]
    pub fn text(&self, detail: Detail) -> String {
        let tag = if self.tag.is_empty() { "none" } else { self.tag };
        let Self { version, commit, build_date, target, rust_version, cargo_version, .. } = self;
        let mut text = format!(
            "version: {version}\ntag: {tag}\ncommit: {commit}\nbuild: {build_date}\ntarget: {target}\n\
             {rust_version}\n{cargo_version}"
        );
        if detail == Detail::Full {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n\ncargo tree: {}", self.cargo_tree());
        }
        text
    }

    /// The line of `--version-json`, without a line end.
    #[must_use]
    pub fn json(&self, detail: Detail) -> String {
        let verbose = detail == Detail::Full;
        let tree = if verbose { self.cargo_tree() } else { String::new() };
        let facts = Json {
            verbose,
            version: self.version,
            tag: self.tag,
            commit: self.commit,
            build_date: self.build_date,
            target: self.target,
            rust_version: self.rust_version,
            cargo_version: self.cargo_version,
            cargo_tree: &tree,
        };
        serde_json::to_string(&facts).expect("a struct of strings and a bool has a JSON form")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Version = Version {
        version: "1.2.3",
        tag: "",
        commit: "abc",
        build_date: "2026-01-02 03:04:05",
        target: "x86_64-unknown-linux-gnu",
        rust_version: "rustc 1",
        cargo_version: "cargo 1",
        packed_tree: "holdfast|└── a",
    };

    #[test]
    fn the_text_has_the_lines_of_the_contract() {
        let lines = "version: 1.2.3\ntag: none\ncommit: abc\nbuild: 2026-01-02 03:04:05\n\
                     target: x86_64-unknown-linux-gnu\nrustc 1\ncargo 1";
        assert_eq!(SAMPLE.text(Detail::Default), lines);
        assert_eq!(SAMPLE.text(Detail::Full), format!("{lines}\n\ncargo tree: holdfast\n└── a"));
    }

    #[test]
    fn the_json_is_one_line_with_the_keys_of_the_contract_in_order() {
        let common = r#""version":"1.2.3","tag":"","commit":"abc","build_date":"2026-01-02 03:04:05","#.to_owned()
            + r#""target":"x86_64-unknown-linux-gnu","rust_version":"rustc 1","cargo_version":"cargo 1","#;
        assert_eq!(SAMPLE.json(Detail::Default), format!(r#"{{"verbose":false,{common}"cargo_tree":""}}"#));
        let full = format!(r#"{{"verbose":true,{common}"cargo_tree":"holdfast\n└── a"}}"#);
        assert_eq!(SAMPLE.json(Detail::Full), full);
    }

    #[test]
    fn what_clients_require_is_never_empty() {
        let Version { version, commit, build_date, target, rust_version, cargo_version, .. } = Version::current();
        for fact in [version, commit, build_date, target, rust_version, cargo_version] {
            assert!(!fact.is_empty());
        }
        assert!(Version::current().cargo_tree().starts_with("holdfast v"), "{}", Version::current().cargo_tree());
        assert!(version.split('.').count() == 3 && version.starts_with(|c: char| c.is_ascii_digit()));
    }
}
