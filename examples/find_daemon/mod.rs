//! Where an example finds the daemon, and other examples, of its own build.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The daemon's binary. Under `cargo run` it is built first, as cargo builds only the example by itself;
/// otherwise it lies one folder above the examples.
pub fn find_daemon() -> Result<PathBuf, String> {
    build(&["--bin", "papr-intc"])?;
    let folder = own_folder()?;
    let profile = folder.parent().ok_or("this program lies in no folder")?;
    existing(profile.join("papr-intc"), "--daemon names another")
}

/// Another example's binary, which lies beside this one; built first under `cargo run`.
#[allow(dead_code)] // Not every example needs another.
pub fn find_example(name: &str) -> Result<PathBuf, String> {
    build(&["--example", name])?;
    existing(own_folder()?.join(name), "build the examples first")
}

fn own_folder() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let folder = exe.parent().map(Path::to_owned);
    folder.ok_or("this program lies in no folder".to_owned())
}

fn existing(path: PathBuf, otherwise: &str) -> Result<PathBuf, String> {
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not there; {otherwise}", path.display()))
    }
}

/// Builds `target` of this package if this program was started by cargo.
fn build(target: &[&str]) -> Result<(), String> {
    let Some(cargo) = std::env::var_os("CARGO") else {
        return Ok(());
    };
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "papr-intc"]);
    build.args(target);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    if let Some(dir) = std::env::var_os("CARGO_MANIFEST_DIR") {
        let manifest = PathBuf::from(dir).join("Cargo.toml");
        build.arg("--manifest-path").arg(manifest);
    }
    let what = target.join(" ");
    let built = build
        .status()
        .map_err(|e| format!("building {what}: {e}"))?;
    if built.success() {
        Ok(())
    } else {
        Err(format!("building {what} failed"))
    }
}
