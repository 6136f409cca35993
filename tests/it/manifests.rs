//! The samples of the repository: examples are right, each wrong manifest has exactly the problems written beside it,
//! the published schema is the generated one, and hostile files cost little. `UPDATE=1` rewrites the golden files.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use evenkeel::desired::graph::{self, Named};
use evenkeel::desired::{Origin, Source};
use evenkeel::manifest::{self, CODES, Content, Problem, Reading, Severity};
use evenkeel::schema;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All manifests below a directory, or the file itself, in the order of their paths.
fn manifests(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|it| it == "yaml") {
            found.extend(manifests(&path));
        }
    }
    found.sort();
    found
}

/// The problems of these files, each alone and all together, by position.
fn problems(files: &[PathBuf]) -> Vec<Problem> {
    let readings: Vec<(PathBuf, Reading)> = files
        .iter()
        .map(|path| {
            let shown = path.strip_prefix(root()).unwrap().to_owned();
            let reading = manifest::read(&shown, &fs::read(path).unwrap());
            (shown, reading)
        })
        .collect();
    let mut named = Vec::new();
    for (file, reading) in &readings {
        for document in &reading.documents {
            if let Content::Workload { name, workload, places } = &document.content {
                named.push(Named {
                    origin: Origin {
                        source: Source::new(Path::new("/"), Path::new("")),
                        file: file.clone(),
                        document: document.index,
                    },
                    name,
                    workload: workload.as_deref(),
                    places,
                    position: &document.position,
                });
            }
        }
    }
    let mut all: Vec<Problem> =
        readings.iter().flat_map(|(_, reading)| reading.problems.clone()).collect();
    all.extend(graph::check(&named).problems);
    all.sort_by(|a, b| (&a.position, a.code).cmp(&(&b.position, b.code)));
    all
}

/// A problem as the golden files have it: everything that a user sees of it, but for the source line.
fn golden(problem: &Problem, below: &Path) -> String {
    let file = problem.position.file.strip_prefix(below).unwrap_or(&problem.position.file);
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut text = format!(
        "{}:{}:{} {severity} {} {}\n    {}\n",
        file.display(),
        problem.position.line,
        problem.position.column,
        problem.code,
        problem.pointer,
        problem.message
    );
    if let Some(hint) = &problem.hint {
        writeln!(text, "    hint: {hint}").unwrap();
    }
    if let Some(fix) = &problem.fix {
        writeln!(text, "    fix: {fix}").unwrap();
    }
    if let Some(related) = &problem.related {
        writeln!(text, "    related: {}:{}", related.line, related.column).unwrap();
    }
    text
}

/// Compares with a committed file, or writes it with `UPDATE=1`.
fn compare(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} is not up to date; UPDATE=1 rewrites it. Now it is:\n{actual}",
        path.display()
    );
}

fn invalid_samples() -> Vec<PathBuf> {
    let mut samples: Vec<PathBuf> = fs::read_dir(root().join("tests/invalid"))
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| it.is_dir() || it.extension().is_some_and(|it| it == "yaml"))
        .collect();
    samples.sort();
    samples
}

#[test]
fn every_wrong_manifest_has_exactly_the_problems_written_beside_it() {
    for sample in invalid_samples() {
        let found = problems(&manifests(&sample));
        let text: String = found.iter().map(|it| golden(it, Path::new("tests/invalid"))).collect();
        compare(&sample.with_extension("problems"), &text);
    }
}

#[test]
fn the_wrong_manifests_together_have_no_further_problems() {
    let apart: usize = invalid_samples().iter().map(|it| problems(&manifests(it)).len()).sum();
    let together = problems(&manifests(&root().join("tests/invalid")));
    assert_eq!(apart, together.len());
}

