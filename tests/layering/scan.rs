//! A reader of Rust sources that knows just enough: tokens without comments, literals and test code, and the paths in them.

use std::{fmt, iter::Peekable, str::Chars};

/// One file, as tokens.
pub(crate) struct Source {
    /// The modules it is in, from the crate's root; a `mod.rs` is its folder.
    modules: Vec<String>,
    tokens: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    line: usize,
    /// A word (identifier, keyword, number), `::`, or one other character.
    text: String,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        self.text == text
    }

    fn is_word(&self) -> bool {
        self.text.starts_with(is_word_char)
    }
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A path with what `use {…}` groups leave out filled in, and `self` and `super` resolved.
pub(crate) struct UsedPath {
    pub(crate) words: Vec<String>,
    pub(crate) line: usize,
}

impl UsedPath {
    /// The module of this crate that it names.
    pub(crate) fn module(&self) -> Option<&str> {
        self.words.get(1).filter(|_| self.words[0] == "crate").map(String::as_str)
    }

    /// The crate it names, if it is a path into something.
    pub(crate) fn root(&self) -> Option<&str> {
        (self.words.len() > 1).then(|| self.words[0].as_str())
    }

    /// Whether it begins so.
    pub(crate) fn starts_with(&self, words: &[&str]) -> bool {
        self.words.len() >= words.len() && self.words.iter().zip(words).all(|(a, b)| a == b)
    }

    /// Whether these words follow each other somewhere in it.
    pub(crate) fn contains(&self, words: &[&str]) -> bool {
        self.words.windows(words.len()).any(|window| window.iter().zip(words).all(|(a, b)| a == b))
    }
}

impl fmt::Display for UsedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join("::"))
    }
}

impl Source {
    /// Reads a file whose path is relative to `src/`.
    pub(crate) fn of(path: &str, text: &str) -> Self {
        let mut modules: Vec<_> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        modules.pop_if(|last| last == "mod");
        Self { modules, tokens: without_tests(tokens(text)) }
    }

    /// The top-level module it belongs to; `lib` or `bin` where there is none.
    pub(crate) fn module(&self) -> &str {
        &self.modules[0]
    }

    /// The lines on which these tokens follow each other.
    pub(crate) fn lines_of<'a>(&'a self, texts: &'a [&str]) -> impl Iterator<Item = usize> + 'a {
        let found = self.tokens.windows(texts.len());
        found
            .filter(move |window| window.iter().zip(texts).all(|(token, text)| token.is(text)))
            .map(|window| window[0].line)
    }

