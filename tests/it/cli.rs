//! The program as its users meet it: help, mistakes, exit codes, configuration. Needs root (the commands that work
//! with containers refuse anybody else), but no containerd: nothing here gets so far.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_evenkeel");

const COMMANDS: [&str; 21] = [
    "image",
    "stop",
    "start",
    "restart",
    "retry",
    "attach",
    "events",
    "shutdown",
    "run",
    "apply",
    "plan",
    "validate",
    "status",
    "explain",
    "logs",
    "exec",
    "down",
    "approve",
    "doctor",
    "schema",
    "completions",
];

const KINDS: [&str; 11] = [
    "images",
    "event",
    "manifest",
    "config",
    "status",
    "plan",
    "problems",
    "holds",
    "log",
    "checks",
    "explanation",
];

/// Somebody without rights.
const NOBODY: u32 = 65534;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The program in an environment that says nothing of it.
fn evenkeel<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVENKEEL") || name == "NO_COLOR" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What it printed and how it ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().expect("it ended by itself"),
            out: String::from_utf8(output.stdout.clone()).unwrap(),
            err: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    #[track_caller]
    fn expect(self, code: i32, error: &str) -> Self {
        let Self { code: found, out, err } = &self;
        assert_eq!(*found, code, "{out}{err}");
        assert!(err.contains(error), "`{error}` is not in: {err}");
        self
    }
}

fn ended(command: &mut Command) -> Ended {
    Ended::of(&command.output().unwrap())
}

fn run(line: &str) -> Ended {
    ended(&mut evenkeel(line.split_whitespace()))
}

/// A fresh box: a directory of manifests, and run and state directories that are not there yet.
struct Fresh {
    directory: tempfile::TempDir,
}

impl Fresh {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("manifests")).unwrap();
        let fresh = Self { directory };
        fresh.write("manifests/web.yaml", &manifest("web"));
        fresh
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A command in this directory; without programs to start, should it try.
    fn command(&self, line: &str) -> Command {
        let mut command = evenkeel(line.split_whitespace());
        command.current_dir(self.path()).env("PATH", "/nonexistent");
        command
    }

    fn with_directories(&self, line: &str) -> Command {
        let settings = "--run-dir run --state-dir state --manifests manifests --engine embedded";
        self.command(&format!("{settings} {line}"))
    }

    /// Everything below, with what would show a change.
    fn snapshot(&self) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![self.path().to_owned()];
        while let Some(path) = waiting.pop() {
            let it = fs::symlink_metadata(&path).unwrap();
            if it.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
            }
            found.insert(path, (it.ino(), it.len(), it.mtime(), it.mtime_nsec()));
        }
        found
    }
}

fn manifest(name: &str) -> String {
    format!(
        "apiVersion: evenkeel/v1\nkind: Container\nmetadata: {{name: {name}}}\nspec: {{image: localhost/busybox:1, imagePullPolicy: never}}\n"
    )
}

#[test]
fn help_fits_a_narrow_terminal_and_is_no_error() {
    let mut lines = vec!["--help".to_owned(), "-h".to_owned(), "help".to_owned()];
    lines.extend(COMMANDS.iter().map(|it| format!("{it} --help")));
    let of_images = ["list", "pull", "import", "prune", "pin", "unpin"];
    lines.extend(of_images.iter().map(|it| format!("image {it} --help")));
    for line in lines {
        let help = ended(evenkeel(line.split_whitespace()).env("COLUMNS", "60"));
        let text = help.expect(0, "").out;
        assert!(text.contains("Usage: evenkeel"), "{line}: {text}");
        let long = text.lines().find(|it| it.chars().count() > 60);
        assert_eq!(long, None, "evenkeel {line}");
    }
}

