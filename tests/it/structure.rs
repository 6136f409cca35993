//! Reads the sources and holds them to the map: who may import whom, where effects are, who names which crate.
//!
//! Text only, no compiler: comments, strings and test code are left out, then every path (`a::b::{c, d}`) is looked
//! at. What would lead around that is refused as a whole: other names and globs of crates and of the root of this
//! one, sources from another place, and, in the core, crates that nobody said are free of effects. Methods have no
//! path and are known by their names.
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
const LEAVES: [&str; 10] =
    ["runtime", "host", "image", "registry", "cni", "source", "log", "engine", "rundir", "config"];

/// What the core must not name: files, the network, processes, the environment, clocks, terminals.
const EFFECTS: [&[&str]; 13] = [
    &["std", "fs"],
    &["std", "net"],
    &["std", "os"],
    &["std", "process"],
    &["std", "env"],
    &["std", "thread"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["std", "time", "UNIX_EPOCH"],
    &["std", "io", "stdin"],
    &["std", "io", "stdout"],
    &["std", "io", "stderr"],
    // Reads the current directory.
    &["std", "path", "absolute"],
];

/// The crates that the core may name: they compute, and what else some of them can do is caught by its name.
const CORE_CRATES: [&str; 13] = [
    "annotate_snippets",
    "anstyle",
    "granit_parser",
    "jiff",
    "jsonschema",
    "oci_spec",
    "schemars",
    "serde",
    "serde_json",
    "serde_yaml",
    "sha2",
    "strsim",
    "thiserror",
];

/// Methods of paths and times that ask the world.
const ASKING: [&str; 12] = [
    "canonicalize",
    "elapsed",
    "exists",
    "is_dir",
    "is_file",
    "is_symlink",
    "metadata",
    "read_dir",
    "read_link",
    "symlink_metadata",
    "to_socket_addrs",
    "try_exists",
];

/// The name of the architecture and the like, which were decided when this was compiled.
const CONSTANTS: [&str; 3] = ["std", "env", "consts"];

/// Asking for the time is an effect wherever the type came from.
const CLOCKS: [&[&str]; 4] =
    [&["Instant", "now"], &["SystemTime", "now"], &["Timestamp", "now"], &["Zoned", "now"]];

/// Crates that one room keeps to itself, by the start of the paths that may name them.
const PRIVATE_CRATES: [(&str, &str); 12] = [
    ("containerd_client", "src/runtime/containerd"),
    ("tonic", "src/runtime/containerd"),
    ("granit_parser", "src/manifest/yaml"),
    ("notify", "src/source/events"),
    ("base64", "src/registry/http"),
    ("http_auth", "src/registry/http"),
    ("hyper", "src/registry/http"),
    ("reqwest", "src/registry/http"),
    ("rustls", "src/registry/http"),
    ("rustls_native_certs", "src/registry/http"),
    ("secrecy", "src/registry/http"),
    ("toml", "src/registry/http"),
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
    let package = std::fs::read_to_string(root.join(PACKAGE)).unwrap();
    sources.insert(PACKAGE.to_owned(), package);
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

/// Names the crates that there are.
const PACKAGE: &str = "Cargo.toml";

/// The crates that a package depends on, as they are called in its sources.
fn dependencies(package: &str) -> Vec<String> {
    let of = package.lines().skip_while(|it| *it != "[dependencies]").skip(1);
    let lines = of.take_while(|it| !it.starts_with('['));
    let names = lines.filter_map(|it| it.split_once(" = ")).map(|it| it.0.trim());
    names.filter(|it| !it.starts_with('#')).map(|it| it.replace('-', "_")).collect()
}

/// Everything that is wrong, one line each: `path:line: what`.
fn violations(sources: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    let crates = dependencies(&sources[PACKAGE]);
    for (path, text) in sources.iter().filter(|it| it.0 != PACKAGE) {
        let mut report =
            |line: usize, what: fmt::Arguments<'_>| found.push(format!("{path}:{line}: {what}"));
        let tokens = tokens_of(text);
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
            let is_declared =
                sources.get(&parent).is_some_and(|text| declares(&tokens_of(text), &name));
            if !is_declared {
                report(1, format_args!("forgotten: `{parent}` has no `mod {name}`"));
            }
            // What is in it is not looked at.
            let in_product = |text: &String| declares(&without_tests(&tokens_of(text)), &name);
            if path.starts_with("src/")
                && is_test_file(path)
                && !is_test_file(&parent)
                && sources.get(&parent).is_some_and(in_product)
            {
                report(1, format_args!("`{parent}` declares it without `#[cfg(test)]`"));
            }
        }
        if !path.starts_with("src/") || path == "src/lib.rs" || is_test_file(path) {
            continue;
        }
        let module = module(path);
        let room = module[0].as_str();
        let tokens = without_tests(&tokens);
        for (line, what) in ways_around(&tokens, CORE.contains(&room)) {
            report(line, format_args!("{what}"));
        }
        for reference in references(&tokens) {
            let Reference { line, segments, more } = &reference;
            if let Some(more) = more
                && reference.is_root(&module, &crates)
                // Its own room's, from within.
                && !(*more == "*" && segments[0] == "super" && segments.len() < module.len())
            {
                let name = segments.join("::");
                report(
                    *line,
                    format_args!(
                        "`{name}` under {}",
                        if *more == "*" { "no name" } else { "another name" }
                    ),
                );
            }
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
                if crates.contains(&segments[0]) && !CORE_CRATES.contains(&segments[0].as_str()) {
                    report(*line, format_args!("core module `{room}` names `{}`", segments[0]));
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

/// What leads around looking at paths, with its line.
fn ways_around(tokens: &[Token], is_core: bool) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for it in tokens.windows(3) {
        if it[0].is("#") && it[1].is("[") && it[2].is("path") {
            found.push((it[0].line, "a module is in the file that is called like it".to_owned()));
        }
        if it[0].is("extern") && it[1].is("crate") {
            found.push((it[0].line, "`extern crate` gives a crate another name".to_owned()));
        }
        if !is_core {
            continue;
        }
        if it[0].is("include") && it[1].is("!") {
            found.push((it[0].line, "the core names its sources by `mod`".to_owned()));
        }
        if it[0].is(".") && it[2].is("(") && ASKING.contains(&it[1].text.as_str()) {
            found.push((it[1].line, format!("the core asks by `.{}()`", it[1].text)));
        }
        if it[0].is("async") || (it[0].is(".") && it[1].is("await")) {
            found.push((it[0].line, "the core waits for nothing".to_owned()));
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
        // Helpers are ended with all that they have started.
        "registry" => CORE.contains(&other) || other == "host",
        // Its small files are written as all of ours, and plugins are ended as helpers are.
        "cni" => CORE.contains(&other) || other == "host" || other == "rundir",
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

fn declares(tokens: &[Token], name: &str) -> bool {
    tokens.windows(3).any(|it| it[0].is("mod") && it[1].is(name) && it[2].is(";"))
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
    /// `*` or `as`, if that comes after it.
    more: Option<&'static str>,
}

impl Reference {
    fn starts_with(&self, start: &[&str]) -> bool {
        self.segments.len() >= start.len() && self.segments.iter().zip(start).all(|(a, b)| a == b)
    }

    fn ends_with(&self, end: &[&str]) -> bool {
        self.segments.len() >= end.len()
            && self.segments.iter().rev().zip(end.iter().rev()).all(|(a, b)| a == b)
    }

    /// Whether it is that of a crate, of the standard library or of this one, and of nothing in it.
    fn is_root(&self, module: &[String], crates: &[String]) -> bool {
        let mut segments = self.segments.as_slice();
        if segments.len() > 1 && segments.last().is_some_and(|it| it == "self") {
            segments = &segments[..segments.len() - 1];
        }
        let supers = segments.iter().take_while(|it| *it == "super").count();
        match segments {
            [one] if ["crate", "evenkeel", "std", "core", "alloc"].contains(&one.as_str()) => true,
            [one] if crates.contains(one) => true,
            [std, time] => {
                std == "std"
                    && ["time", "io", "path"].contains(&time.as_str())
                    && self.more == Some("*")
            }
            _ => supers == segments.len() && supers >= module.len(),
        }
    }

    /// The top-level module of this crate that it leads to.
    fn room(&self, module: &[String]) -> Option<String> {
        let supers = self.segments.iter().take_while(|it| *it == "super").count();
        match self.segments[0].as_str() {
            // `evenkeel::` is how `main.rs` names the library.
            "crate" | "evenkeel" => self.segments.get(1).cloned(),
            // Inside an inline module, `super` leads less far than it seems; what it then names is no room.
            "super" if supers >= module.len() => {
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
                place = if tokens[place].is("as") {
                    place + 2
                } else if tokens[place].is_name() {
                    follow(tokens, place, &segments, found)
                } else {
                    place + 1
                };
            }
            return place + 1;
        }
        let after = place < tokens.len();
        let more = match () {
            () if after && tokens[place].is("as") => Some("as"),
            () if after && tokens[place].is("*") && tokens[place - 1].is("::") => Some("*"),
            () => None,
        };
        if segments.len() > 1 && segments[0] == "self" && segments[1] == "super" {
            segments.remove(0);
        }
        found.push(Reference { line, segments, more });
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
fn tokens_of(text: &str) -> Vec<Token> {
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
                if word == "r" && hashes == 1 && is_word(at(place + 1)) {
                    // `r#fs` is `fs`.
                    place += 1;
                    continue;
                }
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
        (
            PACKAGE.to_owned(),
            "[dependencies]\n# x\ntokio = { version = \"1\" }\ntracing = \"0.1\"\nserde = \"1\"\n\
             rustix = \"1\"\n[features]\nplan = []\n"
                .to_owned(),
        ),
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
        ("fn f() { Instant::now(); }", "Instant::now"),
        ("use std::time::*; fn f() { Instant::now(); }", "Instant::now"),
        ("fn f() { jiff::Timestamp::now(); }", "Timestamp::now"),
        ("use std::time::Instant as When;", "std::time::Instant"),
        ("type When = std::time::SystemTime;", "std::time::SystemTime"),
        ("fn f() { std::r#fs::read(x) }", "std::fs"),
        ("use std::fs as files;", "std::fs"),
        ("use std::{collections, fs as files};", "std::fs"),
        ("fn f() { matches!(tokio::spawn(x), y) }", "tokio"),
        ("fn f() { debug!(\"{}\", std::fs::read(x)) }", "std::fs"),
        ("use tracing::info as say;", "tracing"),
        ("#[tracing::instrument] fn f() {}", "tracing"),
        ("fn f() { rustix::process::getpid(); }", "rustix"),
        ("fn f() { std::io::stderr().write(x) }", "std::io::stderr"),
    ];
    for (text, what) in cases {
        let all = planted("src/plan.rs", text);
        assert!(all.contains(&found(what)), "{text}: {all:?}");
    }
    check("src/plan.rs", "use serde::Serialize;", &[]);
}

#[test]
fn ways_around_the_map_are_found() {
    let found = |text: &str, what: &str| {
        check("src/plan.rs", text, &[&format!("src/plan.rs:1: {what}")]);
    };
    for root in ["std", "crate", "super", "self::super", "tokio"] {
        let text = format!("use {root} as other;");
        let all = planted("src/plan.rs", &text);
        assert!(all.iter().any(|it| it.ends_with("under another name")), "{text}: {all:?}");
        let text = format!("use {root}::*;");
        let all = planted("src/plan.rs", &text);
        assert!(all.iter().any(|it| it.ends_with("under no name")), "{text}: {all:?}");
    }
    found("use std::{self as other};", "`std::self` under another name");
    let text = "use crate::{plan as own, self as other};";
    let all = planted("src/plan.rs", text);
    assert!(all.contains(&"src/plan.rs:1: `crate::self` under another name".to_owned()), "{all:?}");
    found("use std::time::*;", "`std::time` under no name");
    let all = planted("src/plan.rs", "extern crate std as other;");
    assert_eq!(all[0], "src/plan.rs:1: `extern crate` gives a crate another name");
    found("#[path = \"host.rs\"] mod other;", "a module is in the file that is called like it");
    found("include!(\"host.rs\");", "the core names its sources by `mod`");
    found("fn f(it: &Path) -> bool { it.exists() }", "the core asks by `.exists()`");
    found("fn f(it: When) { it.elapsed(); }", "the core asks by `.elapsed()`");
    found("async fn f() {}", "the core waits for nothing");
    // A path in the middle of an expression, and from a module in the file.
    let host = "core module `plan` imports `host`";
    found("fn f() { if crate::host::is(x) { y } }", host);
    found("mod inner { use super::super::host::Host; }", host);
    found("macro_rules! m { () => { $crate::host::f() } }", host);
    // Its own submodules may be called like a room.
    check(
        "src/runtime/memory.rs",
        "use super::host; use super::*; use super::Error as Fault;",
        &[],
    );
}

#[test]
fn a_test_file_that_is_a_part_of_the_product_is_found() {
    let with = |declaration: &str| {
        let mut sources = BTreeMap::from([
            (PACKAGE.to_owned(), String::new()),
            ("src/lib.rs".to_owned(), "mod plan;".to_owned()),
            ("src/plan.rs".to_owned(), declaration.to_owned()),
        ]);
        sources.insert("src/plan/tests.rs".to_owned(), "use std::fs;".to_owned());
        violations(&sources)
    };
    assert_eq!(with("#[cfg(test)] mod tests;"), [""; 0]);
    let found = "src/plan/tests.rs:1: `src/plan.rs` declares it without `#[cfg(test)]`";
    assert_eq!(with("mod tests;"), [found]);
    assert_eq!(with("#[cfg(any(test, feature = \"x\"))] mod tests;"), [found]);
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
