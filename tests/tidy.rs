//! House rules as a test: what a reviewer would otherwise have to look for in every file.
//!
//! The rules are textual and simple on purpose; each exception is listed here with its reason. Lines
//! after a file's first `#[cfg(test)]` module, files declared by such a module, and files under `tests`
//! and `benches` count as test code.
#![allow(clippy::unwrap_used)] // helpers of tests say what they mean with it

use std::fs;
use std::path::{Path, PathBuf};

/// Longest file, in lines.
const MAX_LINES: usize = 600;

/// Files that may be longer, and why.
const LONG: &[(&str, &str)] = &[];

/// Files that may contain `unsafe`, and what for.
const UNSAFE: &[(&str, &str)] = &[
    (
        "examples/crash_daemon/control.rs",
        "a page of a file is seen as atomics",
    ),
    (
        "examples/crash_daemon/trap.rs",
        "a signal handler makes system calls",
    ),
    (
        "examples/mock_vmm/device_process.rs",
        "inherited numbers become owned descriptors",
    ),
    ("frontend/capi/src/buffer.rs", "bytes for C are malloc's"),
    (
        "frontend/capi/src/callbacks.rs",
        "the VMM's pointer goes through our threads",
    ),
    ("frontend/capi/src/logging.rs", "a string of C's is read"),
    (
        "frontend/capi/src/machine.rs",
        "strings of C's are read, its structs written",
    ),
    ("frontend/capi/src/memory.rs", "descriptors come as numbers"),
    (
        "frontend/capi/src/pointers.rs",
        "strings, arrays and structs of C's are read",
    ),
    (
        "frontend/capi/src/source.rs",
        "an eventfd that comes as a number is duplicated",
    ),
    (
        "frontend/capi/src/start.rs",
        "what C hands in to begin, and back to end",
    ),
    ("frontend/capi/src/state.rs", "bytes of C's are read"),
    ("frontend/capi/src/vcpu.rs", "registers and cells of C's"),
    (
        "frontend/src/connection.rs",
        "received numbers become owned descriptors",
    ),
    (
        "frontend/src/event.rs",
        "an eventfd lent as a number is duplicated",
    ),
    (
        "protocol/src/layout/mapped.rs",
        "a mapping is seen as a slice of atomics",
    ),
    ("tests/no_allocation.rs", "an allocator that counts"),
    (
        "src/memory/foreign.rs",
        "the SIGBUS handler, and a mapping replaced in place",
    ),
    (
        "src/server/endpoint.rs",
        "an inherited number becomes an owned descriptor",
    ),
    (
        "src/server/socket.rs",
        "received numbers become owned descriptors",
    ),
];

/// What the crate `protocol` does not touch: it has no I/O, no threads, no clock.
const OUTSIDE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time",
    "println!",
];

/// Where it does nevertheless.
const OUTSIDE_ALLOWED: &[(&str, &str, &str)] = &[
    (
        "protocol/src/layout/mapped.rs",
        "std::fs",
        "the memfd to map",
    ),
    (
        "protocol/src/layout/storage.rs",
        "std::thread",
        "relax: a waiter gives its core away",
    ),
];

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "common", "manager", "helper", "helpers", "misc",
];

struct File {
    /// From the root of the repository, with `/`.
    name: String,
    text: String,
    /// Compiled for tests only.
    test: bool,
}

impl File {
    /// Code that is not test code: lines before the first test module, without comments.
    fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.iter().enumerate().position(|(i, line)| {
            *line == "#[cfg(test)]" && lines.get(i + 1).is_some_and(|l| l.starts_with("mod "))
        });
        let end = match tests {
            _ if self.is_test() => 0,
            Some(at) if lines[at + 1].ends_with('{') => at,
            _ => lines.len(),
        };
        code(&self.text).take(end)
    }

    fn is_test(&self) -> bool {
        let folder = |part| matches!(part, "tests" | "tests.rs" | "benches");
        self.test || self.name.split('/').any(folder)
    }

    /// Stems of the files of its out-of-line test modules.
    fn test_modules(&self) -> Vec<String> {
        let (dir, last) = self.name.rsplit_once('/').unwrap_or(("", &self.name));
        let stem = last.trim_end_matches(".rs");
        let dir = match stem {
            "lib" | "main" | "mod" => dir.to_owned(),
            _ => format!("{dir}/{stem}"),
        };
        let lines: Vec<&str> = self.text.lines().collect();
        lines
            .windows(2)
            .filter(|pair| pair[0] == "#[cfg(test)]")
            .filter_map(|pair| pair[1].strip_prefix("mod ")?.strip_suffix(';'))
            .map(|module| format!("{dir}/{module}"))
            .collect()
    }

    fn is_example(&self) -> bool {
        self.name.starts_with("examples/")
    }
}