#[test]
fn help_lists_every_command() {
    let help = run("--help").expect(0, "").out;
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
    }
    let version = run("--version").expect(0, "").out;
    assert_eq!(version, format!("evenkeel {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_a_usage_error_on_stderr() {
    for (line, error) in [
        ("", "Usage: evenkeel"),
        ("frobnicate", "frobnicate"),
        ("plan --frobnicate", "--frobnicate"),
        ("validate", "PATHS"),
        ("logs", "NAME"),
        ("logs Not_A_Name", "`Not_A_Name` is not a valid name"),
        ("logs web --since 5parsecs", "`5parsecs` is not a duration"),
        ("logs web --since 2026-01-31T10:00:00", "not a time with its offset"),
        ("logs web --tail=-1", "--tail"),
        ("exec web", "COMMAND"),
        ("exec -- true", "NAME"),
        ("exec web true", "unexpected argument 'true'"),
        ("exec --user root web -- true", "`root` is not a user in numbers"),
        ("exec --user 1:+2 web -- true", "`1:+2` is not a user in numbers"),
        ("exec --env A web -- true", "write NAME=VALUE"),
        ("exec --env =a web -- true", "write NAME=VALUE"),
        ("exec --workdir tmp web -- true", "tmp"),
        ("exec -it web -- true", "stdin is no terminal"),
        ("apply --timeout soon", "`soon` is not a duration"),
        ("image", "Usage: evenkeel image"),
        ("image pull", "NAME"),
        ("image pull Red:", "Red"),
        ("image import", "FILE"),
        ("image import /nowhere.tar", "/nowhere.tar"),
        ("image pin", "NAME"),
        ("schema poem", "possible values: manifest, config"),
        ("completions tcsh", "possible values: bash"),
        ("plan --engine docker", "auto, system, embedded"),
        ("plan --default-ipc-mode host", "private, shareable"),
        ("plan --default-shm-size 64m", "64Mi"),
        ("plan --containerd-namespace a..b", "not a containerd namespace"),
        ("plan --output yaml", "human, json"),
        ("plan --engine embedded --containerd-address /x.sock", "contradict"),
        ("plan --config /nonexistent/config.yaml", "/nonexistent/config.yaml"),
        ("plan --run-dir /tmp/x/ --state-dir /tmp/x", "are both `/tmp/x`"),
    ] {
        let ended = run(line).expect(2, error);
        assert_eq!(ended.out, "", "{line}");
    }
    for command in COMMANDS {
        run(&format!("{command} --frobnicate")).expect(2, "--frobnicate");
    }
    ended(evenkeel(["apply"]).env("EVENKEEL_LOG", "evenkeel=loud")).expect(2, "EVENKEEL_LOG");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    for line in ["schema", "completions bash", "--help", "validate tests/invalid"] {
        let mut child = evenkeel(line.split_whitespace())
            .current_dir(root())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Closed before the first byte is read.
        drop(child.stdout.take());
        let code = child.wait().unwrap().code();
        assert_eq!(code, Some(0), "{line}");
    }
}

#[test]
fn examples_and_manifests_are_valid() {
    let mut command = evenkeel(["validate", "examples", "manifests"]);
    let ended = ended(command.current_dir(root())).expect(0, " 0 errors, 0 warnings");
    assert_eq!(ended.out, "");
}

#[test]
fn validate_lists_every_problem_with_place_code_and_source_line() {
    let ended =
        ended(evenkeel(["validate", "tests/invalid"]).current_dir(root())).expect(1, " errors");
    let expected = "tests/invalid/ipc-self-join.yaml:7:12: error[ipc-self-join]: `ipc-self-join` cannot join itself\n  \
                    |\n7 |   ipcMode: container:ipc-self-join\n";
    assert!(ended.out.contains(expected), "{}", ended.out);
    for golden in fs::read_dir(root().join("tests/invalid")).unwrap() {
        let path = golden.unwrap().path();
        if path.extension().is_none_or(|it| it != "problems") {
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines().filter(|it| !it.starts_with(' ')) {
            let mut words = line.split(' ');
            let (place, severity, code) = (words.next(), words.next(), words.next());
            let (place, severity, code) = (place.unwrap(), severity.unwrap(), code.unwrap());
            let place = place.strip_suffix(":0:0").unwrap_or(place);
            let line = format!("tests/invalid/{place}: {severity}[{code}]: ");
            assert!(ended.out.contains(&line), "{line}");
        }
    }
}

#[test]
fn warnings_fail_only_when_strict() {
    let fresh = Fresh::new();
    fresh.write("manifests/kustomization.yaml", "resources: [web.yaml]\n");
    ended(&mut fresh.command("validate manifests")).expect(0, "1 warning");
    ended(&mut fresh.command("validate --strict manifests")).expect(1, "1 warning");
}

#[test]
fn validate_reads_stdin() {
    let fresh = Fresh::new();
    let text = manifest("web").replace("image:", "imgae:");
    let file = fresh.write("stdin", &text);
    let mut command = fresh.command("validate -");
    let ended = ended(command.stdin(fs::File::open(file).unwrap())).expect(1, "1 file, 1 document");
    assert!(ended.out.contains("-:4:8: error[unknown-field]"), "{}", ended.out);
}

/// Copies a directory so that everybody may read it.
fn copy_manifests(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_manifests(&path, &to);
        } else if path.extension().is_some_and(|it| it == "yaml") {
            fs::copy(&path, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn validate_needs_no_rights_no_programs_and_no_configuration() {
    let fresh = Fresh::new();
    // Temporary directories and this repository may be closed to others.
    let open = tempfile::Builder::new().prefix("evenkeel-open.").tempdir_in("/tmp").unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = open.path().join("evenkeel");
    fs::copy(PROGRAM, &program).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).env_clear().current_dir("/").uid(NOBODY).gid(NOBODY);
        // A configuration that is wrong is none of its business.
        command.env("EVENKEEL_CONFIG", "/nonexistent/config.yaml").stdin(Stdio::null());
        ended(&mut command)
    };
    for name in ["good.yaml", "bad.yaml"] {
        let text = fs::read_to_string(fresh.path().join("manifests/web.yaml")).unwrap();
        let text = if name == "bad.yaml" { text.replace("web", "Web") } else { text };
        let path = open.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    let path = |name: &str| open.path().join(name).to_str().unwrap().to_owned();
    // What comes with the program, and every wrong sample: the same as for anybody else.
    for name in ["examples", "manifests", "tests/invalid"] {
        let to = open.path().join(name);
        copy_manifests(&root().join(name), &to);
    }
    as_nobody(&["validate", &path("examples"), &path("manifests")]).expect(0, " 0 errors");
    let found = as_nobody(&["validate", &path("tests/invalid")]).expect(1, " errors");
    let own = ended(evenkeel(["validate", "tests/invalid"]).current_dir(root())).expect(1, "");
    let prefix = format!("{}/", open.path().display());
    assert_eq!(found.out.replace(&prefix, ""), own.out);
    // Neither a file that it may not read nor a directory is taken for an empty one.
    for name in ["closed", "closed.yaml"] {
        let closed = open.path().join(name);
        if name == "closed" {
            fs::create_dir(&closed).unwrap();
        } else {
            fs::write(&closed, manifest("web")).unwrap();
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let found = as_nobody(&["validate", &path(name)]).expect(1, "0 documents, ");
        assert!(found.out.contains("unreadable]"), "{}", found.out);
        assert!(found.out.contains("Permission denied"), "{}", found.out);
    }
    as_nobody(&["validate", &path("good.yaml")]).expect(0, "0 errors");
    let found = as_nobody(&["validate", &path("bad.yaml")]).expect(1, "1 error");
    assert!(found.out.contains("error[name-invalid]"), "{}", found.out);
    let empty = open.path().join("empty.yaml");
    fs::write(&empty, "# nothing\n").unwrap();
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o644)).unwrap();
    let found = as_nobody(&["doctor", "--run-dir", &path("run"), "--config", &path("empty.yaml")]);
    assert_eq!(found.code, 3);
    assert!(found.out.contains("problem  rights"), "{}{}", found.out, found.err);
    for command in [vec!["schema"], vec!["completions", "bash"], vec!["--help"]] {
        as_nobody(&command).expect(0, "");
    }
    let manifests = path("good.yaml");
    for command in [
        vec!["plan", &manifests],
        vec!["apply", &manifests],
        vec!["run"],
        vec!["status"],
        vec!["explain", "web"],
        vec!["exec", "web", "--", "true"],
        vec!["attach", "web"],
        vec!["events"],
        vec!["shutdown"],
        vec!["down"],
        vec!["down", "--dry-run"],
        vec!["image", "list"],
        vec!["image", "prune"],
        vec!["image", "import", "Cargo.toml"],
        vec!["approve"],
        vec!["approve", "0123abcd"],
    ] {
        let (run, state) = (path("run"), path("state"));
        let arguments = ["--run-dir", &run, "--state-dir", &state, "--engine", "embedded"];
        let mut arguments = arguments.to_vec();
        arguments.extend(&command);
        let mut command = Command::new(&program);
        command.args(&arguments).env_clear().uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
        ended(&mut command).expect(3, "root is needed");
        assert!(!Path::new(&run).exists() && !Path::new(&state).exists());
    }
}

#[test]
fn committed_schemas_are_what_the_program_prints() {
    for kind in KINDS {
        let printed = run(&format!("schema {kind}")).expect(0, "").out;
        let path = root().join(format!("schemas/{kind}.schema.json"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &printed).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == printed, "{} is not up to date; UPDATE=1 rewrites it", path.display());
    }
    let mut files: Vec<String> = fs::read_dir(root().join("schemas"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut expected: Vec<String> = KINDS.iter().map(|it| format!("{it}.schema.json")).collect();
    expected.sort();
    assert_eq!(files, expected);
}

/// The published schema of a kind of document.
fn schema(kind: &str) -> Value {
    serde_json::from_str(&run(&format!("schema {kind}")).out).unwrap()
}

#[test]
fn what_is_printed_as_json_is_what_the_schemas_say() {
    let fresh = Fresh::new();
    fresh.write(
        "manifests/wrong.yaml",
        &manifest("wrong").replace("never}", "never, ipcMode: sharable}"),
    );
    for (line, kind, code) in [
        ("validate --output json manifests", "problems", 1),
        ("plan --output json", "plan", 1),
        ("status --output json", "status", 1),
        ("approve --output json", "holds", 0),
        ("doctor --output json", "checks", 3),
        ("explain web --output json", "explanation", 4),
        ("image list --output json", "images", 0),
        ("image prune --dry-run --all --output json", "images", 0),
        ("explain wrong --output json", "explanation", 1),
    ] {
        let ended = ended(&mut fresh.with_directories(line)).expect(code, "");
        let value: Value = serde_json::from_str(&ended.out).unwrap();
        assert_eq!(value["apiVersion"], "evenkeel/v1", "{line}");
        let violations = evenkeel::schema::check_against(&schema(kind), &value);
        assert!(violations.is_empty(), "{line}: {violations:?}");
    }
    let ended = ended(&mut fresh.command("validate --output json manifests"));
    let value: Value = serde_json::from_str(&ended.out).unwrap();
    let problem = &value["problems"][0];
    assert_eq!(problem["file"], "manifests/wrong.yaml");
    assert_eq!((problem["line"].as_u64(), problem["column"].as_u64()), (Some(4), Some(69)));
    assert_eq!(problem["code"], "ipc-mode-invalid");
    assert_eq!(problem["pointer"], "/spec/ipcMode");
    assert_eq!(problem["fix"], "shareable");
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(&format!("completions {shell}")).expect(0, "").out;
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn looking_changes_nothing_on_disk() {
    let fresh = Fresh::new();
    let before = fresh.snapshot();
    for round in 0..2 {
        for (line, code) in [
            ("plan", 0),
            ("plan --output json", 0),
            ("status", 4),
            ("status web", 4),
            ("status --output json", 4),
            ("approve", 0),
            ("events", 0),
            ("approve 0123abcd", 2),
            ("logs web", 2),
            ("doctor", 3),
            ("explain web", 4),
            ("validate manifests", 0),
            ("image list", 0),
            ("image prune --dry-run", 0),
            ("down --dry-run", 0),
            ("down --dry-run web", 2),
        ] {
            ended(&mut fresh.with_directories(line)).expect(code, "");
            assert_eq!(before, fresh.snapshot(), "{line}, round {round}");
        }
    }
}

/// A log of an instance of `web`, as its writer leaves it.
fn print_log(fresh: &Fresh, instance: &str, lines: std::ops::Range<u32>) {
    use std::io::Write as _;
    let directory = fresh.path().join("state/logs").join(instance);
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("output.log");
    let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
    for n in lines {
        writeln!(file, "2026-01-01T00:00:{n:02}.000000Z stdout F line {n}").unwrap();
    }
}

#[test]
fn since_and_tail_choose_lines() {
    let fresh = Fresh::new();
    print_log(&fresh, "web-0123456789", 0..10);
    for (arguments, lines) in [
        ("--since 2026-01-01T00:00:07Z", 7..10),
        ("--since 2026-01-01T01:00:07+01:00", 7..10),
        ("--tail 2", 8..10),
        ("--tail 0", 10..10),
        ("--since 2026-01-01T00:00:07Z --tail 2", 8..10),
        ("--since 2026-01-01T00:00:09Z --tail 2", 9..10),
        ("--since 1m", 10..10),
    ] {
        let line = format!("logs web {arguments}");
        let found = ended(&mut fresh.with_directories(&line)).expect(0, "").out;
        let expected: Vec<String> = lines.map(|n| format!("line {n}")).collect();
        assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{line}");
    }
}

#[test]
fn a_follower_goes_on_with_the_next_instance_and_ends_with_its_reader() {
    use std::io::{BufRead as _, BufReader};
    let fresh = Fresh::new();
    print_log(&fresh, "web-0123456789", 0..3);
    let mut command = fresh.with_directories("logs web --follow --tail 1");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "line 2");
    print_log(&fresh, "web-0123456789", 3..4);
    assert_eq!(next(), "line 3");
    let logs = fresh.path().join("state/logs");
    let old = logs.join("web-0123456789/output.log");
    fs::rename(&old, old.with_extension("log.1")).unwrap();
    print_log(&fresh, "web-0123456789", 4..5);
    assert_eq!(next(), "line 4");
    print_log(&fresh, "web-abcdef0123", 5..6);
    assert_eq!(next(), "line 5");
    fs::remove_dir_all(logs.join("web-0123456789")).unwrap();
    print_log(&fresh, "web-abcdef0123", 6..7);
    print_log(&fresh, "webs-abcdef0123", 50..51);
    print_log(&fresh, "web-2-abcdef0123", 50..51);
    assert_eq!(next(), "line 6");
    // Nothing more is printed: it has to notice by itself.
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_interrupt_ends_a_follower() {
    use std::os::unix::process::ExitStatusExt as _;
    let fresh = Fresh::new();
    print_log(&fresh, "web-0123456789", 0..1);
    let mut command = fresh.with_directories("logs web --follow");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(2));
}

#[test]
fn explain_names_the_line_the_reason_and_the_way_out() {
    let fresh = Fresh::new();
    let wrong = manifest("wrong").replace("never}", "never, ipcMode: sharable}");
    fresh.write("manifests/two.yaml", &format!("# two\n{}---\n{wrong}", manifest("second")));
    let found = ended(&mut fresh.with_directories("explain second")).expect(4, "").out;
    let path = fresh.path().join("manifests/two.yaml");
    for expected in [
        "second: Waiting".to_owned(),
        format!("  manifest     {}:2\n", path.display()),
        "  wanted       image localhost/busybox:1, running, restart always\n".to_owned(),
        "  runs         nothing\n".to_owned(),
        "[image-missing]\n".to_owned(),
        "  next         nothing can be done now\n".to_owned(),
        "  way out      put an archive".to_owned(),
    ] {
        assert!(found.contains(&expected), "`{expected}` is not in: {found}");
    }
    let found = ended(&mut fresh.with_directories("explain wrong")).expect(1, "").out;
    for expected in
        [&format!("two.yaml:{}\n", 7)[..], "error[ipc-mode-invalid]", "did you mean `shareable`?"]
    {
        assert!(found.contains(expected), "`{expected}` is not in: {found}");
    }
}

#[test]
fn what_has_to_be_pulled_is_planned_and_explained() {
    let fresh = Fresh::new();
    let pulled = |name: &str| manifest(name).replace(", imagePullPolicy: never", "");
    for name in ["web", "other"] {
        fresh.write(&format!("manifests/{name}.yaml"), &pulled(name));
    }
    let found = ended(&mut fresh.with_directories("plan")).expect(5, "").out;
    let step = "pull     localhost/busybox:1: wanted by `other` and `web`\n";
    let waits = "waiting  web: image-pulling: image localhost/busybox:1 has to be pulled\n";
    assert!(found.contains(step) && found.contains(waits), "{found}");
    assert!(found.ends_with("1 step to do\n"), "{found}");
    let found = ended(&mut fresh.with_directories("explain web")).expect(4, "").out;
    let next = "  next         pull localhost/busybox:1 (wanted by `other` and `web`)\n";
    assert!(found.contains("[image-pulling]\n") && found.contains(next), "{found}");
}

#[test]
fn doctor_names_what_is_missing_on_one_line_each() {
    let fresh = Fresh::new();
    fs::create_dir_all(fresh.path().join("state")).unwrap();
    fs::set_permissions(fresh.path().join("state"), fs::Permissions::from_mode(0o777)).unwrap();
    let found = ended(&mut fresh.with_directories("doctor")).expect(3, "");
    let line = |start: &str| {
        let mut lines = found.out.lines().filter(|it| it.starts_with(start));
        lines.next().unwrap_or_else(|| panic!("no `{start}` in: {}", found.out))
    };
    assert!(line("ok       rights ").contains("root"));
    assert!(line("warning  state directory ").contains("mode 0777"));
    assert!(
        line("warning  state directory ").contains("; `chmod")
            || line("warning  state directory ").contains("; `chown")
    );
    assert!(line("ok       engine ").contains("embedded: it was asked for"));
    assert!(line("problem  runc ").contains("not on the PATH; install it"));
    assert!(line("problem  containerd ").contains("apt-get install"));
    assert!(line("warning  controller ").contains("evenkeel run"));
    let contradiction = "--run-dir run --state-dir state --engine system --containerd-address /nonexistent.sock doctor";
    let found = ended(&mut fresh.command(contradiction)).expect(3, "");
    assert!(found.out.contains("problem  containerd"), "{}", found.out);
    fresh.write("state/engine.json", "{");
    let found = ended(&mut fresh.with_directories("doctor")).expect(3, "");
    assert!(found.out.contains("problem  engine"), "{}", found.out);
}

#[test]
fn doctor_sees_a_clock_that_was_turned_back_and_a_disk_that_cannot_be_written() {
    let fresh = Fresh::new();
    fs::create_dir(fresh.path().join("run")).unwrap();
    let status = r#"{"apiVersion":"evenkeel/v1","kind":"Status","controller":{"pid":1,"version":"0","startedAt":"2999-01-01T00:00:00Z","updatedAt":"2999-01-01T00:00:00Z"},"runtime":{"state":"ready"},"sources":[],"holds":[],"items":[]}"#;
    fresh.write("run/status.json", status);
    fresh.write("a-file", "");
    let line =
        "--run-dir run --state-dir a-file/state --manifests nowhere --engine embedded doctor";
    let found = ended(&mut fresh.command(line)).expect(3, "").out;
    assert!(found.contains("ahead of the clock"), "{found}");
    assert!(
        found.contains("problem  state directory") && found.contains("is no directory"),
        "{found}"
    );
    assert!(found.contains("warning  manifests") && found.contains("nowhere"), "{found}");
}

/// What a runtime says may have many lines; a table has one for each workload.
#[test]
fn a_message_of_several_lines_is_one_line_of_the_table_and_whole_elsewhere() {
    let fresh = Fresh::new();
    fs::create_dir(fresh.path().join("run")).unwrap();
    let item = |name: &str, message: &str| {
        serde_json::json!({
            "name": name, "phase": "BackingOff", "reason": "start-failed", "message": message,
            "upToDate": true, "problems": [],
        })
    };
    let message = "runc said:\n\n  one\n  two \u{1b}[31m\r\n";
    let status = serde_json::json!({
        "apiVersion": "evenkeel/v1",
        "kind": "Status",
        "controller": {"pid": 1, "version": "0", "startedAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"},
        "runtime": {"state": "ready"},
        "sources": [],
        "holds": [{"token": "0123abcd", "reason": "x", "message": message, "source": "/m", "removals": []}],
        "items": [item("first", message), item("second", "")],
    });
    fresh.write("run/status.json", &status.to_string());
    let line = "--run-dir run --state-dir state --manifests nowhere --containerd-address /nonexistent.sock";
    let found = ended(&mut fresh.command(&format!("{line} status"))).expect(3, "").out;
    let rows: Vec<&str> = found.lines().filter(|it| it.contains("start-failed")).collect();
    assert_eq!(rows.len(), 2, "{found}");
    assert!(rows[0].ends_with("start-failed: runc said: one two  [31m"), "{found}");
    let held = found.lines().find(|it| it.starts_with("held: ")).unwrap();
    assert!(held.contains("runc said: one two  [31m; release"), "{found}");
    let found = ended(&mut fresh.command(&format!("{line} status --output json"))).expect(3, "");
    let json: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(json["items"][0]["message"], message);
    let found = ended(&mut fresh.command(&format!("{line} explain first"))).expect(3, "").out;
    assert!(found.contains("one\n  two"), "{found}");
}

#[test]
fn an_unknown_name_is_a_usage_error_everywhere() {
    let fresh = Fresh::new();
    for command in ["status", "explain", "logs", "down", "down --source"] {
        ended(&mut fresh.with_directories(&format!("{command} nobody"))).expect(2, "nobody");
    }
    ended(&mut fresh.with_directories("approve 0123abcd")).expect(2, "0123abcd");
    ended(&mut fresh.with_directories("exec nobody -- true")).expect(2, "nobody");
    ended(&mut fresh.with_directories("image pin nobody")).expect(2, "docker.io/library/nobody");
}

#[test]
fn a_source_that_is_not_there_is_told_and_fails() {
    let fresh = Fresh::new();
    for command in ["plan", "status"] {
        let mut line = fresh.command("--run-dir run --state-dir state --engine embedded");
        let ended = ended(line.args(["--manifests", "nowhere", command])).expect(1, "");
        assert!(ended.out.contains("nowhere: nothing of it is removed"), "{}", ended.out);
    }
    let found = ended(&mut fresh.with_directories("plan nowhere.yaml")).expect(1, "");
    assert!(found.out.contains("[source-missing]"), "{}", found.out);
    let found = ended(&mut fresh.command("validate nowhere.yaml")).expect(1, "");
    assert!(found.out.contains("error[source-missing]"), "{}", found.out);
}

#[test]
fn colour_is_for_terminals_unless_it_is_asked_for() {
    let line = "validate tests/invalid/ipc-self-join.yaml";
    let coloured =
        |command: &mut Command| ended(command.current_dir(root())).out.contains('\u{1b}');
    assert!(!coloured(&mut evenkeel(line.split(' '))));
    let always = format!("--color always {line}");
    assert!(coloured(&mut evenkeel(always.split(' '))));
    // Said on the command line, it is meant.
    assert!(coloured(evenkeel(always.split(' ')).env("NO_COLOR", "1")));
    assert!(!coloured(&mut evenkeel(format!("--color never {line}").split(' '))));
}

#[test]
fn every_problem_of_a_configuration_is_shown_with_its_place() {
    let fresh = Fresh::new();
    fresh.write(
        "config.yaml",
        "runDir: run\nengine: sytem\ndefaultShmSize: 64m\ndefaultShmSize: 64Mi\nremovAfter: 2s\nrestart:\n  polcy: \
         always\npruneLimit: 200\ndefaultIpcMode: host\nallowEmpty: yes\nmanifests: /x\n",
    );
    let error = ended(&mut fresh.command("--config config.yaml plan")).expect(2, "").err;
    for expected in [
        "config.yaml:1:9: error[path-invalid]",
        "config.yaml:2:9: error[value-invalid]: `sytem` is not a value of `engine`",
        "did you mean `system`?",
        "config.yaml:3:17: error[size-invalid]",
        "config.yaml:4:1: error[duplicate-key]",
        "config.yaml:5:1: error[unknown-field]: there is no setting `removAfter`",
        "did you mean `removeAfter`?",
        "config.yaml:7:3: error[unknown-field]: there is no setting `polcy`",
        "did you mean `policy`?",
        "config.yaml:8:13: error[value-invalid]",
        "write a whole number from 0 to 100",
        "config.yaml:9:17: error[value-invalid]",
        "use `private` or `shareable`",
        "config.yaml:10:13: error[wrong-type]",
        "config.yaml:11:12: error[wrong-type]: `manifests` has to be a list",
        "error: the configuration has problems",
    ] {
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_a_usage_error() {
    let fresh = Fresh::new();
    fresh.write("two.yaml", "engine: embedded\n---\nengine: system\n");
    fresh.write("list.yaml", "- engine\n");
    fs::write(fresh.path().join("bytes.yaml"), b"engine: \xff\n").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, fresh.path().join("fifo.yaml"), rustix::fs::Mode::RUSR)
        .unwrap();
    for (file, error) in [
        ("two.yaml", "more than one document"),
        ("list.yaml", "the configuration has to be a mapping"),
        ("bytes.yaml", "error[not-utf8]"),
        ("manifests", "manifests"),
        ("nowhere.yaml", "nowhere.yaml"),
        ("fifo.yaml", "not a file"),
        ("/dev/zero", "not a file"),
    ] {
        for command in ["plan", "status", "approve", "logs web"] {
            let line = format!("--config {file} {command}");
            ended(&mut fresh.command(&line)).expect(2, error);
        }
    }
    // An empty one says nothing, which is all right.
    let empty = fresh.write("empty.yaml", "# nothing yet\n");
    ended(fresh.with_directories("plan").arg("--config").arg(empty)).expect(0, "");
}

/// Three sources with a workload each, named by the file, the environment and the command line.
fn three_sources() -> Fresh {
    let fresh = Fresh::new();
    for name in ["written", "environment", "typed"] {
        fs::create_dir(fresh.path().join(name)).unwrap();
        fresh.write(&format!("{name}/{name}.yaml"), &manifest(name));
    }
    let path = fresh.path().display();
    let text = format!(
        "manifests: [{path}/written]\nrunDir: {path}/run\nstateDir: {path}/state\nengine: embedded\n"
    );
    fresh.write("config.yaml", &text);
    fresh
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let fresh = three_sources();
    let planned = |command: &mut Command| {
        let out = ended(command).expect(0, "").out;
        let names = ["written", "environment", "typed"];
        names.into_iter().filter(|it| out.contains(&format!("waiting  {it}:"))).collect::<Vec<_>>()
    };
    let file = "--config config.yaml plan";
    let environment = ("EVENKEEL_MANIFESTS", "environment");
    assert_eq!(planned(&mut fresh.command(file)), ["written"]);
    assert_eq!(planned(fresh.command("plan").env("EVENKEEL_CONFIG", "config.yaml")), ["written"]);
    assert_eq!(planned(fresh.command(file).env(environment.0, environment.1)), ["environment"]);
    let typed = format!("--manifests typed {file}");
    assert_eq!(planned(fresh.command(&typed).env(environment.0, environment.1)), ["typed"]);
    let several = fresh.command(file).env("EVENKEEL_MANIFESTS", "environment,typed").output();
    let several = Ended::of(&several.unwrap()).out;
    assert!(several.contains("environment:") && several.contains("typed:"), "{several}");
}

#[test]
fn run_refuses_a_flag_that_contradicts_the_file_and_names_both() {
    let fresh = three_sources();
    let before = fresh.snapshot();
    let line = "--config config.yaml run --run-dir other --manifests typed --engine embedded";
    let error = ended(&mut fresh.command(line)).expect(2, "").err;
    let path = fresh.path().display();
    for expected in [
        format!("`--run-dir` says `{path}/other`, and `config.yaml` says `runDir: {path}/run`"),
        format!(
            "`--manifests` says `{path}/typed`, and `config.yaml` says `manifests: {path}/written`"
        ),
    ] {
        assert!(error.contains(&expected), "`{expected}` is not in: {error}");
    }
    assert!(!error.contains("--engine"), "both say the same: {error}");
    assert_eq!(before, fresh.snapshot());
    // Only a controller is that strict.
    ended(&mut fresh.command("--config config.yaml plan --manifests typed")).expect(0, "");
}

#[test]
fn run_takes_the_environment_over_the_file() {
    let fresh = three_sources();
    let mut command = fresh.command("--config config.yaml run");
    command.env("EVENKEEL_RUN_DIR", "other").env("EVENKEEL_LOG_JSON", "1");
    // It gets as far as the programs that it lacks.
    let error = ended(&mut command).expect(3, "`containerd`").err;
    assert!(error.contains("are not installed"), "{error}");
    assert!(fresh.path().join("other").exists() && !fresh.path().join("run").exists());
    assert!(error.starts_with('{'), "the log is JSON lines: {error}");
}

#[test]
fn another_engine_or_place_than_the_recorded_one_is_refused() {
    let fresh = Fresh::new();
    fs::create_dir(fresh.path().join("state")).unwrap();
    let record = |engine: &str| {
        let text = format!(
            r#"{{"engine":"{engine}","namespace":"evenkeel","snapshotter":"overlayfs","reason":"x"}}"#
        );
        fresh.write("state/engine.json", &text);
    };
    record("system");
    let dry = "--run-dir run --state-dir state --manifests manifests";
    ended(&mut fresh.command(&format!("{dry} --engine embedded plan")))
        .expect(3, "evenkeel down --engine system");
    ended(&mut fresh.command(&format!("{dry} --engine system --containerd-address /x.sock plan")))
        .expect(3, "/run/containerd/containerd.sock");
    record("embedded");
    ended(&mut fresh.command(&format!("{dry} --engine system plan")))
        .expect(3, "evenkeel down --engine embedded");
    ended(&mut fresh.command(&format!("{dry} --containerd-namespace other plan")))
        .expect(3, "evenkeel down --containerd-namespace evenkeel");
    ended(&mut fresh.command(&format!("{dry} plan"))).expect(0, "");
    fresh.write("state/engine.json", "{");
    ended(&mut fresh.command(&format!("{dry} plan"))).expect(3, "state/engine.json");
}

#[test]
fn an_engine_that_never_answered_binds_nobody() {
    let fresh = Fresh::new();
    let line = "--engine system --containerd-address /nonexistent.sock apply";
    let dry = "--run-dir run --state-dir state --manifests manifests";
    ended(&mut fresh.command(&format!("{dry} {line}"))).expect(3, "/nonexistent.sock");
    ended(&mut fresh.with_directories("plan")).expect(0, "");
}

#[test]
fn a_run_directory_that_is_too_deep_for_a_socket_is_refused() {
    let fresh = Fresh::new();
    let deep = "x".repeat(100);
    let line =
        format!("--state-dir state --manifests manifests --engine embedded --run-dir {deep} apply");
    ended(&mut fresh.command(&line)).expect(3, "use a shorter run directory");
}

#[test]
fn an_engine_that_was_started_once_and_is_silent_is_an_environment_error() {
    let fresh = Fresh::new();
    fs::create_dir_all(fresh.path().join("state/containerd")).unwrap();
    let before = fresh.snapshot();
    let looking = ["plan", "status", "approve", "down --dry-run", "image list", "image pin a"];
    for command in looking.into_iter().chain(["image prune --dry-run"]) {
        ended(&mut fresh.with_directories(command)).expect(3, "evenkeel apply");
        assert_eq!(before, fresh.snapshot(), "{command}");
    }
    // What was printed is in files.
    ended(&mut fresh.with_directories("logs web")).expect(2, "`web`");
}
