//! The C compiler of this machine, the library installed for it, and the daemon that its programs spawn.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{LazyLock, Mutex};

use find_daemon::find_daemon;

#[allow(dead_code)] // The daemon only.
#[path = "../../../../examples/find_daemon/mod.rs"]
mod find_daemon;

/// What may be linked.
#[derive(Clone, Copy)]
#[allow(dead_code)] // Not every test needs both.
pub enum Kind {
    Static,
    Shared,
}

pub fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// This program runs, if it is there at all; otherwise a line says what is skipped.
pub fn have(program: &str, skipped: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        println!("SKIPPED: there is no {program} here: {skipped}");
    }
    there
}

/// Runs a command that succeeds without a word on stderr.
pub fn run(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(
        status.success() && stderr.is_empty(),
        "{command:?}: {status}\n{stderr}"
    );
    String::from_utf8(stdout).unwrap()
}

/// The library installed in a folder of its own, so that the compiler finds this kind and no other.
pub fn install(kind: Kind, at: &Path) {
    // cargo takes turns anyway; and each call copies.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    let profile = if cfg!(debug_assertions) {
        "dev"
    } else {
        "release"
    };
    let word = match kind {
        Kind::Static => "static",
        Kind::Shared => "shared",
    };
    run(Command::new(package().join("install"))
        .arg(at)
        .arg(word)
        .env("PROFILE", profile));
}

/// What pkg-config says of the library that is installed there.
pub fn flags(prefix: &Path, kind: Kind) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
        .args(["--cflags", "--libs", "papr-intc"]);
    if let Kind::Static = kind {
        command.arg("--static");
    }
    run(&mut command)
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// A program of one C file, linked with what is installed at `prefix`.
pub fn compile(source: &Path, prefix: &Path, kind: Kind) -> PathBuf {
    let program = prefix.join(source.file_stem().unwrap());
    run(Command::new("cc")
        .args([
            "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-pthread", "-o",
        ])
        .arg(&program)
        .arg(source)
        .args(flags(prefix, kind)));
    program
}

/// The daemon of this build.
pub fn daemon() -> &'static Path {
    static DAEMON: LazyLock<PathBuf> = LazyLock::new(|| {
        if let Some(path) = std::env::var_os("PAPR_INTC") {
            return path.into();
        }
        find_daemon().unwrap()
    });
    &DAEMON
}
