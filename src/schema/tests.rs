use proptest::prelude::*;

use super::*;

fn manifest_of(spec: &Value) -> Value {
    json!({
        "apiVersion": API_VERSION, "kind": KIND, "metadata": { "name": "a" },
        "spec": spec,
    })
}

/// A field's value: mostly right ones, and ones that are nearly right.
fn text(options: &'static [&'static str]) -> BoxedStrategy<Value> {
    prop_oneof![
        8 => proptest::sample::select(options).prop_map(Value::from),
        1 => proptest::sample::select(options).prop_map(|it| Value::from(format!("{it} "))),
        1 => proptest::sample::select(options).prop_map(|it| Value::from(it.to_uppercase())),
        1 => proptest::sample::select(options).prop_map(|it| Value::from(format!("{it}\n"))),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => number(),
        1 => "\\PC{0,12}".prop_map(Value::from),
    ]
    .boxed()
}

fn number() -> BoxedStrategy<Value> {
    prop_oneof![
        proptest::sample::select(vec![-1, 0, 1, 2, 10, 11, 100, 101])
            .prop_map(|it: i64| Value::from(it)),
        proptest::sample::select(vec![
            u64::from(u32::MAX),
            u64::from(u32::MAX) + 1,
            999_999_999_999_999_999,
            1 << 60,
            u64::MAX
        ])
        .prop_map(Value::from),
        (0.1_f64..9.9).prop_map(Value::from),
        Just(Value::from("1")),
        Just(Value::Null),
    ]
    .boxed()
}

fn flag() -> BoxedStrategy<Value> {
    prop_oneof![8 => any::<bool>().prop_map(Value::from), 1 => Just(Value::Null), 1 => Just(Value::from("true"))].boxed()
}

fn size() -> BoxedStrategy<Value> {
    let words: &[&str] = &[
        "1",
        "64Mi",
        "1Ki",
        "9Gi",
        "0",
        "0Mi",
        "064Mi",
        "64m",
        "64MB",
        "64mi",
        "Mi",
        "+1",
        "1e3",
        "1.5Gi",
        "-1",
        "999999999999999999",
        "1000000000000000000",
        "999999999Gi",
        "1000000000Gi",
        "999999999999Mi",
        "9999999999999Mi",
        "999999999999999Ki",
        "1000000000000000Ki",
        "18446744073709551616",
        "٣Mi",
    ];
    prop_oneof![text(words), number(), "[0-9]{0,20}(Ki|Mi|Gi|k)?".prop_map(Value::from)].boxed()
}

fn span() -> BoxedStrategy<Value> {
    let words: &[&str] = &[
        "10s",
        "1m30s",
        "100ms",
        "0s",
        "2h",
        "1h1m1s1ms",
        "1s1m",
        "1s1s",
        "s",
        "10",
        "1.5s",
        "1d",
        "never",
        "-1s",
        "9999h",
        "10000h",
    ];
    prop_oneof![
        text(words),
        "([0-9]{1,6}h)?([0-9]{1,8}m)?([0-9]{1,10}s)?([0-9]{1,13}ms)?".prop_map(Value::from),
    ]
    .boxed()
}

fn path() -> BoxedStrategy<Value> {
    let words: &[&str] = &[
        "/", "/a", "/a/b", "/a/../b", "/..", "/a/..b", "/a//b/", "/./a", "a", "", "~/a", "/a\0",
        "/a\nb", "/é",
    ];
    prop_oneof![
        text(words),
        "/[a./]{0,8}".prop_map(Value::from),
        (1020_usize..1030).prop_map(|n| Value::from(format!("/{}", "é".repeat(n)))),
    ]
    .boxed()
}

fn image() -> BoxedStrategy<Value> {
    let words: &[&str] = &[
        "a",
        "busybox:1.35",
        "docker.io/library/busybox:1.35",
        "localhost/a",
        "localhost:5000/a/b:c",
        "a.b/c",
        "a__b",
        "a___b",
        "a--b",
        "a..b",
        "A",
        "a/B",
        "a:",
        ":a",
        "a@",
        "a@sha256:0",
        "a.b:99999/c",
        "a.b:999999/c",
        "a.b:/c",
        "a/",
        "/a",
        "a//b",
        "-a",
        "a_.b",
        "a.b-/c",
        "x:y/z",
        "a:1/b",
    ];
    prop_oneof![
        text(words),
        "[aA0._:/@-]{0,8}".prop_map(Value::from),
        "[a-c.]{1,3}(:[0-9]{1,6})?/[a-c._-]{1,5}(:[A-C._-]{1,4})?(@sha(256|512):[0-9a-g]{63,65})?"
            .prop_map(Value::from),
        (510_usize..515).prop_map(|n| Value::from("a".repeat(n))),
    ]
    .boxed()
}