#[test]
fn every_problem_has_a_position_and_a_known_code_and_says_something() {
    let known: BTreeSet<&str> = CODES.iter().map(|it| it.0).collect();
    for problem in problems(&manifests(&root().join("tests/invalid"))) {
        assert!(known.contains(problem.code), "{} is not in CODES", problem.code);
        assert!(
            problem.position.line > 0 || matches!(problem.code, "empty-file" | "comments-only"),
            "{problem:?}"
        );
        assert_eq!(problem.source_line.is_empty(), problem.position.line == 0, "{problem:?}");
        assert!(!problem.message.ends_with('.') && !problem.message.contains('\n'), "{problem:?}");
        assert!(problem.message.starts_with(|c: char| !c.is_uppercase()), "{problem:?}");
        assert!(problem.fix.is_none() || problem.hint.is_some(), "{problem:?}");
    }
}

#[test]
fn every_code_is_explained_once_and_has_a_sample() {
    let names: Vec<&str> = CODES.iter().map(|it| it.0).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names, sorted, "CODES are in order and each is there once");
    let mut seen: BTreeSet<&str> =
        problems(&manifests(&root().join("tests/invalid"))).iter().map(|it| it.code).collect();
    // Too big or no text: these are made when they are needed.
    for bytes in hostile().values() {
        seen.extend(
            manifest::read(Path::new("hostile.yaml"), bytes).problems.iter().map(|it| it.code),
        );
    }
    // What is wrong with a file, a directory or a link before anything in it is read.
    let unread = [
        "dangling-symlink",
        "file-unreadable",
        "file-unsettled",
        "ignore-unreadable",
        "not-a-regular-file",
        "source-missing",
        "source-too-large",
        "source-unreadable",
        "symlink-loop",
    ];
    let missing: Vec<&str> = names.into_iter().filter(|it| !seen.contains(it)).collect();
    assert_eq!(missing, unread, "each code has a sample but these");
}

#[test]
fn a_fix_of_a_sample_makes_its_problem_go_away() {
    let mut tried = 0;
    for file in manifests(&root().join("tests/invalid")) {
        let bytes = fs::read(&file).unwrap();
        let before = manifest::read(&file, &bytes);
        for problem in before.problems.iter().filter(|it| it.code != "foreign-document") {
            let Some(fix) = &problem.fix else { continue };
            let mut fixed = bytes.clone();
            fixed.splice(problem.bytes.clone(), fix.bytes());
            let after = manifest::read(&file, &fixed);
            let there =
                |it: &&Problem| it.pointer == problem.pointer && it.position == problem.position;
            let left: Vec<&Problem> = after.problems.iter().filter(there).collect();
            // A mapping that came in place of a text may have a mistake of its own; the one at hand is gone.
            assert!(
                !left.iter().any(|it| it.code == problem.code),
                "{problem:?} still there after its fix"
            );
            tried += 1;
        }
    }
    assert!(tried > 40, "only {tried} samples have a fix");
}

#[test]
fn every_example_has_no_problem() {
    let files = manifests(&root().join("examples"));
    assert!(files.len() >= 14);
    let found = problems(&files);
    assert!(found.is_empty(), "{found:#?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("# "), "{} says what it is about", file.display());
    }
}

#[test]
fn the_published_schema_is_the_generated_one() {
    let text = format!("{:#}\n", schema::manifest());
    compare(&root().join("schemas/manifest.schema.json"), &text);
}

#[test]
fn ipc_modes_are_accepted_and_refused_as_documented() {
    let values = [
        "none",
        "private",
        "shareable",
        "host",
        "container:donor",
        "",
        "container:a:b",
        "container:",
        "container",
        "container:Upper",
        "container:-a",
        "container: a",
        "host:",
        "host:x",
        "none:",
        "private:",
        "shareable:x",
        ":weird",
        "something",
        "something:",
        "something:weird",
        ":",
        "Private",
        " private",
        "private ",
        "PRIVATE",
        "Container:donor",
        "CONTAINER:donor",
        "sharable",
        "share",
        "shared",
        "pirvate",
        "service:web",
        "pod",
        "container:0123456789ab",
        "null",
        "true",
        "~",
    ];
    let mut table = String::new();
    for value in values {
        let quoted = serde_json::to_string(value).unwrap();
        let text = format!(
            "apiVersion: evenkeel/v1\nkind: Container\nmetadata: {{name: a}}\nspec:\n  image: b\n  ipcMode: {quoted}\n"
        );
        let reading = manifest::read(Path::new("a.yaml"), text.as_bytes());
        let verdict = match reading.problems.as_slice() {
            [] => "accepted".to_owned(),
            [one] => {
                assert_eq!(one.code, "ipc-mode-invalid");
                let fix = one.fix.as_ref().map(|it| format!(" → {it}")).unwrap_or_default();
                format!("refused: {}{fix}", one.hint.as_deref().unwrap_or("no hint"))
            }
            more => panic!("{more:?}"),
        };
        writeln!(table, "{quoted:<24} {verdict}").unwrap();
    }
    compare(&root().join("tests/ipc-modes.txt"), &table);
}

