use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const HEAD: &str =
    "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: web\nspec:\n  image: busybox\n";

fn reading(text: &str) -> Reading {
    read(Path::new("web.yaml"), text.as_bytes())
}

/// What each document came to, in a word, and the codes of all problems.
fn check(text: &str, documents: &[&str], codes: &[&str]) {
    let reading = reading(text);
    let found: Vec<String> = reading.documents.iter().map(|it| word(&it.content)).collect();
    assert_eq!(found, documents, "{text}");
    let found: Vec<&str> = reading.problems.iter().map(|it| it.code).collect();
    assert_eq!(found, codes, "{text}");
}

fn word(content: &Content) -> String {
    match content {
        Content::Workload { name, workload: Some(_), .. } => format!("acts {name}"),
        Content::Workload { name, workload: None, .. } => format!("held {name}"),
        Content::Foreign { name: Some(name) } => format!("foreign {name}"),
        Content::Foreign { name: None } => "foreign".to_owned(),
        Content::Unreadable { code } => format!("unreadable {code}"),
    }
}

#[test]
fn a_right_manifest_becomes_a_workload_with_its_places() {
    let text = format!("{HEAD}  ipcMode: container:db\n");
    let reading = reading(&text);
    assert_eq!(reading.problems, []);
    let [Document { position, index: 0, content }] = reading.documents.as_slice() else { panic!() };
    assert_eq!((position.line, position.column), (1, 1));
    let Content::Workload { name, workload: Some(workload), places } = content else { panic!() };
    assert_eq!(name.as_str(), "web");
    assert_eq!(workload.spec.ipc_mode.as_ref().unwrap().to_string(), "container:db");
    let mode = places.ipc_mode.as_ref().unwrap();
    assert_eq!(
        (mode.position.line, mode.position.column, mode.pointer.as_str()),
        (7, 12, "/spec/ipcMode")
    );
    assert_eq!(
        (&text[mode.bytes.clone()], mode.source_line.as_str()),
        ("container:db", "  ipcMode: container:db")
    );
    assert_eq!(places.name.as_ref().unwrap().position.line, 4);
}

#[test]
fn what_a_document_may_hide_depends_on_what_can_be_read_of_it() {
    let typo = |from: &str, to: &str| HEAD.replace(from, to);
    check(HEAD, &["acts web"], &[]);
    // Its name is readable: it holds this workload.
    check(&typo("image", "imag"), &["held web"], &["missing-field", "unknown-field"]);
    check(&typo("kind: Container", "kind: Contaner"), &["held web"], &["kind-invalid"]);
    check(&typo("kind:", "knid:"), &["held web"], &["missing-field", "unknown-field"]);
    check(&typo("apiVersion:", "apiVersoin:"), &["held web"], &["missing-field", "unknown-field"]);
    check(&typo("evenkeel/v1", "evenkeel/v9"), &["held web"], &["api-version-unsupported"]);
    check(&typo("evenkeel/v1", "evenkeel"), &["held web"], &["api-version-unsupported"]);
    check(&typo("evenkeel/v1", "1"), &["held web"], &["wrong-type"]);
    check(&typo("evenkeel/v1", ""), &["held web"], &["wrong-type"]);
    // It is not: anything may be meant.
    check(
        &typo("metadata:", "metdata:"),
        &["unreadable missing-field"],
        &["missing-field", "unknown-field"],
    );
    check(
        &typo("name:", "nmae:"),
        &["unreadable missing-field"],
        &["missing-field", "unknown-field"],
    );
    check(&typo("web", "Web"), &["unreadable name-invalid"], &["name-invalid"]);
    check(&typo("web", "12"), &["unreadable wrong-type"], &["wrong-type"]);
    check(&typo("web", "012"), &["unreadable number-ambiguous"], &["number-ambiguous"]);
    check(
        &typo("  name: web", "  name: web\n  name: db"),
        &["unreadable duplicate-key"],
        &["duplicate-key"],
    );
    check(
        &typo("spec:", "metadata: {name: db}\nspec:"),
        &["unreadable duplicate-key"],
        &["duplicate-key"],
    );
    check(&typo("web", "!x web"), &["unreadable unknown-tag"], &["unknown-tag"]);
    // Another group, or neither key: foreign, with the name it has.
    check(&typo("evenkeel/v1", "evenkeeel/v1"), &["foreign web"], &["foreign-document"]);
    check(&typo("evenkeel/v1", "Evenkeel/v1"), &["foreign web"], &["foreign-document"]);
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: 12}\n",
        &["foreign 12"],
        &["foreign-document"],
    );
    check("metadata: {name: web}\n", &["foreign web"], &["foreign-document"]);
    check("kind: pipeline\n", &["foreign"], &["foreign-document"]);
    check("[1, 2]", &["foreign"], &["foreign-document"]);
    check("apiVersi", &["foreign"], &["foreign-document"]);
    // What is odd in a foreign document is its own reader's business.
    check(
        "a: !Ref b\na: 0755\n<<: *x\n".replace("*x", "{}").as_str(),
        &["foreign"],
        &["foreign-document"],
    );
}