fn name() -> BoxedStrategy<Value> {
    prop_oneof![
        "[a-b0-]{0,4}".prop_map(Value::from),
        "[a-z]{60,66}".prop_map(Value::from),
        text(&["a", "a-b", "0", "a.b", "A"])
    ]
    .boxed()
}

fn hostname() -> BoxedStrategy<Value> {
    prop_oneof![
        "[a-bA.-]{0,5}".prop_map(Value::from),
        "[a-z]{30,32}\\.[a-z]{30,33}".prop_map(Value::from),
        "[a-z]{60,66}".prop_map(Value::from)
    ]
    .boxed()
}

fn mode() -> BoxedStrategy<Value> {
    let words: &[&str] = &[
        "none",
        "private",
        "shareable",
        "host",
        "container:a",
        "container:",
        "container",
        "container:a:b",
        "host:",
        "",
        ":",
        "Private",
        "container:A",
        "container:-a",
    ];
    prop_oneof![
        text(words),
        name().prop_map(|it| Value::from(format!("container:{}", it.as_str().unwrap_or("x"))))
    ]
    .boxed()
}

/// A right object with whatever is nearly right in one of its fields, or with one field too few or too many.
fn object(right: Value, fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let one = (0..fields.len()).prop_flat_map(move |n| (Just(fields[n].0), fields[n].1.clone()));
    (one, 0..30)
        .prop_map(move |((name, value), other)| {
            let mut object = right.clone();
            object[name] = value;
            match other {
                0 => object["more"] = json!(1),
                1 => drop(object.as_object_mut().and_then(|it| it.remove(name))),
                _ => {}
            }
            object
        })
        .boxed()
}

fn list(item: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop_oneof![9 => proptest::collection::vec(item, 0..3).prop_map(Value::from), 1 => Just(Value::Null)].boxed()
}

/// A spec with whatever is nearly right in one field.
fn spec() -> BoxedStrategy<Value> {
    let words = |it: &'static [&'static str]| text(it);
    let fields: Vec<(&'static str, BoxedStrategy<Value>)> = vec![
        ("image", image()),
        ("imagePullPolicy", words(crate::workload::ImagePullPolicy::WORDS)),
        ("state", words(crate::workload::WantedState::WORDS)),
        ("command", list(words(&["a", "", "\0"]))),
        ("args", list(words(&["a"]))),
        ("workingDir", path()),
        (
            "env",
            list(object(
                json!({ "name": "A" }),
                vec![
                    ("name", words(&["A", "A=B", "", "a b", "\0", "é"])),
                    ("value", words(&["", "a", "\0"])),
                ],
            )),
        ),
        ("hostname", hostname()),
        (
            "user",
            object(
                json!({ "uid": 1 }),
                vec![("uid", number()), ("gid", number()), ("supplementalGroups", list(number()))],
            ),
        ),
        ("ipcMode", mode()),
        ("shmSize", size()),
        ("network", object(json!({}), vec![("mode", words(crate::workload::NetworkMode::WORDS))])),
        (
            "mounts",
            list(object(
                json!({ "type": "tmpfs", "target": "/a" }),
                vec![
                    ("type", words(crate::workload::MountKind::WORDS)),
                    ("source", path()),
                    ("target", path()),
                    ("readOnly", flag()),
                    ("size", size()),
                    ("mode", words(&["755", "1777", "888", "75", "00755", ""])),
                    (
                        "options",
                        list(words(&[
                            "noexec", "uid=1000", "a=b=c", "a,b", "", "=", "a=", "A", "a=\n",
                        ])),
                    ),
                    ("propagation", words(crate::workload::Propagation::WORDS)),
                    ("create", flag()),
                ],
            )),
        ),
        ("readOnlyRootfs", flag()),
        ("removeOnExit", flag()),
        (
            "restart",
            object(
                json!({}),
                vec![
                    ("policy", words(crate::workload::RestartPolicy::WORDS)),
                    ("maxRetries", number()),
                    ("onBoot", flag()),
                    ("onDonorChange", words(crate::workload::OnDonorChange::WORDS)),
                    (
                        "backoff",
                        object(
                            json!({}),
                            vec![
                                ("initial", span()),
                                ("factor", number()),
                                ("max", span()),
                                ("resetAfter", span()),
                            ],
                        ),
                    ),
                ],
            ),
        ),
        (
            "stop",
            object(
                json!({}),
                vec![
                    (
                        "signal",
                        words(&[
                            "SIGTERM",
                            "SIGRTMIN",
                            "SIGRTMIN+3",
                            "SIGRTMIN+03",
                            "SIGRTMIN++3",
                            "SIGRTMIN+31",
                            "SIGRTMIN+0",
                            "TERM",
                        ]),
                    ),
                    ("timeout", span()),
                ],
            ),
        ),
        (
            "log",
            object(
                json!({}),
                vec![
                    ("driver", words(crate::workload::LogDriver::WORDS)),
                    ("maxSize", size()),
                    ("maxFiles", number()),
                ],
            ),
        ),
    ];
    object(json!({ "image": "a" }), fields)
}

