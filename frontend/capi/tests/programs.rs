//! The interface as C programs use it: each test of tests/c in a process of its own.

#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

mod cc;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cc::{Kind, compile, daemon, have, install, package};

/// The library, installed once for all of these.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c-programs");
        install(Kind::Static, &folder);
        folder
    })
}

/// Names in the list at the end of a program's source.
fn tests_of(source: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(source).unwrap();
    let (_, list) = text.rsplit_once("MAIN(").unwrap();
    let names = list.split("TEST(").skip(1);
    names
        .map(|rest| rest.split(')').next().unwrap().to_owned())
        .collect()
}

fn program(name: &str) {
    if !have("cc", name) || !have("pkg-config", name) {
        return;
    }
    let source = package().join("tests/c").join(format!("{name}.c"));
    let tests = tests_of(&source);
    assert!(!tests.is_empty());
    let program: PathBuf = compile(&source, prefix(), Kind::Static);
    let folder = tempfile::tempdir().unwrap();
    let mut failed = Vec::new();
    for test in tests {
        let mut command = Command::new(&program);
        let output = command.arg(daemon()).arg(&test).current_dir(folder.path());
        let output = output.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{test}: {}\n{said}", output.status);
        if !output.status.success() || output.stdout != format!("ok {test}\n").as_bytes() {
            failed.push(test);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn arguments() {
    program("arguments");
}

#[test]
fn callbacks() {
    program("callbacks");
}

#[test]
fn machine() {
    program("machine");
}

#[test]
fn moves() {
    program("moves");
}