    /// All paths, those of one word included.
    pub(crate) fn paths(&self) -> Vec<UsedPath> {
        let mut found = Vec::new();
        // Where inline modules end, as depths of braces: `super` in one of them leads to this file.
        let (mut depth, mut inline) = (0_usize, Vec::new());
        let mut at = 0;
        while let Some(token) = self.tokens.get(at) {
            let after = |text| at > 0 && self.tokens[at - 1].is(text);
            match token.text.as_str() {
                "{" => {
                    if at > 1 && self.tokens[at - 2].is("mod") {
                        inline.push(depth);
                    }
                    depth += 1;
                }
                "}" => {
                    depth = depth.saturating_sub(1);
                    inline.pop_if(|outer| *outer == depth);
                }
                // Not a field, a method, or the end of a path with generics in it.
                _ if token.is_word() && !after(".") && !after("::") => {
                    let first = found.len();
                    at = self.tree(at, &[], &mut found);
                    found[first..].iter_mut().for_each(|path| self.resolve(path, inline.len()));
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        found
    }

    /// Reads `a`, `a::b`, `a::*` or `a::{…}` and returns where it ends.
    fn tree(&self, mut at: usize, prefix: &[String], found: &mut Vec<UsedPath>) -> usize {
        let is = |at: usize, text| self.tokens.get(at).is_some_and(|token: &Token| token.is(text));
        let mut words = prefix.to_vec();
        let mut line = 0;
        while let Some(token) = self.tokens.get(at) {
            if token.is("{") {
                at += 1;
                while at < self.tokens.len() && !is(at, "}") {
                    // What a subtree leaves is a comma, or `as other`.
                    at = self.tree(at, &words, found).max(at + 1);
                    while at < self.tokens.len() && !is(at, ",") && !is(at, "}") {
                        at += 1;
                    }
                    at += usize::from(is(at, ","));
                }
                return at + 1;
            }
            if !token.is_word() && !token.is("*") {
                break;
            }
            words.push(token.text.clone());
            line = token.line;
            at += 1;
            let goes_on = self.tokens.get(at + 1).is_some_and(|next| next.is_word() || next.is("{") || next.is("*"));
            if !is(at, "::") || !goes_on {
                break;
            }
            at += 1;
        }
        found.push(UsedPath { words, line });
        at
    }

    /// Makes `super::…` a path from the crate's root. `self` at the end of a path is what is before it.
    fn resolve(&self, path: &mut UsedPath, inline: usize) {
        if path.words.len() > 1 {
            path.words.pop_if(|last| last == "self");
        }
        let up = path.words.iter().take_while(|word| *word == "super").count();
        if up > inline && up - inline <= self.modules.len() {
            let outer = &self.modules[..self.modules.len() - (up - inline)];
            let rest = path.words.split_off(up);
            path.words = std::iter::once("crate".to_owned()).chain(outer.iter().cloned()).chain(rest).collect();
        }
    }
}

/// Leaves out what is compiled for tests only.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if !token.is("#") || !tokens.peek().is_some_and(|next| next.is("[")) {
            kept.push(token);
            continue;
        }
        let attribute = bracketed(&mut tokens);
        let has = |text| attribute.iter().any(|token: &Token| token.is(text));
        if has("cfg") && has("test") && !has("not") {
            skip_item(&mut tokens);
        } else {
            kept.push(token);
            kept.extend(attribute);
        }
    }
    kept
}

/// Takes `[…]`.
fn bracketed(tokens: &mut impl Iterator<Item = Token>) -> Vec<Token> {
    let mut taken = Vec::new();
    let mut depth = 0;
    for token in tokens {
        depth += i32::from(token.is("[")) - i32::from(token.is("]"));
        taken.push(token);
        if depth == 0 {
            break;
        }
    }
    taken
}

