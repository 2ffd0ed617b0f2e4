//! Migration streams of QEMU from and to our state: `papr-intc state convert`.

use std::fs;
use std::path::Path;
use std::process::Command;

use papr_intc_protocol::state::State;
use tempfile::NamedTempFile;

use super::qemu::Shape;

/// The state in a stream, and what was said.
pub fn from_qemu(stream: &Path, shape: Shape) -> (State, Vec<String>) {
    let out = NamedTempFile::new().unwrap();
    let [servers, vsmt] = [shape.servers(), shape.vsmt].map(|n| n.to_string());
    let notes = convert(
        Command::new(env!("CARGO_BIN_EXE_papr-intc"))
            .args(["state", "convert", "--from", "qemu", "--to", "papr"])
            .args(["--servers", &servers, "--vsmt", &vsmt])
            .arg(stream)
            .arg("--out")
            .arg(out.path()),
    );
    let state = fs::read(out.path()).unwrap();
    (State::decode(&state).unwrap(), notes)
}

/// Puts a state into the stream of its guest; the result is another file. Nothing must be said.
pub fn to_qemu(state: &State, into: &Path, out: &Path, shape: Shape) {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), state.encode().unwrap()).unwrap();
    let [servers, vsmt] = [shape.servers(), shape.vsmt].map(|n| n.to_string());
    let notes = convert(
        Command::new(env!("CARGO_BIN_EXE_papr-intc"))
            .args(["state", "convert", "--to", "qemu"])
            .args(["--servers", &servers, "--vsmt", &vsmt])
            .arg("--into")
            .arg(into)
            .arg(file.path())
            .arg("--out")
            .arg(out),
    );
    assert_eq!(notes, Vec::<String>::new());
}

/// What `papr-intc state show --json` says of either.
pub fn show(file: &Path, shape: Shape) -> String {
    let [servers, vsmt] = [shape.servers(), shape.vsmt].map(|n| n.to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_papr-intc"));
    command
        .args(["state", "show", "--json"])
        .args(["--servers", &servers, "--vsmt", &vsmt])
        .arg(file);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// Runs a conversion; the lines it says.
fn convert(command: &mut Command) -> Vec<String> {
    let done = command.output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{command:?}: {said}");
    said.lines().map(str::to_owned).collect()
}