#[test]
fn a_foreign_document_that_looks_like_ours_gets_the_right_words() {
    let hint = |text: &str| reading(text).problems[0].fix.clone();
    assert_eq!(hint(&HEAD.replace("evenkeel/v1", "evenkeeel/v1")).as_deref(), Some("evenkeel/v1"));
    assert_eq!(hint(&HEAD.replace("evenkeel/v1", "v1")).as_deref(), Some("evenkeel/v1"));
    assert_eq!(hint("apiVersion: apps/v1\nkind: Deployment\n"), None);
}

#[test]
fn empty_files_hide_everything_and_comments_hide_little() {
    for text in ["", " ", "\n\n", "\t", "\u{feff}", "\u{feff}\n"] {
        let reading = reading(text);
        assert_eq!(
            (reading.unreadable, reading.documents.len()),
            (Some("empty-file"), 0),
            "{text:?}"
        );
        assert_eq!(reading.problems[0].severity, Severity::Error);
    }
    for text in ["# a\n", "---\n", "---\n---\n# b", "\u{feff}# a", "--- # a\n...\n", "null\n", "~"]
    {
        let reading = reading(text);
        assert_eq!((reading.unreadable, reading.comments_only), (None, true), "{text:?}");
        assert_eq!(
            (reading.problems[0].code, reading.problems[0].severity),
            ("comments-only", Severity::Warning)
        );
    }
}

#[test]
fn a_file_that_is_no_text_says_where() {
    let place = |bytes: &[u8]| {
        let reading = read(Path::new("a.yaml"), bytes);
        (reading.unreadable, reading.problems[0].position.line, reading.problems[0].position.column)
    };
    assert_eq!(place(b"a: b\nc\xc3\xa9: \xff"), (Some("not-utf8"), 2, 5));
    assert_eq!(place(b"a: b\nc: \0"), (Some("nul-byte"), 2, 4));
    assert_eq!(place(b"\xff\xfea\0"), (Some("not-utf8"), 1, 1));
    let utf16 = read(Path::new("a.yaml"), b"\xff\xfea\0");
    assert!(utf16.problems[0].hint.as_ref().unwrap().contains("UTF-16"));
}

#[test]
fn a_file_that_is_too_large_is_foreign_only_when_its_first_document_says_so() {
    let padded = |head: &str| format!("{head}\ntext: {}", "x".repeat(FILE_LIMIT));
    let verdict = |text: &str| {
        let reading = reading(text);
        (
            reading.unreadable,
            reading.documents.iter().map(|it| word(&it.content)).collect::<Vec<_>>().join(","),
        )
    };
    assert_eq!(verdict(&padded(HEAD)), (Some("file-too-large"), String::new()));
    assert_eq!(verdict(&padded("metadata: {name: a}")), (Some("file-too-large"), String::new()));
    assert_eq!(
        verdict(&padded("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}")),
        (None, "foreign a".to_owned())
    );
    assert_eq!(verdict(&padded("a: b\n---")), (None, "foreign".to_owned()));
    assert_eq!(verdict(&padded("# nothing\n--- a\n---")), (None, "foreign".to_owned()));
    // An empty document is none.
    for empty in ["---\n# of the chart\n---\n", "--- ~\n--- !!null\n---\n", "%YAML 1.2\n---\n---\n"]
    {
        let verdict = verdict(&padded(&format!("{empty}{HEAD}")));
        assert_eq!(verdict, (Some("file-too-large"), String::new()), "{empty}");
    }
    let twice = "apiVersion: evenkeel/v1\napiVersion: v1\nkind: Container";
    assert_eq!(verdict(&padded(twice)), (Some("file-too-large"), String::new()));
    assert_eq!(verdict(&padded("a: [")), (Some("file-too-large"), String::new()));
    assert_eq!(
        verdict(&padded("items:\n- apiVersion: v1\n")),
        (Some("file-too-large"), String::new())
    );
    let exact = format!("{HEAD}# {}", "x".repeat(FILE_LIMIT - HEAD.len() - 2));
    assert_eq!((exact.len(), verdict(&exact)), (FILE_LIMIT, (None, "acts web".to_owned())));
    // Cut inside a character.
    let umlauts = format!("apiVersion: v1\ntext: {}", "é".repeat(FILE_LIMIT));
    assert_eq!(too_large(Path::new("a"), &umlauts.as_bytes()[..FILE_LIMIT]).unreadable, None);
}