fn valid(spec: &str) -> String {
    format!(
        "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: hostile\nspec:\n  image: a\n{spec}"
    )
}

/// Files made to cost more than they are long, each with what it is.
fn hostile() -> BTreeMap<&'static str, Vec<u8>> {
    let mut files: BTreeMap<&'static str, Vec<u8>> = BTreeMap::new();
    let mut put = |name, text: String| files.insert(name, text.into_bytes());
    let mut laughs = "a: &a [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n".to_owned();
    for (before, letter) in ('a'..='h').zip('b'..='i') {
        writeln!(laughs, "{letter}: &{letter} [{}]", vec![format!("*{before}"); 9].join(","))
            .unwrap();
    }
    put("billion laughs", laughs);
    let keys: Vec<String> = (0..1000).map(|n| format!("k{n}: 1")).collect();
    let uses = vec!["*a"; 5000].join(",");
    put("one large anchor used often", format!("a: &a {{{}}}\nb: [{uses}]\n", keys.join(",")));
    let text = "x".repeat(200_000);
    put(
        "one long text used often",
        format!("a: &a {text}\nb: [{}]\n", vec!["*a"; 9_000].join(",")),
    );
    let mut chain = "- &a0 [x]\n".to_owned();
    for n in 1..400 {
        writeln!(chain, "- &a{n} [*a{}]", n - 1).unwrap();
    }
    put("chain of aliases", chain);
    put(
        "nested anchors",
        format!(
            "{}{}",
            (0..60).fold(String::new(), |s, n| s + &format!("&a{n} [")),
            "x,".repeat(40_000)
        ),
    );
    put("alias of itself", "a: &a [*a]\n".to_owned());
    for (name, opening) in [
        ("brackets", "["),
        ("braces", "{"),
        ("dashes", "- "),
        ("question marks", "? "),
        ("braced keys", "{a: "),
        ("double brackets", "[["),
    ] {
        put(name, opening.repeat(20_000));
    }
    put("brackets in a manifest", valid(&format!("  args: {}\n", "[".repeat(20_000))));
    put(
        "keys at growing depth",
        (0..700).fold(String::new(), |text, n| text + &" ".repeat(n) + "a:\n"),
    );
    put(
        "unknown fields",
        valid(&(0..14_000).fold(String::new(), |text, n| text + &format!("  f{n}: 1\n"))),
    );
    put(
        "unknown fields on one line",
        valid("").replace(
            "spec:",
            &format!(
                "spec: {{{}}}\nnot:",
                (0..20_000).fold(String::new(), |text, n| text + &format!("f{n}: 1,"))
            ),
        ),
    );
    put("one key again and again", valid(&"  args: []\n".repeat(20_000)));
    put(
        "labels of the wrong type",
        valid("").replace(
            "spec:",
            &format!(
                "  labels: {{{}}}\nspec:",
                (0..24_000).fold(String::new(), |text, n| text + &format!("k{n}: 1,"))
            ),
        ),
    );
    put("old octal numbers", valid(&format!("  args: [{}]\n", "01,".repeat(45_000))));
    put("variables of one name", valid(&format!("  env: [{}]\n", "{name: A},".repeat(20_000))));
    put("many documents", "--- a\n".repeat(40_000));
    put("many broken documents", "--- [\n".repeat(40_000));
    put("many documents of one field", "---\na: b\n".repeat(25_000));
    put("one long line", "a".repeat(256 * 1024));
    put("one long quoted line", format!("a: \"{}", "b\\".repeat(100_000)));
    put("only dashes", "-".repeat(200_000));
    put("only line ends", format!("a{}", "\n".repeat(200_000)));
    put("tags", format!("a: [{}]", "!a b,".repeat(40_000)));
    put(
        "anchors",
        format!("a: [{}]", (0..25_000).fold(String::new(), |text, n| text + &format!("&a{n} b,"))),
    );
    put("long mode", valid(&format!("  ipcMode: {}\n", "container:".repeat(20_000))));
    put("long image", valid("").replace("image: a", &format!("image: {}", "a-".repeat(100_000))));
    put("too large", "a".repeat(300 * 1024));
    files.insert("not UTF-8", b"a: \xff\xfe".to_vec());
    files.insert("NUL", b"a: b\nc: \0".to_vec());
    files
}

