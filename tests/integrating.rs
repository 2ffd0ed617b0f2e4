//! The C of docs/integrating.md, all of it as one file, passes the compiler with the header of this build. (Its Rust
//! is compiled as documentation of the front-end crate.)

use std::error::Error;
use std::io::Write;
use std::process::{Command, Stdio};

/// The blocks of the guide, in order; empty lines in the place of the rest, so that the compiler's line numbers are right.
fn c_blocks(guide: &str) -> String {
    let mut inside = false;
    let lines = guide.lines().map(|line| {
        let fence = line.starts_with("```");
        inside = if fence { line == "```c" } else { inside };
        if inside && !fence { line } else { "" }
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn the_c_of_the_guide_compiles_with_the_header() -> Result<(), Box<dyn Error>> {
    let source = c_blocks(include_str!("../docs/integrating.md"));
    assert!(source.matches("papr_intc_").count() > 30, "the guide has C");
    let root = env!("CARGO_MANIFEST_DIR");
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
        .arg(format!("-I{root}/frontend/capi/include"))
        .args(["-x", "c", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    compiler
        .stdin
        .take()
        .ok_or("a pipe")?
        .write_all(source.as_bytes())?;
    assert!(
        compiler.wait()?.success(),
        "the lines are those of docs/integrating.md"
    );
    Ok(())
}