/// Lines of code with their numbers, comments cut off.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| {
        let code = line.find("//").map_or(line, |at| &line[..at]);
        (i + 1, code)
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | ".git") {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

/// Every text file of the repository with one of these endings.
fn files(endings: &[&str]) -> Vec<File> {
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    paths.sort();
    let wanted = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        endings.contains(&extension.as_ref())
    };
    let read = |path: PathBuf| File {
        name: path
            .strip_prefix(root())
            .unwrap()
            .to_string_lossy()
            .into_owned(),
        text: fs::read_to_string(path).unwrap(),
        test: false,
    };
    paths.into_iter().filter(wanted).map(read).collect()
}

fn rust() -> Vec<File> {
    let mut files = files(&["rs"]);
    assert!(files.len() > 60, "the walk found {} files", files.len());
    let modules: Vec<String> = files.iter().flat_map(File::test_modules).collect();
    for file in &mut files {
        let of =
            |m: &String| file.name == format!("{m}.rs") || file.name.starts_with(&format!("{m}/"));
        file.test = modules.iter().any(of);
    }
    files
}

/// Fails with everything that was found, so that one run shows all of it.
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn every_file_says_what_it_is() {
    let silent = rust().into_iter().filter(|f| !f.text.starts_with("//! "));
    none(
        "files that do not open with `//!`",
        silent.map(|f| f.name).collect(),
    );
}

#[test]
fn files_have_one_subject_and_fit_a_sitting() {
    let files = rust();
    let lines = |name: &str| {
        files
            .iter()
            .find(|f| f.name == name)
            .map_or(0, |f| f.text.lines().count())
    };
    let long = files.iter().filter(|f| f.text.lines().count() > MAX_LINES);
    let long = long.filter(|f| !LONG.iter().any(|(name, _)| *name == f.name));
    none(
        "files over the limit",
        long.map(|f| format!("{} {}", f.name, f.text.lines().count()))
            .collect(),
    );
    let idle = LONG.iter().filter(|(name, _)| lines(name) <= MAX_LINES);
    none(
        "exceptions that are not needed",
        idle.map(|(name, _)| (*name).to_owned()).collect(),
    );
}

#[test]
fn names_say_something() {
    let stem = |f: &File| {
        let last = f.name.rsplit('/').next().unwrap_or_default();
        last.trim_end_matches(".rs").to_owned()
    };
    let empty = rust()
        .into_iter()
        .filter(|f| EMPTY_NAMES.contains(&stem(f).as_str()));
    none(
        "files whose name says nothing",
        empty.map(|f| f.name).collect(),
    );
}

#[test]
fn unsafe_is_where_it_may_be() {
    // In two pieces, so that this file does not find itself.
    let word = concat!("uns", "afe");
    let uses = |line: &str| {
        [" {", " impl", " fn", " extern"]
            .iter()
            .any(|next| line.contains(&format!("{word}{next}")))
    };
    let mut wrong = Vec::new();
    let mut used = Vec::new();
    for file in rust() {
        if !code(&file.text).any(|(_, line)| uses(line)) {
            continue;
        }
        if UNSAFE.iter().any(|(name, _)| *name == file.name) {
            used.push(file.name);
        } else {
            wrong.push(file.name);
        }
    }
    none("unsafe outside of its list", wrong);
    let idle = UNSAFE
        .iter()
        .filter(|(name, _)| !used.iter().any(|u| u == name));
    none(
        "files listed for nothing",
        idle.map(|(name, _)| (*name).to_owned()).collect(),
    );
}

#[test]
fn nothing_shipped_panics_without_saying_why() {
    let mut found = Vec::new();
    for file in rust() {
        for (n, line) in file.shipped() {
            let at = || format!("{}:{n}", file.name);
            if line.contains(".unwrap()") {
                found.push(format!("{} unwrap", at()));
            }
            for unfinished in ["todo!", "unimplemented!", "dbg!"] {
                if line.contains(unfinished) {
                    found.push(format!("{} {unfinished}", at()));
                }
            }
            // An `expect` states an invariant: in words, on its line or the next.
            let next = file.text.lines().nth(n).unwrap_or_default();
            if let Some(at_expect) = line.find(".expect(") {
                let argument = line[at_expect + ".expect(".len()..].trim();
                let said = if argument.is_empty() {
                    next.trim()
                } else {
                    argument
                };
                if !said.starts_with('"') || said.len() < 12 {
                    found.push(format!("{} expect without a reason", at()));
                }
            }
            if line.contains("panic!(") && !file.is_example() {
                found.push(format!("{} panic", at()));
            }
        }
    }
    none("in shipped code", found);
}

