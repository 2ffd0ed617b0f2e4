//! Migration streams of QEMU from and to our state: the command `papr-intc state`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use papr_intc_protocol::state::State;
use tempfile::NamedTempFile;

use super::qemu::Shape;

/// The state in a stream, and what was said.
pub fn from_qemu(stream: &Path, shape: Shape) -> (State, Vec<String>) {
    let out = NamedTempFile::new().unwrap();
    let mut command = command("convert", stream, shape);
    command.args(["--from", "qemu", "--to", "papr"]);
    let done = run(command.arg("--out").arg(out.path()));
    let state = State::decode(&fs::read(out.path()).unwrap()).unwrap();
    (state, lines(done.stderr))
}

/// Puts a state into the stream of its guest; the result is another file. Nothing must be said.
pub fn to_qemu(state: &State, into: &Path, out: &Path, shape: Shape) {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), state.encode().unwrap()).unwrap();
    let mut command = command("convert", file.path(), shape);
    command.args(["--to", "qemu", "--into"]).arg(into);
    let done = run(command.arg("--out").arg(out));
    assert_eq!(lines(done.stderr), Vec::<String>::new());
}

/// What `show --json` says of either.
pub fn show(file: &Path, shape: Shape) -> Vec<String> {
    lines(run(command("show", file, shape).arg("--json")).stdout)
}

/// A command for a file; the two numbers are what a stream with XICS only does not say.
fn command(name: &str, file: &Path, shape: Shape) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_papr-intc"));
    command.args(["state", name]).arg(file);
    for (option, value) in [("--servers", shape.servers()), ("--vsmt", shape.vsmt)] {
        command.args([option, &value.to_string()]);
    }
    command
}

fn run(command: &mut Command) -> Output {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {done:?}");
    done
}

fn lines(text: Vec<u8>) -> Vec<String> {
    let text = String::from_utf8(text).unwrap();
    text.lines().map(str::to_owned).collect()
}
