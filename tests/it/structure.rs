//! Reads the sources and holds them to the map: who may import whom, where effects are, who names which crate.
//!
//! Text only, no compiler: comments, strings and test code are left out, then every path (`a::b::{c, d}`) is looked
//! at. A name that is smuggled in under another one by `use … as …` is not seen.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Values in, values out.
const CORE: [&str; 11] = [
    "manifest", "schema", "workload", "content", "desired", "observed", "backoff", "refusal",
    "plan", "oci", "status",
];

/// Effects. These know the core and themselves, not each other.
const LEAVES: [&str; 8] =
    ["runtime", "host", "image", "source", "log", "engine", "rundir", "config"];

/// What the core must not name: other tasks, logging, files, the network, processes, the environment.
const EFFECTS: [&[&str]; 9] = [
    &["tokio"],
    &["tracing"],
    &["rustix"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "os"],
    &["std", "process"],
    &["std", "env"],
    &["std", "thread"],
];

/// The name of the architecture and the like, which were decided when this was compiled.
const CONSTANTS: [&str; 3] = ["std", "env", "consts"];

/// Asking for the time is an effect wherever the type came from.
const CLOCKS: [&[&str]; 2] = [&["Instant", "now"], &["SystemTime", "now"]];

/// Crates that one room keeps to itself, by the start of the paths that may name them.
const PRIVATE_CRATES: [(&str, &str); 4] = [
    ("containerd_client", "src/runtime/containerd"),
    ("tonic", "src/runtime/containerd"),
    ("granit_parser", "src/manifest/yaml"),
    ("notify", "src/source/events"),
];

/// More than this in `main.rs` belongs into the library, where it can be tested.
const MAIN_LINES: usize = 60;

#[test]
fn the_sources_keep_to_the_map() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = BTreeMap::new();
    for directory in ["src", "tests", "examples", "benches"] {
        gather(root, Path::new(directory), &mut sources);
    }
    assert!(sources.contains_key("src/lib.rs") && sources.contains_key("tests/it/structure.rs"));
    let found = violations(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Reads every Rust file below a directory, under its path relative to the root.
fn gather(root: &Path, directory: &Path, sources: &mut BTreeMap<String, String>) {
    let Ok(entries) = root.join(directory).read_dir() else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let path = directory.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            if entry.file_name() != "target" {
                gather(root, &path, sources);
            }
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = std::fs::read_to_string(root.join(&path)).unwrap();
            sources.insert(path.to_str().unwrap().to_owned(), text);
        }
    }
}

/// Everything that is wrong, one line each: `path:line: what`.
fn violations(sources: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources {
        let mut report =
            |line: usize, what: fmt::Arguments<'_>| found.push(format!("{path}:{line}: {what}"));
        let tokens = tokens(text);
        if path.ends_with("/mod.rs") {
            report(1, format_args!("`foo.rs` and `foo/`, never `foo/mod.rs`"));
        }
        if path == "src/main.rs" && text.lines().count() > MAIN_LINES {
            report(1, format_args!("`main.rs` has more than {MAIN_LINES} lines"));
        }
        for place in tokens.windows(3) {
            if place[0].is("#") && place[1].is("[") && place[2].is("ignore") {
                report(
                    place[2].line,
                    format_args!(
                        "no test is ignored; one that cannot run fails with what is missing"
                    ),
                );
            }
        }
        if let Some((parent, name)) = declared_in(path, sources) {
            let is_declared = sources.get(&parent).is_some_and(|text| declares(text, &name));
            if !is_declared {
                report(1, format_args!("forgotten: `{parent}` has no `mod {name}`"));
            }
        }
        if !path.starts_with("src/") || path == "src/lib.rs" || is_test_file(path) {
            continue;
        }
        let module = module(path);
        let room = module[0].as_str();
        let tokens = without_tests(&tokens);
        for reference in references(&tokens) {
            let Reference { line, segments } = &reference;
            for (name, home) in PRIVATE_CRATES {
                if segments[0] == name && !path.starts_with(home) {
                    report(*line, format_args!("only `{home}` names `{name}`"));
                }
            }
            if CORE.contains(&room) {
                let effects = EFFECTS.iter().filter(|effect| {
                    reference.starts_with(effect) && !reference.starts_with(&CONSTANTS)
                });
                let clocks = CLOCKS.iter().filter(|clock| reference.ends_with(clock));
                for effect in effects.chain(clocks) {
                    report(
                        *line,
                        format_args!("core module `{room}` names `{}`", effect.join("::")),
                    );
                }
            }
            let Some(other) = reference.room(&module) else { continue };
            if let Err(why) = may_import(room, &other) {
                report(*line, format_args!("{why}"));
            }
        }
    }
    found
}