/// The schema less the rules over several fields, which the decoder leaves to it.
fn decodable(manifest: &Value) -> bool {
    static PLAIN: LazyLock<Validator> = LazyLock::new(|| {
        let mut schema = super::manifest();
        for definition in schema["$defs"].as_object_mut().unwrap().values_mut() {
            definition.as_object_mut().unwrap().remove("allOf");
        }
        jsonschema::options().with_pattern_options(PatternOptions::regex()).build(&schema).unwrap()
    });
    PLAIN.is_valid(manifest)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn schema_and_decoder_speak_one_language(spec in spec()) {
        let manifest = manifest_of(&spec);
        let decoded = decode(&manifest);
        prop_assert_eq!(decodable(&manifest), decoded.is_ok(), "{:?} for {}", decoded, manifest);
        if check(&manifest).is_empty() {
            prop_assert!(decoded.is_ok());
        }
    }

    #[test]
    fn what_was_decoded_is_written_as_the_schema_has_it(spec in spec()) {
        if let Ok(workload) = decode(&manifest_of(&spec)) {
            let written = manifest_of(&serde_json::to_value(&workload.spec).unwrap());
            prop_assert!(decodable(&written), "{}", written);
            prop_assert_eq!(decode(&written).unwrap(), workload);
        }
    }

    #[test]
    fn names_are_one_language(name in name()) {
        let manifest = json!({ "apiVersion": API_VERSION, "kind": KIND, "metadata": { "name": name }, "spec": { "image": "a" } });
        prop_assert_eq!(check(&manifest).is_empty(), decode(&manifest).is_ok());
    }
}

#[test]
fn schema_and_decoder_have_the_same_bounds() {
    let bounds = [
        ("/restart/maxRetries", json!(1), json!(0)),
        ("/restart/maxRetries", json!(u32::MAX), json!(u64::from(u32::MAX) + 1)),
        ("/restart/backoff/factor", json!(1), json!(0)),
        ("/restart/backoff/factor", json!(10), json!(11)),
        ("/log/maxFiles", json!(1), json!(0)),
        ("/log/maxFiles", json!(100), json!(101)),
        ("/user/uid", json!(u32::MAX), json!(-1)),
        ("/env/0/name", json!("é".repeat(4096)), json!("é".repeat(4097))),
        (
            "/workingDir",
            json!("/".to_owned() + &"é".repeat(1022)),
            json!("/".to_owned() + &"é".repeat(1023)),
        ),
        ("/image", json!("a".repeat(512)), json!("a".repeat(513))),
        ("/shmSize", json!(999_999_999_999_999_999_u64), json!(1_000_000_000_000_000_000_u64)),
        ("/stop/timeout", json!("9999h"), json!("10000h")),
        ("/stop/signal", json!("SIGRTMIN+30"), json!("SIGRTMIN+31")),
    ];
    for (pointer, inside, outside) in bounds {
        for (value, valid) in [(inside, true), (outside, false)] {
            let mut spec = json!({
                "image": "a", "restart": { "policy": "on-failure", "maxRetries": 1, "backoff": { "factor": 1 } },
                "log": { "maxFiles": 1 }, "user": { "uid": 1 }, "env": [{ "name": "A" }], "workingDir": "/",
                "shmSize": 1, "stop": { "timeout": "1s", "signal": "SIGTERM" },
            });
            *spec.pointer_mut(pointer).unwrap() = value;
            let manifest = manifest_of(&spec);
            assert_eq!(check(&manifest).is_empty(), valid, "schema, {pointer}");
            assert_eq!(decode(&manifest).is_ok(), valid, "decoder, {pointer}");
        }
    }
}

