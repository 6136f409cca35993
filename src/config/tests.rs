//! Every key of the file, and which of file, environment and flags counts.

use std::collections::BTreeMap;

use clap::{Args as _, FromArgMatches as _};
use serde_json::{Value, json};

use super::*;

/// Each key with a value that is not its default, and what it comes to in the settings.
fn keys() -> BTreeMap<&'static str, (Value, &'static str)> {
    [
        ("manifests", (json!(["/a", "/b"]), r#"manifests: ["/a", "/b"]"#)),
        ("runDir", (json!("/r"), r#"run_directory: "/r""#)),
        ("stateDir", (json!("/s"), r#"state_directory: "/s""#)),
        ("containerdAddress", (json!("/c.sock"), r#"containerd_address: Some("/c.sock")"#)),
        ("containerdNamespace", (json!("other"), r#"containerd_namespace: "other""#)),
        ("engine", (json!("system"), "engine: System")),
        ("defaultIpcMode", (json!("shareable"), "mode: Shareable")),
        ("defaultShmSize", (json!("1Mi"), "shm_size: Bytes(1048576)")),
        ("removeAfter", (json!("7s"), "remove_after: 7s")),
        ("pruneLimit", (json!(7), "prune_limit: 7")),
        ("allowEmpty", (json!(true), "allow_empty: true")),
        ("restart", (json!({ "policy": "never" }), "restart: Never")),
        ("log", (json!({ "maxFiles": 7 }), "max_files: 7")),
        ("registries", (json!({ "hostsDirs": ["/h"] }), r#"hosts_directories: ["/h"]"#)),
        ("images", (json!({ "highWatermark": 7 }), "high: 7, low: 6")),
        ("snapshotter", (json!("native"), r#"snapshotter: Some("native")"#)),
        ("archives", (json!(["/more"]), r#"archives: ["/var/lib/evenkeel/images", "/more"]"#)),
    ]
    .into()
}

fn file(text: &str) -> File {
    manifest::configuration(Path::new("config.yaml"), text.as_bytes()).unwrap()
}

/// What the command line `words` says, and nothing else does.
fn flags(words: &[String]) -> Flags {
    let command = Flags::augment_args(clap::Command::new("evenkeel").no_binary_name(true));
    let matches = command.get_matches_from(words);
    let mut flags = Flags::from_arg_matches(&matches).unwrap();
    flags.note_typed(&matches);
    flags
}

fn merge(flags: &Flags, text: &str) -> Settings {
    Settings::merge(flags, file(text), None).unwrap()
}

/// `a-b` for `aB`.
fn flag_of(key: &str) -> String {
    let dash = |c: char| {
        if c.is_ascii_uppercase() { format!("-{}", c.to_ascii_lowercase()) } else { c.to_string() }
    };
    key.chars().map(dash).collect()
}

#[test]
fn every_key_of_the_file_reaches_its_setting() {
    let schema = serde_json::to_value(schemars::schema_for!(File)).unwrap();
    let known: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    assert_eq!(known, keys().into_keys().collect::<Vec<_>>(), "a key that is new has to be here");
    let nothing = format!("{:?}", merge(&Flags::default(), ""));
    for (key, (value, expected)) in keys() {
        assert!(!nothing.contains(expected), "{key}: {expected} is the default");
        let found = format!("{:?}", merge(&Flags::default(), &json!({ key: value }).to_string()));
        assert!(found.contains(expected), "{key}: {expected} is not in {found}");
    }
}

#[test]
fn what_is_below_a_key_reaches_its_setting_too() {
    let text = "restart: {backoff: {initial: 1s, factor: 3, max: 9s, resetAfter: 7s}}\n\
                log: {maxSize: 1Mi}\n";
    let found = merge(&Flags::default(), text);
    assert_eq!(
        found.delays,
        Delays {
            initial: Duration::from_secs(1),
            factor: 3,
            max: Duration::from_secs(9),
            reset_after: Duration::from_secs(7),
        }
    );
    assert_eq!(found.log, LogDefaults { max_size: "1Mi".parse().unwrap(), ..LOG });
    assert_eq!(found.restart, RestartPolicy::default());
    // All that a plan follows.
    let everything: serde_json::Map<String, Value> =
        keys().into_iter().map(|(key, it)| (key.to_owned(), it.0)).collect();
    let policy = merge(&Flags::default(), &Value::from(everything).to_string()).policy();
    assert_eq!(policy.ipc.mode, IpcMode::Shareable);
    assert_eq!(policy.ipc.shm_size, "1Mi".parse().unwrap());
    assert_eq!((policy.restart, policy.prune_limit), (RestartPolicy::Never, 7));
    assert_eq!(policy.log.max_files, 7);
    assert_eq!(policy.run_directory, Path::new("/r"));
    assert_eq!(policy.log_directory, Path::new("/s/logs"));
    assert_eq!(policy.cgroup_parent, cgroup_parent(Path::new("/r")));
}

#[test]
fn what_is_said_of_registries_has_paths_and_no_secrets() {
    let nothing = merge(&Flags::default(), "").registries;
    assert_eq!(nothing.hosts_directories, HOSTS_DIRECTORIES.map(PathBuf::from));
    assert_eq!((nothing.credentials, nothing.logins), (None, Vec::new()));
    let text = "registries:\n  hostsDirs: []\n  credentials: [/c]\n  logins:\n  \
                - {host: 'r.example:5000', username: box, passwordFile: /p}\n";
    let found = merge(&Flags::default(), text).registries;
    let login = Login {
        host: "r.example:5000".to_owned(),
        username: "box".to_owned(),
        password_file: "/p".into(),
    };
    let expected = Registries {
        hosts_directories: Vec::new(),
        credentials: Some(vec!["/c".into()]),
        logins: vec![login],
    };
    assert_eq!(found, expected);
    for login in [
        "{host: 'https://r.example', username: box, passwordFile: /p}",
        "{host: r.example/a, username: box, passwordFile: /p}",
        "{host: r.example, username: '', passwordFile: /p}",
        "{host: r.example, username: box, passwordFile: p}",
        "{host: r.example, username: box}",
        "{host: r.example, username: box, password: hunter2, passwordFile: /p}",
    ] {
        let text = format!("registries: {{logins: [{login}]}}");
        let path = Path::new("config.yaml");
        let problems = manifest::configuration::<File>(path, text.as_bytes()).unwrap_err();
        let told = list(&problems);
        assert!(!told.is_empty() && !told.contains("hunter2"), "{login}: {told}");
    }
}

/// Each flag that has a key in the file, with another value than the file's above.
fn flags_of_keys() -> [(&'static str, &'static str, &'static str); 8] {
    [
        ("manifests", "/x", r#"manifests: ["/x"]"#),
        ("runDir", "/x", r#"run_directory: "/x""#),
        ("stateDir", "/x", r#"state_directory: "/x""#),
        ("containerdAddress", "/x", r#"containerd_address: Some("/x")"#),
        ("containerdNamespace", "x", r#"containerd_namespace: "x""#),
        ("engine", "embedded", "engine: Embedded"),
        ("defaultIpcMode", "private", "mode: Private"),
        ("defaultShmSize", "2Mi", "shm_size: Bytes(2097152)"),
    ]
}

#[test]
fn every_flag_wins_over_its_key_and_run_refuses_the_two() {
    for (key, said, expected) in flags_of_keys() {
        let flag = flag_of(key);
        let written = &keys()[key].0;
        let text = json!({ key: written }).to_string();
        let typed = flags(&[format!("--{flag}"), said.to_owned()]);
        let found = format!("{:?}", merge(&typed, &text));
        assert!(found.contains(expected), "{flag}: {expected} is not in {found}");

        let path = Path::new("/etc/config.yaml");
        let refused = Settings::agree(&typed, &file(&text), path).unwrap_err().to_string();
        let shown = written.as_str().map_or_else(|| "/a,/b".to_owned(), str::to_owned);
        for part in [
            format!("`--{flag}` says `{said}`"),
            format!("`/etc/config.yaml` says `{key}: {shown}`"),
        ] {
            assert!(refused.contains(&part), "`{part}` is not in: {refused}");
        }
        // The same, or only one of the two, is no disagreement; nor is what stands in the environment.
        let same = json!({ key: if key == "manifests" { json!([said]) } else { json!(said) } });
        Settings::agree(&typed, &file(&same.to_string()), path).unwrap();
        Settings::agree(&typed, &File::default(), path).unwrap();
        let environment = Flags { typed: BTreeSet::new(), ..typed };
        Settings::agree(&environment, &file(&text), path).unwrap();
        let found = format!("{:?}", merge(&environment, &text));
        assert!(found.contains(expected), "{flag} from the environment: {found}");
    }
}

#[test]
fn every_flag_has_its_variable_and_its_key() {
    let command = Flags::augment_args(clap::Command::new("evenkeel"));
    let mut found = Vec::new();
    for argument in command.get_arguments() {
        let long = argument.get_long().unwrap();
        let variable = format!("EVENKEEL_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(argument.get_env().unwrap(), variable.as_str());
        found.push(long.to_owned());
    }
    // The file cannot say where it is.
    found.retain(|it| it != "config");
    assert_eq!(found, flags_of_keys().map(|it| flag_of(it.0)));
}

#[test]
fn a_setting_is_followed_by_a_running_controller_or_needs_another_one() {
    let at_start = [
        "manifests",
        "runDir",
        "stateDir",
        "containerdAddress",
        "containerdNamespace",
        "engine",
        "registries",
        "archives",
        "snapshotter",
    ];
    let before = merge(&Flags::default(), "");
    for (key, (value, _)) in keys() {
        let next = merge(&Flags::default(), &json!({ key: value }).to_string());
        let expected: &[&str] = if at_start.contains(&key) { &[key] } else { &[] };
        assert_eq!(before.changed_at_start_only(&next), expected);
        let followed = before.policy() != next.policy()
            || (before.remove_after, before.allow_empty) != (next.remove_after, next.allow_empty);
        assert!(followed || at_start.contains(&key), "{key} changes nothing");
    }
}

#[test]
fn images_are_kept_as_the_file_says_and_its_marks_make_sense() {
    let images = |text: &str| merge(&Flags::default(), text).images;
    let default = ImagePolicy { grace: Duration::from_hours(24), high: 85, low: 80 };
    assert_eq!(images(""), default);
    assert_eq!(
        images("images: {grace: 90m}"),
        ImagePolicy { grace: Duration::from_mins(90), ..default }
    );
    assert_eq!(images("images: {highWatermark: 100, lowWatermark: 0}").low, 0);
    assert_eq!(images("images: {highWatermark: 50}").low, 49, "one follows the other");
    for text in ["images: {lowWatermark: 90}", "images: {highWatermark: 70, lowWatermark: 70}"] {
        let error = Settings::merge(&Flags::default(), file(text), None).unwrap_err();
        assert!(error.to_string().contains("`images.lowWatermark`"), "{error}");
    }
    for text in ["images: {highWatermark: 0}", "images: {highWatermark: 101}", "images: {grace: 1}"]
    {
        manifest::configuration::<File>(Path::new("config.yaml"), text.as_bytes()).unwrap_err();
    }
}