/// Who may import whom; `main` and `lib` are above everything.
fn may_import(room: &str, other: &str) -> Result<(), String> {
    let known = |it: &str| {
        CORE.contains(&it) || LEAVES.contains(&it) || ["controller", "cli", "main"].contains(&it)
    };
    for name in [room, other] {
        if !known(name) {
            return Err(format!(
                "`{name}` is not on the map: add it to the core or the edge here and in ARCHITECTURE.md"
            ));
        }
    }
    let allowed = match room {
        _ if room == other => true,
        "main" | "cli" => other != "main",
        "controller" => other != "main" && other != "cli",
        // A lock and a pid file name one process for ever: by its start time and the boot.
        "rundir" => CORE.contains(&other) || other == "host",
        "engine" => CORE.contains(&other) || other == "host" || other == "rundir",
        _ => CORE.contains(&other),
    };
    let ring = if CORE.contains(&room) { "core" } else { "edge" };
    if allowed { Ok(()) } else { Err(format!("{ring} module `{room}` imports `{other}`")) }
}

/// The file that has to declare a file as its module, and the module's name; `None` for the root of a crate.
fn declared_in(path: &str, sources: &BTreeMap<String, String>) -> Option<(String, String)> {
    let (directory, file) = path.rsplit_once('/')?;
    let name = file.strip_suffix(".rs")?;
    let is_root =
        matches!(name, "main" | "lib") || (directory == "benches" || directory == "tests");
    // Packages of their own below examples/ are laid out as they like.
    if is_root || path.starts_with("examples/") {
        return None;
    }
    let parent = match directory {
        "src" => "src/lib.rs".to_owned(),
        _ if sources.contains_key(&format!("{directory}/main.rs")) => {
            format!("{directory}/main.rs")
        }
        _ => format!("{directory}.rs"),
    };
    Some((parent, name.to_owned()))
}

fn declares(text: &str, name: &str) -> bool {
    tokens(text).windows(3).any(|it| it[0].is("mod") && it[1].is(name) && it[2].is(";"))
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// `src/runtime/containerd.rs` is `["runtime", "containerd"]`.
fn module(path: &str) -> Vec<String> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs");
    inside.split('/').map(str::to_owned).collect()
}

/// One path in the code with its groups expanded: `a::{b, c::d}` is two.
#[derive(Debug)]
struct Reference {
    line: usize,
    // Invariant: not empty.
    segments: Vec<String>,
}

impl Reference {
    fn starts_with(&self, start: &[&str]) -> bool {
        self.segments.len() >= start.len() && self.segments.iter().zip(start).all(|(a, b)| a == b)
    }

    fn ends_with(&self, end: &[&str]) -> bool {
        self.segments.len() >= end.len()
            && self.segments.iter().rev().zip(end.iter().rev()).all(|(a, b)| a == b)
    }

    /// The top-level module of this crate that it leads to.
    fn room(&self, module: &[String]) -> Option<String> {
        let supers = self.segments.iter().take_while(|it| *it == "super").count();
        match self.segments[0].as_str() {
            // `evenkeel::` is how `main.rs` names the library.
            "crate" | "evenkeel" => self.segments.get(1).cloned(),
            // Inside an inline module, `super` leads less far than it seems; what it then names is no room.
            "super" if supers == module.len() => {
                let all = CORE.iter().chain(&LEAVES).chain(&["controller", "cli"]);
                self.segments.get(supers).filter(|it| all.clone().any(|room| room == it)).cloned()
            }
            _ => None,
        }
    }
}

/// Words that a path may stand behind.
const KEYWORDS: [&str; 8] = ["as", "dyn", "else", "impl", "in", "mut", "return", "use"];

