//! What tests measure but never assert.

use std::{env, fmt::Display, fs::OpenOptions, io::Write};

/// Notes a measured value: as a line `name<tab>value` at the end of the file named by `HOLDFAST_FIGURES`, else on stderr.
pub(crate) fn figure(name: &str, value: impl Display) {
    let Some(path) = env::var_os("HOLDFAST_FIGURES") else {
        writeln!(std::io::stderr(), "figure: {name}: {value}").expect("stderr of a test");
        return;
    };
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the file of the figures");
    // One write, so that lines of tests that run side by side stay whole.
    file.write_all(format!("{name}\t{value}\n").as_bytes()).expect("a line");
}
