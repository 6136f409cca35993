//! The documents are held to what the program says of itself: every field, setting, code and reason is in them, what
//! they show is valid, and what they link to is there.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use evenkeel::manifest::CODES;
use evenkeel::refusal::REASONS;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_evenkeel");

const DOCUMENTS: [&str; 8] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/manifests.md",
    "docs/ipc.md",
    "docs/lifecycle.md",
    "docs/operations.md",
    "docs/problems.md",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Everything between backticks on lines that `choose` takes.
fn quoted(text: &str, choose: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = text.lines().filter(|it| choose(it));
    lines.flat_map(|it| it.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

fn code_blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut inside: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut inside, line.strip_prefix("```")) {
            (None, Some(found)) => inside = Some((found == language, String::new())),
            (Some(_), Some(_)) => {
                blocks.extend(inside.take().filter(|it| it.0).map(|it| it.1));
            }
            (Some((_, block)), None) => block.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    assert!(inside.is_none(), "a code block has no end");
    blocks
}

#[test]
fn every_problem_code_is_explained_once() {
    let text = read("docs/problems.md");
    let rows = text.lines().filter_map(|it| it.strip_prefix("| `")?.split('`').next());
    let rows: Vec<&str> = rows.collect();
    let explained: BTreeSet<&str> = rows.iter().copied().collect();
    assert_eq!(rows.len(), explained.len(), "a code is there twice");
    let known: BTreeSet<&str> = CODES.iter().map(|it| it.0).collect();
    assert_eq!(explained, known);
}

/// What the sources give as a code is in the list, and what is in the list is given by some source.
#[test]
fn every_problem_code_of_the_sources_is_listed_and_no_other() {
    let mut queue = vec![root().join("src")];
    let mut sources = BTreeMap::new();
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                queue.push(path);
            } else if !name.contains("tests") && name != "src/manifest/codes.rs" {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                sources.insert(name, code.to_owned());
            }
        }
    }
    let known: BTreeSet<String> = CODES.iter().map(|it| it.0.to_owned()).collect();
    let is_given = |code: &&String| {
        let quoted = format!("\"{code}\"");
        sources.iter().any(|(name, text)| !name.starts_with("src/cli/") && text.contains(&quoted))
    };
    let unused: Vec<&String> = known.iter().filter(|it| !is_given(it)).collect();
    assert!(unused.is_empty(), "no source gives {unused:?}");
    // Of files and directories; what a document can have is seen with samples.
    let of_files = sources.iter().filter(|(name, _)| name.starts_with("src/source"));
    let history = &sources["src/desired/history.rs"];
    let found: BTreeSet<String> = of_files
        .flat_map(|(_, text)| {
            let some = words_after(text, "Some((\"");
            words_after(text, "code: \"").into_iter().chain(some)
        })
        .chain(words_after(history, "code: \""))
        .collect();
    assert!(found.len() > 7, "{found:?}");
    let unlisted: Vec<&String> = found.difference(&known).collect();
    assert!(unlisted.is_empty(), "src/manifest/codes.rs has no {unlisted:?}");
}

/// Each kebab-case word that stands right behind `mark`.
fn words_after(text: &str, mark: &str) -> Vec<String> {
    let words = text.split(mark).skip(1).filter_map(|it| it.split_once('"')).map(|it| it.0);
    let kebab =
        |it: &&str| !it.is_empty() && it.bytes().all(|c| c.is_ascii_lowercase() || c == b'-');
    words.filter(kebab).map(str::to_owned).collect()
}

/// The words in backticks in the first cells of the tables of a chapter.
fn first_cells(text: &str, chapter: &str) -> BTreeSet<String> {
    let (_, rest) = text.split_once(&format!("\n## {chapter}\n")).unwrap();
    let chapter = rest.split("\n## ").next().unwrap_or_default();
    let cells = chapter.lines().filter(|it| it.starts_with("| `"));
    let cells = cells.filter_map(|it| it.split('|').nth(1));
    cells.flat_map(|it| quoted(it, |_| true)).collect()
}