/// Takes an item, up to its `;` or `}`; or what else an attribute can stand before, up to its `,`.
fn skip_item(tokens: &mut Peekable<impl Iterator<Item = Token>>) {
    const ITEMS: [&str; 15] = [
        "mod", "fn", "use", "pub", "impl", "struct", "const", "static", "type", "async", "unsafe", "extern", "enum",
        "trait", "let",
    ];
    while tokens.next_if(|token| token.is("#")).is_some() {
        bracketed(tokens);
    }
    let item = tokens.peek().is_some_and(|token| ITEMS.contains(&token.text.as_str()));
    let mut depth = 0;
    while let Some(token) = tokens.peek() {
        if depth == 0 && token.is("}") {
            return; // Of what the attribute's bearer is in.
        }
        let text = token.text.clone();
        depth += i32::from(["(", "[", "{"].contains(&text.as_str()));
        depth -= i32::from([")", "]", "}"].contains(&text.as_str()));
        tokens.next();
        if depth == 0 && (text == ";" || text == "}" || (text == "," && !item)) {
            return;
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = Cursor { chars: text.chars(), line: 1 };
    while let Some(c) = rest.next() {
        let line = rest.line;
        match c {
            '/' if rest.peek() == Some('/') => while rest.next().is_some_and(|c| c != '\n') {},
            '/' if rest.peek() == Some('*') => rest.skip_comment(),
            '"' => rest.skip_string(),
            '\'' => rest.skip_character_or_lifetime(),
            ':' if rest.peek() == Some(':') => {
                rest.next();
                tokens.push(Token { line, text: "::".to_owned() });
            }
            c if is_word_char(c) => {
                let mut text = String::from(c);
                while let Some(c) = rest.peek().filter(|c| is_word_char(*c)) {
                    text.push(c);
                    rest.next();
                }
                match (text.as_str(), rest.peek()) {
                    ("r" | "br" | "cr", Some('"' | '#')) => rest.skip_raw_string(),
                    ("b", Some('\'')) | ("b" | "c", Some('"')) => {} // A literal follows.
                    _ => tokens.push(Token { line, text }),
                }
            }
            c if c.is_whitespace() => {}
            c => tokens.push(Token { line, text: c.to_string() }),
        }
    }
    tokens
}

/// Characters, with the line of the last one taken.
struct Cursor<'a> {
    chars: Chars<'a>,
    line: usize,
}

impl Cursor<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.chars.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    fn peek(&self) -> Option<char> {
        self.chars.clone().next()
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.next();
        }
    }

    /// Behind the `/` of `/*`; comments nest.
    fn skip_comment(&mut self) {
        let mut depth = 0;
        let mut last = '/';
        while let Some(c) = self.next() {
            match (last, c) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    last = c;
                    continue;
                }
            }
            if depth == 0 {
                return;
            }
            last = ' ';
        }
    }

    fn skip_string(&mut self) {
        while let Some(c) = self.next() {
            match c {
                '\\' => self.skip(1),
                '"' => return,
                _ => {}
            }
        }
    }

    /// Behind the `r`: `#…"…"#…`. A raw identifier (`r#type`) leaves its name to the caller.
    fn skip_raw_string(&mut self) {
        let hashes = self.chars.as_str().chars().take_while(|c| *c == '#').count();
        self.skip(hashes);
        if self.peek() != Some('"') {
            return;
        }
        let end = format!("\"{}", "#".repeat(hashes));
        self.next();
        while !self.chars.as_str().starts_with(&end) && self.next().is_some() {}
        self.skip(end.len());
    }

    fn skip_character_or_lifetime(&mut self) {
        let mut ahead = self.chars.clone();
        match (ahead.next(), ahead.next()) {
            (Some('\\'), _) => {
                self.skip(2);
                while self.next().is_some_and(|c| c != '\'') {}
            }
            (Some(_), Some('\'')) => self.skip(2),
            _ => {
                while self.peek().is_some_and(is_word_char) {
                    self.next();
                }
            }
        }
    }
}

#[test]
fn literals_comments_and_lifetimes_are_no_tokens() {
    let text = "a /* b /* c */ d */ 'e' '\\'' '\\u{66}' \"g \\\" h\" r#\"i \" j\"# b\"k\" b'l' br##\"m\"# n\"## 'o p // q\nr#type";
    let found: Vec<_> = tokens(text).into_iter().map(|token| (token.line, token.text)).collect();
    assert_eq!(found, [(1, "a".to_owned()), (1, "p".to_owned()), (2, "type".to_owned())]);
}

#[test]
fn groups_and_relative_paths_are_written_out() {
    let paths = |path, text| Source::of(path, text).paths().iter().map(ToString::to_string).collect::<Vec<_>>();
    let group = paths("a/b.rs", "use x::{self, y::{Z as W, V}, u::*};");
    assert_eq!(group, ["use", "x", "x::y::Z", "x::y::V", "x::u::*"]);
    let relative = "super::c::d(); super::super::e::<F>(); mod g { fn h() { super::i(); } } super::j();";
    let found = paths("a/b.rs", relative);
    for path in ["crate::a::c::d", "crate::e", "super::i", "crate::a::j"] {
        assert!(found.contains(&path.to_owned()), "{path} in {found:?}");
    }
}

#[test]
fn test_code_is_left_out_and_nothing_else() {
    let text = "a #[cfg(test)] #[x] mod b { c; { d } } e #[cfg(test)] use f::{g}; h { #[cfg(test)] i: j, k }\n\
                #[cfg(all(test, l))] fn m<N, O>(p: [q; 1]) { r } s #[cfg(not(test))] t { #[cfg(test)] u } v";
    let words = without_tests(tokens(text)).into_iter().filter(Token::is_word).map(|token| token.text);
    assert_eq!(words.collect::<Vec<_>>().join(" "), "a e h k s cfg not test t v");
}