#[test]
fn nothing_is_left_to_do_in_comments() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let mut found = Vec::new();
    for file in rust() {
        for (n, line) in (1..).zip(file.text.lines()) {
            if marks.iter().any(|mark| line.contains(mark)) {
                found.push(format!("{}:{n}", file.name));
            }
        }
    }
    none("marks", found);
}

#[test]
fn the_repository_stands_alone() {
    // In pieces, as above.
    let places = [
        concat!("/wo", "rk/"),
        concat!("/t", "mp/"),
        concat!("../sha", "red"),
    ];
    let mut found = Vec::new();
    for file in files(&["rs", "md", "toml"]) {
        for (n, line) in (1..).zip(file.text.lines()) {
            if places.iter().any(|place| line.contains(place)) {
                found.push(format!("{}:{n}: {}", file.name, line.trim()));
            }
        }
    }
    none("paths of one machine", found);
}

#[test]
fn the_protocol_crate_has_no_outside() {
    let mut found = Vec::new();
    for file in rust() {
        if !file.name.starts_with("protocol/src/") {
            continue;
        }
        for (n, line) in file.shipped() {
            for outside in OUTSIDE.iter().filter(|o| line.contains(**o)) {
                let allowed = OUTSIDE_ALLOWED
                    .iter()
                    .any(|(name, what, _)| *name == file.name && what == outside);
                if !allowed {
                    found.push(format!("{}:{n} {outside}", file.name));
                }
            }
        }
    }
    none("in the crate of the contract", found);
}

#[test]
fn layers_do_not_reach_into_each_other() {
    let rules = [
        ("protocol/src/", "papr_intc::"),
        ("protocol/src/", "papr_intc_frontend"),
        ("frontend/src/", "papr_intc::"),
        ("src/", "papr_intc_frontend"),
        // The data plane and the calls do not know the socket.
        ("protocol/src/plane/", "crate::wire"),
        ("protocol/src/papr/", "crate::wire"),
        ("protocol/src/layout/", "crate::plane"),
        // The control plane knows no sockets; memory knows neither.
        ("src/control/", "crate::server"),
        ("src/memory/", "crate::server"),
        ("src/memory/", "crate::control"),
        ("src/papr/", "crate::server"),
    ];
    let mut found = Vec::new();
    for file in rust() {
        for (folder, forbidden) in rules {
            if !file.name.starts_with(folder) {
                continue;
            }
            for (n, line) in file.shipped() {
                if line.contains(forbidden) {
                    found.push(format!("{}:{n} {forbidden}", file.name));
                }
            }
        }
    }
    none("uses across layers", found);
    let manifest = fs::read_to_string(root().join("frontend/Cargo.toml")).unwrap();
    let daemon = |l: &&str| l.starts_with("papr-intc.") || l.starts_with("papr-intc ");
    assert_eq!(manifest.lines().find(daemon), None, "the front-end's crate");
}

#[test]
fn every_named_difference_from_qemu_is_a_row_of_its_page() {
    let page = fs::read_to_string(root().join("docs/fidelity.md")).unwrap();
    let rows: Vec<&str> = ids(&page).collect();
    let mut found = Vec::new();
    for file in files(&["rs", "md"]) {
        if file.name == "docs/fidelity.md" || file.is_test() {
            continue;
        }
        for id in ids(&file.text) {
            if !rows.contains(&id) {
                found.push(format!("{}: {id}", file.name));
            }
        }
    }
    none("ids without a row in docs/fidelity.md", found);
}

/// Words like F-XIVE-RESET.
fn ids(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .map(|word| word.trim_end_matches('-'))
        .filter(|word| {
            word.len() > 4
                && word.starts_with("F-")
                && word[2..]
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '-')
        })
}

#[test]
fn relative_links_of_the_pages_lead_somewhere() {
    let mut found = Vec::new();
    for file in files(&["md"]) {
        let dir = root().join(&file.name);
        let dir = dir.parent().unwrap();
        for (at, _) in file.text.match_indices("](") {
            let target = &file.text[at + 2..];
            let target = &target[..target.find(')').unwrap_or(0)];
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !dir.join(path).exists() {
                found.push(format!("{}: {target}", file.name));
            }
        }
    }
    none("links to nothing", found);
}