#[test]
fn a_whole_number_is_one_in_every_spelling() {
    for (text, problem) in [
        ("67108864", None),
        ("67108864.0", None),
        ("6.7108864e7", None),
        ("0x4000000", None),
        ("1e16", None),
        ("1e18", Some("/spec/shmSize")),
        ("1e300", Some("/spec/shmSize")),
        ("1e999", Some("/spec/shmSize")),
        ("-1e16", Some("/spec/shmSize")),
        ("99999999999999999999999", Some("/spec/shmSize")),
    ] {
        let reading = reading(&format!("{HEAD}  shmSize: {text}\n"));
        let pointers: Vec<&str> = reading.problems.iter().map(|it| it.pointer.as_str()).collect();
        assert_eq!(pointers, Vec::from_iter(problem), "{text}: {:?}", reading.problems);
    }
}

#[test]
fn an_unreadable_file_hides_everything() {
    let reading = unreadable(Path::new("a.yaml"), "not-a-file", "is a pipe");
    assert_eq!(reading.unreadable, Some("not-a-file"));
    assert_eq!(render::line(&reading.problems[0]), "a.yaml: error[not-a-file]: is a pipe");
}

#[test]
fn places_are_right_with_byte_order_mark_windows_line_ends_and_wide_characters() {
    let text =
        format!("\u{feff}{HEAD}  hostname: \"né\" # é\n  shm_size: 1\n").replace('\n', "\r\n");
    let reading = reading(&text);
    let show = |it: &Problem| {
        (
            it.position.line,
            it.position.column,
            text[it.bytes.clone()].to_owned(),
            it.source_line.clone(),
        )
    };
    let found: Vec<_> = reading.problems.iter().map(show).collect();
    assert_eq!(
        found,
        [
            (7, 13, "\"né\"".to_owned(), "  hostname: \"né\" # é".to_owned()),
            (8, 3, "shm_size".to_owned(), "  shm_size: 1".to_owned()),
        ]
    );
    let found = super::read(Path::new("a"), "\u{feff}apiVersion: evenkeel/v2".as_bytes()).problems;
    assert_eq!(
        (found[0].position.column, found[0].bytes.clone(), found[0].source_line.as_str()),
        (13, 15..26, "apiVersion: evenkeel/v2")
    );
}

#[test]
fn a_value_of_several_lines_is_shown_by_its_first_and_gets_no_fix() {
    let reading = reading(&format!("{HEAD}  ipcMode: |\n    Private\n  env:\n    A: b\n"));
    let [mode, env] = reading.problems.as_slice() else { panic!("{:?}", reading.problems) };
    assert_eq!((mode.code, mode.fix.as_deref(), mode.position.line), ("ipc-mode-invalid", None, 8));
    assert_eq!(
        (env.code, env.position.line, env.source_line.as_str()),
        ("wrong-type", 10, "    A: b")
    );
}

#[test]
fn json_files_are_read_in_the_same_way() {
    let text = "{\n\t\"apiVersion\": \"evenkeel/v1\", \"kind\": \"Container\",\n\t\"metadata\": {\"name\": \"web\"},\n\t\"spec\": {\"image\": \"a\\u0062\", \"ipcmode\": \"Private\"}\n}\n";
    let reading = reading(text);
    let [problem] = reading.problems.as_slice() else { panic!("{:?}", reading.problems) };
    assert_eq!(
        (problem.code, problem.position.line, problem.fix.as_deref()),
        ("unknown-field", 4, Some("\"ipcMode\""))
    );
    check(&text.replace("ipcmode", "ipcMode").replace("Private", "private"), &["acts web"], &[]);
}