fn references(tokens: &[Token]) -> Vec<Reference> {
    let mut found = Vec::new();
    let mut place = 0;
    while place < tokens.len() {
        // `a::b` is one path; `use ::b` and `Vec::<A>::b` are paths of their own, and the latter leads nowhere.
        let is_inside = place > 1
            && tokens[place - 1].is("::")
            && (tokens[place - 2].is_name() || tokens[place - 2].is(">"))
            && !KEYWORDS.contains(&tokens[place - 2].text.as_str());
        if tokens[place].is_name() && !is_inside && !KEYWORDS.contains(&tokens[place].text.as_str())
        {
            place = follow(tokens, place, &[], &mut found);
        } else {
            place += 1;
        }
    }
    found
}

/// Follows the path that starts at a name, and the groups in it; returns the place after it.
fn follow(tokens: &[Token], start: usize, before: &[String], found: &mut Vec<Reference>) -> usize {
    let mut segments = before.to_vec();
    let line = tokens[start].line;
    let mut place = start;
    loop {
        if place < tokens.len() && tokens[place].is_name() {
            segments.push(tokens[place].text.clone());
            place += 1;
            if place < tokens.len() && tokens[place].is("::") {
                place += 1;
                continue;
            }
        } else if place < tokens.len()
            && tokens[place].is("{")
            && place > start
            && tokens[place - 1].is("::")
        {
            place += 1;
            while place < tokens.len() && !tokens[place].is("}") {
                place = if tokens[place].is_name() {
                    follow(tokens, place, &segments, found)
                } else {
                    place + 1
                };
            }
            return place + 1;
        }
        found.push(Reference { line, segments });
        return place;
    }
}

