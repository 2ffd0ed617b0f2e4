//! The header is what the sources say.

#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

use std::fs;
use std::path::Path;

/// Opens the header; cbindgen puts it first.
const HEAD: &str = include_str!("header.txt");

#[test]
fn the_committed_header_is_what_cbindgen_makes_of_the_sources() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(package.join("cbindgen.toml")).unwrap();
    config.header = Some(HEAD.trim_end().to_owned());
    let made = cbindgen::Builder::new()
        .with_crate(package)
        .with_config(config)
        .generate()
        .unwrap();
    let mut text = Vec::new();
    made.write(&mut text);
    let text = String::from_utf8(text).unwrap();
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