/// The codes of what is wrong with a hostile file.
fn refusals(name: &str) -> BTreeSet<&'static str> {
    let codes: &[&str] = match name {
        "NUL" => &["nul-byte"],
        "not UTF-8" => &["not-utf8"],
        "too large" => &["file-too-large"],
        "alias of itself" => &["alias-loop"],
        "billion laughs" | "one large anchor used often" | "one long text used often" => {
            &["too-many-aliases"]
        }
        "braced keys"
        | "braces"
        | "brackets"
        | "brackets in a manifest"
        | "chain of aliases"
        | "dashes"
        | "double brackets"
        | "keys at growing depth"
        | "question marks" => &["too-deep"],
        "variables of one name" => &["too-many-nodes"],
        "long image" => &["image-invalid"],
        "long mode" | "nested anchors" | "one long quoted line" => &["syntax-error"],
        "anchors" | "one long line" | "only dashes" | "only line ends" | "tags" => {
            &["foreign-document"]
        }
        // Of so many, the first thousand are told.
        "labels of the wrong type" => &["wrong-type", "too-many-problems"],
        "many broken documents" => &["syntax-error", "too-many-problems"],
        "many documents" | "many documents of one field" => {
            &["foreign-document", "too-many-problems"]
        }
        "old octal numbers" => &["number-ambiguous", "too-many-problems"],
        "one key again and again" => &["duplicate-key", "too-many-problems"],
        "unknown fields" => &["unknown-field", "too-many-problems"],
        "unknown fields on one line" => &["missing-field", "unknown-field", "too-many-problems"],
        other => panic!("`{other}` has to be refused, and its code has to be here"),
    };
    codes.iter().copied().collect()
}

/// Runs as a process of its own, so that what it uses is what the files cost; without the variable it does nothing.
#[test]
fn cost_of_hostile_files() {
    if std::env::var_os("EVENKEEL_TEST_COST").is_none() {
        return;
    }
    for (name, bytes) in hostile() {
        let before = cpu();
        let reading = manifest::read(Path::new("hostile.yaml"), &bytes);
        let spent = cpu() - before;
        println!(
            "{name}: {spent} ms, {} problems, {} KiB at most so far",
            reading.problems.len(),
            peak()
        );
        assert!(spent < 2_000, "`{name}` took {spent} ms of processor time");
        let acts = reading
            .documents
            .iter()
            .any(|it| matches!(&it.content, Content::Workload { workload: Some(_), .. }));
        assert!(!acts || !reading.problems.is_empty(), "`{name}` was accepted");
        let codes: BTreeSet<&str> = reading.problems.iter().map(|it| it.code).collect();
        assert_eq!(codes, refusals(name), "`{name}`");
    }
    assert!(peak() < 100 * 1024, "{} KiB", peak());
}

/// Processor time of this process in milliseconds.
fn cpu() -> u64 {
    let all: u64 = fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|it| fs::read_to_string(it.ok()?.path().join("schedstat")).ok())
        .filter_map(|it| it.split(' ').next()?.parse::<u64>().ok())
        .sum();
    all / 1_000_000
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|it| it.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn hostile_files_cost_little_time_and_memory() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "manifests::cost_of_hostile_files", "--nocapture"])
        .env("EVENKEEL_TEST_COST", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("billion laughs"), "the other test ran: {text}");
}