#[test]
fn every_reason_that_the_sources_give_is_explained_and_no_other() {
    let text = read("docs/lifecycle.md");
    let mut reasons = BTreeSet::new();
    let mut of_starts = BTreeSet::new();
    let marks = ["reason: \"", "no(\"", "no( \"", "mismatch(\"", "BY_HAND: &str = \""];
    let reason_or_end = ["EXITED: &str = \"", "STOPPED: &str = \"", "EXIT_UNKNOWN: &str = \""];
    let marks: Vec<&str> = marks.into_iter().chain(reason_or_end).collect();
    for file in [
        "src/plan.rs",
        "src/plan/diff.rs",
        "src/plan/diff/execs.rs",
        "src/plan/diff/hands.rs",
        "src/plan/diff/strays.rs",
        "src/oci.rs",
        "src/observed.rs",
        "src/controller/execute.rs",
        "src/desired/history.rs",
    ] {
        let source: String = read(file).split_whitespace().collect::<Vec<_>>().join(" ");
        let source = source.split("#[cfg(test)] mod tests {").next().unwrap_or_default();
        let found = marks.iter().flat_map(|it| words_after(source, it)).collect::<BTreeSet<_>>();
        if matches!(file, "src/plan.rs" | "src/controller/execute.rs") {
            of_starts.extend(found.iter().cloned());
        }
        reasons.extend(found);
        reasons.extend(words_after(source, "blocker(\""));
        reasons.extend(words_after(source, "refusal::of(\""));
    }
    // What a workload waits for that waits for its image, and why that does not come.
    let plan = read("src/plan.rs");
    reasons.extend(words_after(&plan, "PULLING: &str = \""));
    reasons.extend(words_after(&plan, "PULL_FAILED: &str = \""));
    reasons.extend(words_after(&read("src/registry.rs"), "=> \""));
    let pull = read("src/controller/execute/pull.rs");
    let (_, pull) = pull.split_once("fn reason(error").unwrap();
    reasons.extend(words_after(pull.split("\n}").next().unwrap(), "        \""));
    // What a step that failed is shown as.
    let flights = read("src/controller/flights.rs");
    let (_, troubles) = flights.split_once("let reason = match &step.action {").unwrap();
    reasons.extend(words_after(troubles.split("};").next().unwrap(), "=> \""));
    // What a process sees that is not what its mode says is a start that failed, with its advice.
    let known: BTreeSet<String> = REASONS.iter().map(|it| it.name.to_owned()).collect();
    let unknown: Vec<&String> = of_starts.difference(&known).collect();
    assert!(unknown.is_empty(), "src/refusal.rs has no {unknown:?}");
    reasons.extend(known);
    assert!(reasons.len() > 50, "{reasons:?}");
    assert_eq!(first_cells(&text, "Reasons"), reasons);
    for it in REASONS {
        let row = format!("| `{}` | {} | ", it.name, it.code);
        let row = text.lines().find(|line| line.starts_with(&row));
        assert!(row.is_some_and(|line| line.contains(it.advice)), "{it:?}");
    }
}

#[test]
fn every_phase_is_explained() {
    let schema: Value = serde_json::from_str(&printed(&["schema", "status"])).unwrap();
    let text = read("docs/lifecycle.md");
    let phases = schema["$defs"]["Phase"]["enum"].as_array().unwrap();
    for phase in phases {
        let phase = format!("`{}`", phase.as_str().unwrap());
        assert!(text.lines().any(|it| it.starts_with("| `") && it.contains(&phase)), "{phase}");
    }
}

/// Every field below an object of a schema, as `parent.field` without the list indexes.
fn fields(schema: &Value, at: &Value, parent: &str, found: &mut BTreeSet<String>) {
    let resolved = |it: &Value| match it["$ref"].as_str() {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap().clone(),
        None => it.clone(),
    };
    let mut at = resolved(at);
    if at["items"].is_object() {
        at = resolved(&at["items"]);
    }
    for (name, below) in at["properties"].as_object().into_iter().flatten() {
        let path = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
        found.insert(path.clone());
        fields(schema, below, &path, found);
    }
}