#[test]
fn the_schema_is_valid_under_its_own_dialect() {
    jsonschema::meta::validate(&manifest()).unwrap();
}

#[test]
fn every_field_is_described_and_none_may_be_null() {
    let schema = manifest();
    let mut fields = 0;
    let objects = schema["$defs"].as_object().unwrap().iter().map(|(name, it)| (name.as_str(), it));
    for (name, object) in objects.chain([("manifest", &schema)]) {
        for (field, value) in
            object.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            let text = value["description"].as_str().unwrap_or_default();
            assert!(text.len() > 8, "{name}.{field} has no description");
            assert!(!text.contains('[') && !text.contains('\n'), "{name}.{field}: {text}");
            fields += 1;
        }
    }
    assert!(fields > 50);
    let text = schema.to_string();
    assert!(
        !text.contains("null") && !text.contains("anyOf"),
        "an optional field is one that may be left out"
    );
}

#[test]
fn a_rule_over_several_fields_says_its_code() {
    let conflicts = |spec: Value| -> Vec<Violation> { check(&manifest_of(&spec)) };
    let together = |pointer: &str, code: &str| Violation {
        pointer: pointer.to_owned(),
        rule: Rule::Together(code.to_owned()),
    };
    for mode in ["none", "host", "container:b"] {
        let found = conflicts(json!({ "image": "a", "ipcMode": mode, "shmSize": "1Mi" }));
        assert_eq!(found, [together("/spec/shmSize", "shm-size-conflict")]);
    }
    for mode in ["private", "shareable"] {
        assert_eq!(conflicts(json!({ "image": "a", "ipcMode": mode, "shmSize": "1Mi" })), []);
    }
    assert_eq!(conflicts(json!({ "image": "a", "shmSize": "1Mi" })), []);
    for restart in [json!({ "maxRetries": 1 }), json!({ "maxRetries": 1, "policy": "never" })] {
        let found = conflicts(json!({ "image": "a", "restart": restart }));
        assert_eq!(found, [together("/spec/restart/maxRetries", "max-retries-conflict")]);
    }
    assert_eq!(
        conflicts(json!({ "image": "a", "restart": { "maxRetries": 1, "policy": "on-failure" } })),
        []
    );
    for restart in [json!({}), json!({ "policy": "always" }), json!({ "onBoot": true })] {
        let found = conflicts(json!({ "image": "a", "restart": restart, "removeOnExit": true }));
        assert_eq!(found, [together("/spec/removeOnExit", "remove-on-exit-conflict")]);
        assert_eq!(
            conflicts(json!({ "image": "a", "restart": restart, "removeOnExit": false })),
            []
        );
    }
    let found = conflicts(json!({ "image": "a", "removeOnExit": true }));
    assert_eq!(found, [together("/spec/removeOnExit", "remove-on-exit-conflict")]);
    for policy in ["on-failure", "never"] {
        let restart = json!({ "policy": policy });
        assert_eq!(
            conflicts(json!({ "image": "a", "restart": restart, "removeOnExit": true })),
            []
        );
    }
}

#[test]
fn fields_are_found_by_their_place() {
    assert_eq!(fields("/spec/mounts/7").len(), 9);
    assert_eq!(fields("/spec/restart/backoff"), ["factor", "initial", "max", "resetAfter"]);
    assert!(
        fields("/spec/image").is_empty()
            && fields("/nowhere/at/all").is_empty()
            && fields("/spec/args/0").is_empty()
    );
    assert_eq!(fields(""), ["apiVersion", "kind", "metadata", "spec"]);
}
