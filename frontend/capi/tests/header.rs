//! The header is what the sources say.

#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

use std::fs;
use std::path::Path;

/// Opens the header; cbindgen puts it first.
const HEAD: &str = include_str!("header/head.txt");

/// The header as cbindgen makes it, a comment of one line in one line.
fn generate(package: &Path) -> String {
    let mut config = cbindgen::Config::from_file(package.join("cbindgen.toml")).unwrap();
    config.header = Some(HEAD.trim_end().to_owned());
    let builder = cbindgen::Builder::new().with_crate(package);
    let mut made = Vec::new();
    builder
        .with_config(config)
        .generate()
        .unwrap()
        .write(&mut made);
    compact(&String::from_utf8(made).unwrap())
}

fn compact(header: &str) -> String {
    let lines: Vec<&str> = header.lines().collect();
    let mut text = String::new();
    let mut at = 0;
    while at < lines.len() {
        let one = match lines[at..] {
            [open, said, close, ..] if open.trim() == "/**" && close.trim() == "*/" => {
                let said = said.trim().trim_start_matches("* ");
                Some(format!("{} {said} */", open))
            }
            _ => None,
        };
        at += if one.is_some() { 3 } else { 1 };
        text += one.as_deref().unwrap_or_else(|| lines[at - 1].trim_end());
        text.push('\n');
    }
    text
}

#[test]
fn the_committed_header_is_what_cbindgen_makes_of_the_sources() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = generate(package);
    let path = package.join("include/papr_intc.h");
    if std::env::var_os("PAPR_INTC_WRITE_HEADER").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "include/papr_intc.h is not what the sources say; PAPR_INTC_WRITE_HEADER=1 writes it"
    );
}