#[test]
fn one_broken_document_leaves_the_others_alone() {
    let broken = [
        "a: [",
        "a: {",
        "a: \"b",
        "a: 'b",
        "a: b: c",
        "\ta: b",
        "a: *b",
        "a: @b",
        "- a\nb: c",
        "a: |\n x\n  y\n z: [",
        "? [",
        "a: &a [*a]",
        "%FOO",
        "a: !<b",
        "a: \"\\q\"",
        "]",
        "}",
        "a: b\n  - c",
        "a:\n - b\n c",
        "'a",
        "&",
        "*",
        "!",
        "|",
        ">",
        "`",
        "a: |x",
        "a\n: b\n:",
    ];
    for bad in broken {
        let other = HEAD.replace("web", "db");
        let text = format!("{HEAD}---\n{bad}\n---\n{other}");
        let reading = reading(&text);
        let words: Vec<String> = reading.documents.iter().map(|it| word(&it.content)).collect();
        assert_eq!(words.first().map(String::as_str), Some("acts web"), "{bad:?}: {words:?}");
        assert_eq!(words.last().map(String::as_str), Some("acts db"), "{bad:?}: {words:?}");
        assert!(words.len() <= 3, "{bad:?}: {words:?}");
        let last = reading.documents.last().unwrap();
        assert_eq!(
            (last.position.line as usize, last.index),
            (text.matches('\n').count() - 5, words.len() - 1),
            "{bad:?}"
        );
        for problem in reading.problems {
            assert!(
                problem.position.line >= 7
                    && (problem.position.line as usize) < text.lines().count() - 4,
                "{bad:?}: {problem:?}"
            );
        }
    }
}

#[test]
fn a_manifest_with_a_broken_rest_does_not_act() {
    for rest in [
        "]", "}", "  ]", "a", "- a", " a: b", "%a", "\"a", "'", "@", "\t- a", "&a", "*a",
        "  - a: [", "...a", "--- a: [", "?", ": a",
    ] {
        let reading = reading(&format!("{HEAD}{rest}\n"));
        let words: Vec<String> = reading.documents.iter().map(|it| word(&it.content)).collect();
        let first = words.first().map(String::as_str);
        assert_eq!(first == Some("acts web"), rest.starts_with("---"), "{rest:?}: {words:?}");
        assert!(reading.problems.iter().any(|it| it.severity == Severity::Error), "{rest:?}");
    }
}

#[test]
fn a_marker_counts_at_the_start_of_a_line_only() {
    let text = format!(
        "{HEAD}  args:\n    - |\n      ---\n      text\n    - \"a\n      --- b\"\n    - --- c\n"
    );
    let reading = reading(&text);
    assert_eq!(reading.problems, []);
    let Content::Workload { workload: Some(workload), .. } = &reading.documents[0].content else {
        panic!()
    };
    assert_eq!(workload.spec.args.as_ref().unwrap(), &["---\ntext\n", "a --- b", "--- c"]);
}