/// A name, `::`, or one character of punctuation.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    line: usize,
    text: String,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        self.text == text
    }

    fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// Takes a source apart; comments, strings, characters, lifetimes and numbers are left out.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |place: usize| chars.get(place).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let (mut place, mut line) = (0, 1);
    while place < chars.len() {
        let start = place;
        match at(place) {
            '/' if at(place + 1) == '/' => {
                while place < chars.len() && at(place) != '\n' {
                    place += 1;
                }
            }
            '/' if at(place + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(place), at(place + 1)) {
                        ('/', '*') => (depth, place) = (depth + 1, place + 2),
                        ('*', '/') => (depth, place) = (depth - 1, place + 2),
                        _ => place += 1,
                    }
                    if depth == 0 || place >= chars.len() {
                        break;
                    }
                }
            }
            '"' => place = after_string(&chars, place + 1),
            '\'' if at(place + 1) == '\\' => {
                place += 3;
                while place < chars.len() && at(place) != '\'' {
                    place += 1;
                }
                place += 1;
            }
            '\'' if at(place + 2) == '\'' => place += 3,
            '\'' => place += 1 + chars[place + 1..].iter().take_while(|c| is_word(**c)).count(),
            ':' if at(place + 1) == ':' => {
                found.push(Token { line, text: "::".to_owned() });
                place += 2;
            }
            c if is_word(c) => {
                while is_word(at(place)) {
                    place += 1;
                }
                let word: String = chars[start..place].iter().collect();
                let hashes = chars[place..].iter().take_while(|c| **c == '#').count();
                if matches!(word.as_str(), "r" | "br" | "cr") && at(place + hashes) == '"' {
                    place = after_raw_string(&chars, place + hashes + 1, hashes);
                } else if matches!(word.as_str(), "b" | "c") && at(place) == '"' {
                    place = after_string(&chars, place + 1);
                } else if word == "b" && at(place) == '\'' {
                    // The next round takes the character.
                } else if !c.is_numeric() {
                    found.push(Token { line, text: word });
                }
            }
            c if c.is_whitespace() => place += 1,
            c => {
                found.push(Token { line, text: c.to_string() });
                place += 1;
            }
        }
        line += chars[start..place.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn after_string(chars: &[char], start: usize) -> usize {
    let mut place = start;
    while place < chars.len() && chars[place] != '"' {
        place += if chars[place] == '\\' { 2 } else { 1 };
    }
    place + 1
}

fn after_raw_string(chars: &[char], start: usize, hashes: usize) -> usize {
    let is_end = |place: usize| {
        chars[place] == '"'
            && chars[place + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    (start..chars.len())
        .find(|place| is_end(*place))
        .map_or(chars.len(), |place| place + 1 + hashes)
}

/// Leaves out every item under `#[cfg(test)]`.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let is_mark = |it: &[Token]| {
        let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
        it.len() >= mark.len() && it.iter().zip(mark).all(|(token, text)| token.is(text))
    };
    let mut kept = Vec::new();
    let mut place = 0;
    while place < tokens.len() {
        if !is_mark(&tokens[place..]) {
            kept.push(tokens[place].clone());
            place += 1;
            continue;
        }
        // The item ends with its first block, or with a semicolon before one; a `use` has both.
        let is_use =
            tokens[place..].iter().skip(7).find(|it| !it.is("pub")).is_some_and(|it| it.is("use"));
        let mut depth = 0;
        while place < tokens.len() {
            let token = &tokens[place];
            place += 1;
            match token.text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 && (token.is(";") || (token.is("}") && !is_use)) {
                break;
            }
        }
    }
    kept
}

/// Violations of a small tree in which everything is declared.
fn planted(path: &str, text: &str) -> Vec<String> {
    let mut sources = BTreeMap::from([
        (
            "src/lib.rs".to_owned(),
            "mod plan; mod host; mod runtime; mod controller; mod cli; mod manifest; mod extra;"
                .to_owned(),
        ),
        ("src/runtime.rs".to_owned(), "mod containerd; mod memory;".to_owned()),
        ("src/manifest.rs".to_owned(), "mod yaml;".to_owned()),
        ("tests/it/main.rs".to_owned(), "mod structure;".to_owned()),
    ]);
    let text = format!("{}{text}", sources.get(path).cloned().unwrap_or_default());
    sources.insert(path.to_owned(), text);
    violations(&sources)
}

#[track_caller]
fn check(path: &str, text: &str, expected: &[&str]) {
    assert_eq!(planted(path, text), expected, "{path}: {text}");
}

#[test]
fn a_core_module_that_imports_the_edge_is_found() {
    let expected = ["src/plan.rs:1: core module `plan` imports `host`"];
    check("src/plan.rs", "use crate::host::Host;", &expected);
    check("src/plan.rs", "fn f() { crate::host::f() }", &expected);
    check(
        "src/plan.rs",
        "use crate::{desired::{A, B}, host::{self, Host}, plan};",
        &[expected[0]; 2],
    );
    check("src/plan.rs", "use super::host;", &expected);
    check("src/plan.rs", "use super::{desired, host::Host};", &expected);
}

#[test]
fn edge_modules_that_import_each_other_are_found() {
    check(
        "src/host.rs",
        "use crate::runtime::Runtime;",
        &["src/host.rs:1: edge module `host` imports `runtime`"],
    );
    check(
        "src/runtime/memory.rs",
        "\n\nuse super::super::controller;",
        &["src/runtime/memory.rs:3: edge module `runtime` imports `controller`"],
    );
    check(
        "src/controller.rs",
        "use crate::cli;",
        &["src/controller.rs:1: edge module `controller` imports `cli`"],
    );
}

#[test]
fn a_module_that_is_not_on_the_map_is_found() {
    let what =
        "`extra` is not on the map: add it to the core or the edge here and in ARCHITECTURE.md";
    check("src/extra.rs", "use crate::plan;", &[&format!("src/extra.rs:1: {what}")]);
    check("src/host.rs", "use crate::extra;", &[&format!("src/host.rs:1: {what}")]);
}

#[test]
fn what_the_map_allows_is_not_a_violation() {
    check(
        "src/plan.rs",
        "use crate::desired; use crate::{workload::{A, B}, observed}; use super::oci;",
        &[],
    );
    check(
        "src/host.rs",
        "use crate::workload::Name; use std::fs; fn f() { tokio::spawn(x); }",
        &[],
    );
    check(
        "src/runtime/containerd.rs",
        "use super::{Error, Runtime}; use containerd_client::connect; use tonic::Code;",
        &[],
    );
    check(
        "src/controller.rs",
        "use crate::{host, runtime, plan, source, log, engine, rundir, config};",
        &[],
    );
    check("src/cli.rs", "use crate::{controller, host};", &[]);
    check("src/main.rs", "fn main() { evenkeel::cli::main() }", &[]);
}

#[test]
fn effects_in_the_core_are_found() {
    let found = |what: &str| format!("src/plan.rs:1: core module `plan` names `{what}`");
    let cases = [
        ("use tokio::sync::watch;", "tokio"),
        ("fn f() { tracing::info!(); }", "tracing"),
        ("use std::fs::File;", "std::fs"),
        ("use std::{collections::BTreeMap, fs};", "std::fs"),
        ("use ::std::fs;", "std::fs"),
        ("use std::process::Command;", "std::process"),
        ("fn f() { std::env::var(x) }", "std::env"),
        ("fn f() { std::time::SystemTime::now(); }", "SystemTime::now"),
        ("use std::time::Instant; fn f() { Instant::now(); }", "Instant::now"),
    ];
    for (text, what) in cases {
        check("src/plan.rs", text, &[&found(what)]);
    }
}

#[test]
fn effects_in_comments_strings_and_tests_are_no_effects() {
    check(
        "src/plan.rs",
        "//! Names neither tokio::spawn nor crate::host.\n/* /* std::fs::File */ tokio::x */",
        &[],
    );
    check(
        "src/plan.rs",
        r###"const A: &str = "tokio::x \" std::fs::y"; const B: &str = r##"tracing::"# info"##;"###,
        &[],
    );
    check(
        "src/plan.rs",
        r#"fn f<'a>(c: char) -> bool { c == '"' || c == '\'' || c == b'"'.into() } const C: &str = "tokio::x";"#,
        &[],
    );
    check("src/plan.rs", "#[cfg(test)] mod tests { use std::fs; mod a { use tokio::x; } }", &[]);
    check("src/plan.rs", "#[cfg(test)] use std::{fs, io}; #[cfg(test)] fn f() { tokio::x() }", &[]);
    check("src/plan.rs", "mod tests;", &[]);
}

#[test]
fn effects_after_comments_strings_and_tests_are_found() {
    let found = "src/plan.rs:2: core module `plan` names `tokio`";
    for before in [
        "// x",
        "/* /* x */ */",
        r#"const A: &str = "\\";"#,
        r##"const A: &str = r#"""#;"##,
        "const C: char = '\"';",
    ] {
        check("src/plan.rs", &format!("{before}\nuse tokio::x;"), &[found]);
    }
    check("src/plan.rs", "#[cfg(test)] mod tests { fn f() {} }\nuse tokio::x;", &[found]);
    check("src/plan.rs", "#[cfg(test)] use std::{fs};\nuse tokio::x;", &[found]);
}

#[test]
fn crates_outside_of_their_room_are_found() {
    check(
        "src/host.rs",
        "use tonic::Status;",
        &["src/host.rs:1: only `src/runtime/containerd` names `tonic`"],
    );
    check(
        "src/runtime/memory.rs",
        "fn f() { containerd_client::connect() }",
        &["src/runtime/memory.rs:1: only `src/runtime/containerd` names `containerd_client`"],
    );
    check(
        "src/manifest.rs",
        " use granit_parser::Parser;",
        &["src/manifest.rs:1: only `src/manifest/yaml` names `granit_parser`"],
    );
    check("src/manifest/yaml.rs", "use granit_parser::Parser;", &[]);
}

#[test]
fn forgotten_files_are_found() {
    check(
        "tests/it/extra.rs",
        "",
        &["tests/it/extra.rs:1: forgotten: `tests/it/main.rs` has no `mod extra`"],
    );
    check(
        "src/forgotten.rs",
        "",
        &["src/forgotten.rs:1: forgotten: `src/lib.rs` has no `mod forgotten`"],
    );
    check(
        "src/host/real.rs",
        "",
        &["src/host/real.rs:1: forgotten: `src/host.rs` has no `mod real`"],
    );
    check("tests/it/structure.rs", "", &[]);
}

#[test]
fn ignored_tests_mod_files_and_a_long_main_are_found() {
    let ignored = "no test is ignored; one that cannot run fails with what is missing";
    check(
        "tests/it/structure.rs",
        "\n#[ignore]\nfn f() {}",
        &[&format!("tests/it/structure.rs:2: {ignored}")],
    );
    check(
        "tests/it/structure.rs",
        "#[ignore = \"slow\"]",
        &[&format!("tests/it/structure.rs:1: {ignored}")],
    );
    assert_eq!(
        planted("src/host/mod.rs", "")[0],
        "src/host/mod.rs:1: `foo.rs` and `foo/`, never `foo/mod.rs`"
    );
    check("src/main.rs", &"\n".repeat(60), &[]);
    check("src/main.rs", &"\n".repeat(61), &["src/main.rs:1: `main.rs` has more than 60 lines"]);
}
