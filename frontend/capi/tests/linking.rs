//! The header compiles, the library installs, and a C program runs with it: as documented, with what the system has.

#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

mod cc;

use std::fs;
use std::path::Path;
use std::process::Command;

use cc::{Kind, compile, daemon, have, install, package, run};

const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"];

/// Compiles a file of nothing but the header, included twice.
fn header_compiles(compiler: &str, language: &str, standard: &str) {
    if !have(compiler, "the header was not compiled") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("only_the_header");
    fs::write(
        &file,
        "#include \"papr_intc.h\"\n#include \"papr_intc.h\"\n",
    )
    .unwrap();
    run(Command::new(compiler)
        .args(STRICT)
        .args([standard, "-x", language, "-I"])
        .arg(package().join("include"))
        .arg(&file));
}

#[test]
fn the_header_is_c99() {
    header_compiles("cc", "c", "-std=c99");
}

#[test]
fn the_header_is_cpp() {
    header_compiles("c++", "c++", "-std=c++11");
}

/// Compiles the example as its comment says, runs it, and reads what it prints.
fn example_runs(kind: Kind) {
    if !have("cc", "the example was not run") || !have("pkg-config", "the example was not run") {
        return;
    }
    let prefix = tempfile::tempdir().unwrap();
    install(kind, prefix.path());
    let program = compile(&package().join("examples/vmm.c"), prefix.path(), kind);
    for choice in ["xive", "xics"] {
        let mut command = Command::new(&program);
        command.arg(daemon()).arg(choice);
        let printed = match kind {
            Kind::Static => run(&mut command),
            Kind::Shared => run(command.env("LD_LIBRARY_PATH", prefix.path().join("lib"))),
        };
        println!("{printed}");
        let mut lines = printed.lines();
        let chosen = format!("CAS: {}, device tree of ", choice.to_uppercase());
        assert!(lines.next().unwrap().starts_with(&chosen), "{printed}");
        let rest: Vec<_> = lines.collect();
        let expected = [
            "1000 of 1000 interrupts",
            "1000 of 1000 interrupts after kill -9",
            "1000 of 1000 interrupts after 1 restart",
        ];
        assert_eq!(rest, expected);
    }
}

#[test]
fn the_example_runs_with_the_static_library() {
    example_runs(Kind::Static);
}

#[test]
fn the_example_runs_with_the_shared_library() {
    example_runs(Kind::Shared);
}

#[test]
fn the_shared_library_has_its_soname_and_exports_the_header_and_nothing_else() {
    if !have("cc", "nothing was installed") || !have("readelf", "the library was not looked at") {
        return;
    }
    let prefix = tempfile::tempdir().unwrap();
    install(Kind::Shared, prefix.path());
    let library = prefix.path().join("lib/libpapr_intc.so");
    let dynamic = run(Command::new("readelf").arg("-dW").arg(&library));
    assert!(dynamic.contains("soname: [libpapr_intc.so.0]"), "{dynamic}");
    assert!(prefix.path().join("lib/libpapr_intc.so.0").exists());

    let symbols = run(Command::new("readelf")
        .args(["--dyn-syms", "-W"])
        .arg(&library));
    let mut exported: Vec<&str> = symbols
        .lines()
        .filter(|line| line.contains(" GLOBAL ") && !line.contains(" UND "))
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    exported.sort_unstable();
    let header = fs::read_to_string(package().join("include/papr_intc.h")).unwrap();
    let mut declared: Vec<&str> = header.lines().filter_map(declares).collect();
    declared.sort_unstable();
    assert_eq!(exported, declared);
    assert!(declared.len() > 40, "{}", declared.len());
}

/// The function that this line of the header declares.
fn declares(line: &str) -> Option<&str> {
    let code = line.starts_with(|c: char| c.is_ascii_lowercase()) && !line.starts_with("typedef");
    let name = line.split('(').next()?.rsplit([' ', '*']).next()?;
    (code && line.contains('(') && name.starts_with("papr_intc_")).then_some(name)
}

#[test]
fn an_installation_can_be_staged_and_a_wrong_prefix_is_named() {
    let staged = tempfile::tempdir().unwrap();
    let profile = if cfg!(debug_assertions) {
        "dev"
    } else {
        "release"
    };
    let mut install = Command::new(package().join("install"));
    install
        .env("PROFILE", profile)
        .env("DESTDIR", staged.path());
    run(install.arg("/usr"));
    let pc = fs::read_to_string(staged.path().join("usr/lib/pkgconfig/papr-intc.pc")).unwrap();
    assert!(pc.starts_with("prefix=/usr\n") && !pc.contains('@'), "{pc}");
    let lib = staged.path().join("usr/lib");
    assert!(lib.join("libpapr_intc.a").exists() && lib.join("libpapr_intc.so").exists());

    let wrong = Command::new(package().join("install"))
        .arg("here")
        .output()
        .unwrap();
    assert!(!wrong.status.success() && Path::new("here").metadata().is_err());
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(said, "install: PREFIX here is not absolute\n");
}