#[test]
fn every_field_of_a_manifest_is_explained() {
    let schema: Value = serde_json::from_str(&printed(&["schema", "manifest"])).unwrap();
    let mut found = BTreeSet::new();
    fields(&schema, &schema, "", &mut found);
    assert!(found.contains("spec.restart.backoff.initial") && found.contains("spec.mounts.type"));
    let text = read("docs/manifests.md");
    let rows: BTreeSet<&str> =
        text.lines().filter_map(|it| it.strip_prefix("| `")?.split('`').next()).collect();
    let short = |it: &String| it.strip_prefix("spec.").unwrap_or(it).to_owned();
    // A mapping is explained by its fields.
    let is_leaf = |it: &&String| !found.iter().any(|other| other.starts_with(&format!("{it}.")));
    let missing: Vec<String> =
        found.iter().filter(is_leaf).map(short).filter(|it| !rows.contains(it.as_str())).collect();
    assert!(missing.is_empty(), "docs/manifests.md says nothing of {missing:?}");
    let known: BTreeSet<String> = found.iter().map(short).collect();
    let is_field = |it: &&&str| it.starts_with(|c: char| c.is_ascii_lowercase());
    let unknown: Vec<&&str> =
        rows.iter().filter(is_field).filter(|it| !known.contains(**it)).collect();
    assert!(unknown.is_empty(), "there is no field {unknown:?}");
}

#[test]
fn every_setting_is_explained() {
    let text = read("docs/operations.md");
    let schema: Value = serde_json::from_str(&printed(&["schema", "config"])).unwrap();
    for key in schema["properties"].as_object().unwrap().keys() {
        let is_there = text.contains(&format!("`{key}`")) || text.contains(&format!("`{key}."));
        assert!(is_there, "docs/operations.md says nothing of the key `{key}`");
    }
    let commands = [
        "run", "apply", "plan", "validate", "status", "logs", "down", "approve", "stop", "start",
        "restart", "retry", "doctor", "explain", "events", "shutdown", "attach",
    ];
    for command in commands {
        assert!(text.contains(&format!("| `{command}")), "{command}");
        let help = printed(&[command, "--help"]);
        let starts = |it: &&str| it.starts_with("--") || it.starts_with("EVENKEEL_");
        let words = help.split(|c: char| c.is_whitespace() || "[],<>.".contains(c));
        for word in words.filter(starts).filter(|it| !matches!(*it, "--help")) {
            assert!(text.contains(word), "docs/operations.md says nothing of {word} of {command}");
        }
    }
}

#[test]
fn what_the_documents_show_is_valid() {
    let mut shown = 0;
    for name in DOCUMENTS {
        for block in code_blocks(&read(name), "yaml") {
            if !block.contains("apiVersion:") {
                let file = Path::new(name);
                let read = evenkeel::manifest::configuration::<evenkeel::config::File>(
                    file,
                    block.as_bytes(),
                );
                assert!(read.is_ok(), "{name}: {read:?}");
                continue;
            }
            let mut child = Command::new(PROGRAM)
                .args(["validate", "--strict", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(block.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
            shown += 1;
        }
    }
    assert!(shown >= 3);
}

#[test]
fn what_the_documents_tell_to_type_exists() {
    let mut tried = 0;
    for name in DOCUMENTS {
        let text = read(name);
        let typed = code_blocks(&text, "console").join("");
        let typed = typed.lines().map(|it| it.trim_start_matches("$ ").to_owned());
        for line in typed.chain(quoted(&text, |_| true)) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["evenkeel", command, ref rest @ ..] if !command.starts_with('-') => {
                    let help = printed(&[command, "--help"]);
                    for flag in rest.iter().filter(|it| it.starts_with("--")) {
                        assert!(help.contains(flag), "{name}: {line}");
                    }
                    tried += 1;
                }
                [script, ..] if script.starts_with("./scripts/") => {
                    assert!(root().join(script).exists(), "{name}: {line}");
                }
                _ => {}
            }
        }
    }
    assert!(tried > 10, "{tried}");
}

#[test]
fn every_link_leads_somewhere() {
    for name in DOCUMENTS {
        let text = read(name);
        for target in text.split("](").skip(1).filter_map(|it| it.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let file = target.split('#').next().unwrap_or_default();
            let path = root().join(name).parent().unwrap().join(file);
            assert!(path.exists(), "{name} links to {target}");
        }
    }
}
