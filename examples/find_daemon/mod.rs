//! Where an example finds the daemon of its own build.

use std::path::PathBuf;
use std::process::Command;

/// The daemon's binary. Under `cargo run` it is built first, as cargo builds only the example by itself;
/// otherwise it lies one folder above the examples.
pub fn find_daemon() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let profile = exe.parent().and_then(|examples| examples.parent());
    let daemon = profile
        .map(|p| p.join("papr-intc"))
        .ok_or("this program lies in no folder")?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args([
            "build",
            "--quiet",
            "--package",
            "papr-intc",
            "--bin",
            "papr-intc",
        ]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        if let Some(dir) = std::env::var_os("CARGO_MANIFEST_DIR") {
            build
                .arg("--manifest-path")
                .arg(PathBuf::from(dir).join("Cargo.toml"));
        }
        let built = build
            .status()
            .map_err(|e| format!("building the daemon: {e}"))?;
        if !built.success() {
            return Err("building the daemon failed".to_owned());
        }
    }
    if daemon.exists() {
        Ok(daemon)
    } else {
        Err(format!(
            "{} is not there; --daemon names another",
            daemon.display()
        ))
    }
}