#[test]
fn scalars_are_what_the_core_schema_says() {
    let value = |text: &str| match yaml::documents(&format!("- {text}\n"), 0).remove(0) {
        Parsed::Document { root, flaws } if flaws.is_empty() => root.json()[0].clone(),
        other @ (Parsed::Document { .. } | Parsed::Broken(_)) => panic!("{text}: {other:?}"),
    };
    for (text, expected) in [
        ("", Value::Null),
        ("~", Value::Null),
        ("null", Value::Null),
        ("Null", Value::Null),
        ("nULL", json!("nULL")),
        ("true", json!(true)),
        ("TRUE", json!(true)),
        ("tRUE", json!("tRUE")),
        ("False", json!(false)),
        ("yes", json!("yes")),
        ("no", json!("no")),
        ("on", json!("on")),
        ("off", json!("off")),
        ("y", json!("y")),
        ("0", json!(0)),
        ("-0", json!(0)),
        ("12", json!(12)),
        ("-12", json!(-12)),
        ("+12", json!(12)),
        ("0o755", json!(493)),
        ("0o8", json!("0o8")),
        ("0o", json!("0o")),
        ("0xfF", json!(255)),
        ("0x", json!("0x")),
        ("0x-1", json!("0x-1")),
        ("0b1", json!("0b1")),
        ("1_000", json!("1_000")),
        ("1.5", json!(1.5)),
        ("2.0", json!(2)),
        ("1.", json!(1)),
        (".5", json!(0.5)),
        ("-.5", json!(-0.5)),
        ("1e3", json!(1000)),
        ("1E-1", json!(0.1)),
        ("1e", json!("1e")),
        ("e1", json!("e1")),
        (".", json!(".")),
        ("..", json!("..")),
        ("1.2.3", json!("1.2.3")),
        ("1-2", json!("1-2")),
        ("+-1", json!("+-1")),
        ("--1", json!("--1")),
        ("-", json!([null])),
        ("+", json!("+")),
        (".inf", json!(".inf")),
        (".nan", json!(".nan")),
        ("inf", json!("inf")),
        ("NaN", json!("NaN")),
        ("12:30:45", json!("12:30:45")),
        ("2026-11-23", json!("2026-11-23")),
        ("18446744073709551615", json!(u64::MAX)),
        ("\"12\"", json!("12")),
        ("'null'", json!("null")),
        ("!!str 12", json!("12")),
        ("! 12", json!("12")),
        ("!!int 12", json!(12)),
        ("!!float 1.5", json!(1.5)),
        ("!!bool true", json!(true)),
        ("!!null ~", Value::Null),
        ("=", json!("=")),
        ("a #b", json!("a")),
        ("a#b", json!("a#b")),
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
    assert!(value("18446744073709551616").is_f64());
}

#[test]
fn an_alias_stands_for_its_value_and_points_at_it() {
    check(&format!("{HEAD}  command: &words [sleep, \"1\"]\n  args: *words\n"), &["acts web"], &[]);
    let reading = reading(&format!(
        "{HEAD}  workingDir: &path here\n  mounts: [{{type: tmpfs, target: *path}}]\n"
    ));
    let mut places: Vec<_> =
        reading.problems.iter().map(|it| (it.pointer.as_str(), it.position.line)).collect();
    places.sort_unstable();
    assert_eq!(places, [("/spec/mounts/0/target", 7), ("/spec/workingDir", 7)]);
}

#[test]
fn long_lines_are_shown_around_the_value() {
    let fields = (0..500).fold(String::new(), |text, n| text + &format!("l{n}: x, "));
    let text = HEAD
        .replace("  name: web", &format!("  labels: {{{fields}bad: [1], {fields}}}\n  name: web"));
    let problem =
        &reading(&text.replacen(&format!("bad: [1], {fields}"), "bad: [1], z: y", 1)).problems[0];
    assert_eq!(problem.code, "wrong-type");
    assert!(problem.position.column > 1000 && problem.source_line.chars().count() < 300);
    let shown = render::text(problem, render::Style::default());
    let line = shown.lines().position(|it| it.contains("bad: [1]")).unwrap();
    let caret = shown.lines().nth(line + 1).unwrap().find('^').unwrap();
    let at = |it: &str| it.chars().take_while(|c| *c != '[').count();
    assert_eq!(caret, at(shown.lines().nth(line).unwrap()), "{shown}");
}

#[test]
fn a_problem_is_shown_with_its_line_and_the_fix() {
    let reading = reading(&format!("{HEAD}  ipcMode: sharable\n"));
    let shown = render::text(&reading.problems[0], render::Style::default());
    let expected = "\
web.yaml:7:12: error[ipc-mode-invalid]: `sharable` is not an IPC mode
  |
7 |   ipcMode: sharable
  |            ^^^^^^^^
  |
help: did you mean `shareable`?
  |
7 |   ipcMode: shareable
  |                +
";
    let trim = |it: &str| it.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert_eq!(trim(&shown), trim(expected));
    assert!(!shown.contains('\u{1b}'));
    let coloured = render::text(&reading.problems[0], render::Style { colour: true, width: 60 });
    assert!(coloured.contains("\u{1b}["));
}

#[test]
fn what_the_user_wrote_cannot_reach_the_terminal_raw() {
    let reading =
        reading(&format!("{HEAD}  \"\\e[31m\u{202e}x\": \"\\n\"\n  ipcMode: \"\\a\u{85}b\"\n"));
    assert!(reading.problems.len() >= 2);
    for problem in &reading.problems {
        let shown = render::text(problem, render::Style::default());
        assert!(
            !shown.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'),
            "{shown:?}"
        );
        assert_eq!(render::line(problem).lines().count(), 1);
    }
}

#[test]
fn a_problem_for_programs_is_json() {
    let problem = reading(&format!("{HEAD}  ipcMode: Host\n")).problems.remove(0);
    assert_eq!(
        serde_json::to_value(&problem).unwrap(),
        json!({
            "file": "web.yaml", "line": 7, "column": 12, "severity": "error", "code": "ipc-mode-invalid", "pointer": "/spec/ipcMode",
            "message": "`Host` is not an IPC mode", "hint": "did you mean `host`?", "fix": "host", "related": null,
        })
    );
}

#[test]
fn every_prefix_of_a_file_reads_without_a_panic_and_only_whole_ones_act() {
    let text = format!(
        "\u{feff}# é\n{HEAD}  env: &e\n    - {{name: A, value: \"ü\\u00e9\"}}\n  args: ['x', *e, |-\n      y\n  ]\n  mounts:\n    - type: tmpfs\n      target: /a\n--- !x\n? [a]\n: >\n  folded\n...\n{HEAD}"
    );
    for end in 0..=text.len() {
        let reading = read(Path::new("a.yaml"), &text.as_bytes()[..end]);
        for problem in &reading.problems {
            render::text(problem, render::Style::default());
        }
        let said = reading.problems.is_empty() && reading.documents.is_empty();
        assert!(!said, "a file of {end} bytes without a document and without a problem");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        look(&read(Path::new("a.yaml"), &bytes));
        look(&too_large(Path::new("a.yaml"), &bytes));
    }

    #[test]
    fn no_yaml_like_text_panics(text in "([-:?\\[\\]{}#&*!|>'\"%@`, \t\n\rab0é~]|: |- |\n---\n|\n\\.\\.\\.\n|&a |\\*a|<<: |!!str |apiVersion: evenkeel/v1\n|kind: Container\n|metadata: |name: |spec: ){0,60}") {
        look(&read(Path::new("a.yaml"), text.as_bytes()));
        look(&too_large(Path::new("a.yaml"), text.as_bytes()));
    }

    #[test]
    fn a_manifest_with_anything_in_it_does_not_panic(place in 0..HEAD.len(), text in "[-:?\\[\\]{}#&*!|>'\"%@`, \t\na0é~]{0,6}") {
        let mut changed = HEAD.to_owned();
        changed.insert_str(place, &text);
        look(&reading(&changed));
    }

    /// The library that writes our YAML is the measure of how we read it.
    #[test]
    fn what_others_write_is_read_as_they_meant_it(value in json_value()) {
        let text = serde_yaml::to_string(&json!([value])).unwrap();
        let Some(Parsed::Document { root, flaws }) = yaml::documents(&text, 0).pop() else { panic!("{text}") };
        let flaws: Vec<_> = flaws.iter().filter(|it| it.code != "merge-key" && it.code != "nul-byte").collect();
        prop_assert!(flaws.is_empty(), "{} {:?}", text, flaws);
        prop_assert_eq!(&root.json()[0], &value, "{}", text);
    }

    #[test]
    fn a_broken_document_never_hides_the_next_and_no_half_of_it_acts(bad in "[-:?\\[\\]{}#&*!|>'\"%@`, \t\nab0~]{0,30}") {
        // A directive belongs to the document behind the marker.
        prop_assume!(!bad.split(['\n', '\r']).any(|it| it.starts_with('%')));
        let text = format!("{HEAD}{bad}\n---\n{HEAD}");
        let reading = reading(&text);
        let last = reading.documents.last().map(|it| word(&it.content));
        prop_assert_eq!(last.as_deref(), Some("acts web"), "{:?}", reading.documents);
        let first = reading.documents.first().map(|it| word(&it.content));
        let broken = reading.problems.iter().any(|it| it.code == "syntax-error");
        prop_assert!(!broken || first.as_deref() != Some("acts web"), "{:?}", reading);
    }
}

fn look(reading: &Reading) {
    for problem in &reading.problems {
        render::text(problem, render::Style { colour: false, width: 20 });
        assert!(CODES.iter().any(|it| it.0 == problem.code), "{}", problem.code);
    }
    for (index, document) in reading.documents.iter().enumerate() {
        assert_eq!(document.index, index);
    }
    assert!(reading.problems.is_sorted_by_key(|it| (it.position.line, it.position.column)));
}

fn json_value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1000..1000)
            .prop_map(|it| Value::from(f64::from(it) / 8.0))
            .prop_filter("2.0 is 2", |it| it.as_f64().is_some_and(|it| it.fract() != 0.0)),
        "[ -~é\n\t]{0,12}".prop_map(Value::from),
        "(null|true|0x1|0o7|1e3|yes|-|---|~|\\.5|- a|a: b|#|12:30)".prop_map(Value::from),
    ];
    scalar.prop_recursive(4, 30, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map("[a-z~/: ]{1,6}", inner, 0..5)
                .prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}
