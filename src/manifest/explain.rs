//! Broken rules of the schema → flaws with our own text: code, message, hint and, where it is certain, the fix.
//!
//! Decides nothing about what is valid; that is the schema's.

use serde_json::Number;

use super::yaml::{Flaw, Kind, Mark, Node, describe, escape, shorten};
use crate::schema::{self, Rule, Violation};
use crate::workload::{
    API_VERSION, Bytes, IPC_MODES, IpcMode, KIND, NAME_LENGTH, Name, Signal, Span,
};

/// Explains what is wrong with one document.
pub(super) struct Explainer<'a> {
    pub(super) root: &'a Node,
    /// The text that the marks' bytes count in, less `base`.
    pub(super) text: &'a str,
    pub(super) base: usize,
}

/// What a message says beside the message itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) hint: Option<String>,
    pub(super) fix: Option<String>,
}

impl Advice {
    pub(super) fn hint(text: impl Into<String>) -> Self {
        Self { hint: Some(text.into()), fix: None }
    }

    pub(super) fn fix(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { hint: Some(format!("did you mean `{text}`?")), fix: Some(text) }
    }

    pub(super) fn add_to(self, flaw: Flaw) -> Flaw {
        Flaw { hint: self.hint, fix: self.fix, ..flaw }
    }
}

impl Explainer<'_> {
    pub(super) fn explain(&self, violation: &Violation) -> Vec<Flaw> {
        let pointer = &violation.pointer;
        let (key, node) = self.root.at(pointer).unwrap_or((None, self.root));
        match &violation.rule {
            Rule::Unknown(names) => {
                let flaw =
                    |(index, name): (usize, &String)| unknown(pointer, node, name, index < ADVISED);
                names.iter().enumerate().map(flaw).collect()
            }
            Rule::Missing(field) => {
                let mark = key.unwrap_or(&node.mark).clone();
                let message = format!("{} lacks `{field}`", object(pointer));
                let flaw = Flaw::new("missing-field", format!("{pointer}/{field}"), mark, message);
                vec![missing(pointer, field).add_to(flaw)]
            }
            Rule::Type(expected) => {
                let found =
                    if node.kind == Kind::Null { "nothing".to_owned() } else { describe(node) };
                let message =
                    format!("`{}` has to be {}, not {found}", last(pointer), type_names(expected));
                let mark = visible(node, key);
                vec![self.wrong_type(pointer, node, expected).add_to(Flaw::new(
                    "wrong-type",
                    pointer.clone(),
                    mark,
                    message,
                ))]
            }
            Rule::Choice(words) => vec![choice(pointer, node, words)],
            Rule::Value => vec![self.value(pointer, node)],
            Rule::Together(code) => vec![self.together(pointer, key.unwrap_or(&node.mark), code)],
        }
    }

    /// The text at a mark as the user wrote it.
    fn raw(&self, mark: &Mark) -> &str {
        let range =
            mark.bytes.start.saturating_sub(self.base)..mark.bytes.end.saturating_sub(self.base);
        self.text.get(range).unwrap_or_default()
    }

    fn wrong_type(&self, pointer: &str, node: &Node, expected: &[&str]) -> Advice {
        let tokens: Vec<&str> = pointer.split('/').skip(1).collect();
        let expects = |name: &str| expected.contains(&name);
        match (tokens.as_slice(), &node.kind) {
            (["apiVersion"], _) => Advice::fix(API_VERSION),
            (["kind"], _) => Advice::fix(KIND),
            (["spec", "ipcMode"], Kind::Null) => Advice::hint(IPC_DEFAULT),
            ([.., "command" | "args"], Kind::Null) => {
                Advice::hint("write `[]` for none, or leave the field out")
            }
            ([parents @ .., field], Kind::Null) => {
                let parent: String = parents.iter().flat_map(|it| ["/", it]).collect();
                let required = missing(&parent, field);
                if required == Advice::default() {
                    Advice::hint("leave the field out, or give it a value")
                } else {
                    required
                }
            }
            (["spec", "restart"], Kind::Text(word)) => restart_policy(word).map_or_else(
                || Advice::hint("write `restart: {policy: always}`"),
                |it| Advice::fix(format!("{{policy: {it}}}")),
            ),
            (["spec", "network"], Kind::Text(word)) => match &**word {
                "none" | "host" => Advice::fix(format!("{{mode: {word}}}")),
                _ => Advice::hint("write `network: {mode: host}`"),
            },
            (["spec", "stop"], Kind::Text(word)) => {
                match Signal::from_image(&word.to_uppercase()) {
                    Some(signal) => Advice::fix(format!("{{signal: {signal}}}")),
                    None => Advice::hint("write `stop: {signal: SIGTERM, timeout: 10s}`"),
                }
            }
            (["spec", "user"], Kind::Number(uid)) => Advice::fix(format!("{{uid: {uid}}}")),
            (["spec", "user"], Kind::Text(text)) => user(text),
            (["spec", "env"], Kind::Map(_)) => {
                Advice::hint("write a list: `- {name: KEY, value: \"text\"}`")
            }
            (["spec", "env", _], Kind::Text(text)) => match text.split_once('=') {
                Some((name, value)) if plain(name) => {
                    Advice::fix(format!("{{name: {name}, value: {}}}", quoted(value)))
                }
                _ => Advice::hint("write `{name: KEY, value: \"text\"}`"),
            },
            (["spec", "mounts", _], Kind::Text(text)) => mount(text),
            (["spec", "command" | "args"], Kind::Text(_)) => Advice::hint(
                "write a list of words: `[\"sh\", \"-c\", \"sleep 60\"]`; no shell takes it apart",
            ),
            (["spec", "stop", "signal"], Kind::Number(number)) => {
                Signal::from_image(&number.to_string())
                    .map_or_else(Advice::default, |it| Advice::fix(it.to_string()))
            }
            (
                ["spec", "stop", "timeout"] | ["spec", "restart", "backoff", _],
                Kind::Number(number),
            ) if expects("string") => duration(&number.to_string(), pointer),
            (_, Kind::Text(text)) if expects("boolean") => match text.to_lowercase().as_str() {
                "yes" | "on" | "true" | "y" => Advice::fix("true"),
                "no" | "off" | "false" | "n" => Advice::fix("false"),
                _ => Advice::hint("write `true` or `false`"),
            },
            (_, Kind::Text(text)) if expects("integer") => match text.trim().parse::<u32>() {
                Ok(number) => Advice::fix(number.to_string()),
                Err(_) => Advice::default(),
            },
            (_, Kind::Number(_) | Kind::Bool(_)) if expects("string") && !expects("integer") => {
                Advice {
                    hint: Some("put it in quotes".to_owned()),
                    fix: Some(quoted(self.raw(&node.mark))),
                }
            }
            (_, Kind::Number(number)) if is_size(&tokens) => size(&number.to_string()),
            (_, Kind::Text(_) | Kind::Number(_)) if expects("array") => {
                Advice::hint("write a list: `[…]`, or a line with `- ` for each")
            }
            _ => Advice::default(),
        }
    }

    fn value(&self, pointer: &str, node: &Node) -> Flaw {
        let tokens: Vec<&str> = pointer.split('/').skip(1).collect();
        let raw = match &node.kind {
            Kind::Text(text) => text.to_string(),
            Kind::Number(_) => self.raw(&node.mark).to_owned(),
            Kind::Null | Kind::Bool(_) | Kind::List(_) | Kind::Map(_) => String::new(),
        };
        let shown = if raw.is_empty() {
            "an empty text".to_owned()
        } else {
            format!("`{}`", shorten(&raw))
        };
        let (code, what, advice) = match tokens.as_slice() {
            ["metadata", "name"] => ("name-invalid", "a workload's name", name(&raw)),
            ["spec", "image"] => ("image-invalid", "an image reference", image(&raw)),
            ["spec", "ipcMode"] => ("ipc-mode-invalid", "an IPC mode", ipc_mode(&raw)),
            _ if is_size(&tokens) => ("size-invalid", "a size", size(&raw)),
            ["spec", "stop", "timeout"]
            | ["spec", "restart", "backoff", "initial" | "max" | "resetAfter"] => {
                ("duration-invalid", "a duration", duration(&raw, pointer))
            }
            ["spec", "workingDir"] | ["spec", "mounts", _, "source" | "target"] => {
                ("path-invalid", "a path that can stand here", path(&raw))
            }
            ["spec", "hostname"] => ("hostname-invalid", "a host name", hostname(&raw)),
            ["spec", "env", _, "name"] => {
                ("env-name-invalid", "the name of a variable", variable(&raw))
            }
            ["spec", "mounts", _, "mode"] => (
                "file-mode-invalid",
                "a set of permissions",
                Advice::hint("write three or four octal digits in quotes: `\"1777\"`"),
            ),
            ["spec", "mounts", _, "options", _] => (
                "mount-option-invalid",
                "a mount option",
                Advice::hint("write one option an entry: `noexec`, `uid=1000`"),
            ),
            ["spec", "restart", "maxRetries"] => (
                "value-invalid",
                "a number of retries",
                Advice::hint("write 1 or more; with no limit, leave it out"),
            ),
            ["spec", "restart", "backoff", "factor"] => {
                ("value-invalid", "a factor", Advice::hint("write a whole number from 1 to 10"))
            }
            ["spec", "log", "maxFiles"] => (
                "value-invalid",
                "a number of files",
                Advice::hint("write a whole number from 1 to 100"),
            ),
            ["spec", "user", ..] => (
                "value-invalid",
                "a user or group ID",
                Advice::hint("write a whole number from 0 to 4294967295"),
            ),
            _ => ("value-invalid", "a value that the field takes", Advice::default()),
        };
        advice.add_to(Flaw::new(
            code,
            pointer.to_owned(),
            node.mark.clone(),
            format!("{shown} is not {what}"),
        ))
    }

    fn together(&self, pointer: &str, key: &Mark, code: &str) -> Flaw {
        let parent = pointer.rsplit_once('/').map_or("", |it| it.0);
        let beside = |field: &str| {
            self.root
                .at(&format!("{parent}/{field}"))
                .and_then(|it| it.1.text())
                .unwrap_or_default()
        };
        let field = last(pointer);
        let (code, message, hint) = match code {
            "shm-size-conflict" => {
                let mode = beside("ipcMode");
                let hint = match mode {
                    "none" => "leave `shmSize` out: with `none` there is no /dev/shm",
                    "host" => "leave `shmSize` out: with `host` it is the host's /dev/shm",
                    _ => {
                        "set the size on the workload that is joined: its /dev/shm is the one that counts"
                    }
                };
                (
                    "shm-size-conflict",
                    format!("`shmSize` has no meaning with `ipcMode: {}`", shorten(mode)),
                    hint,
                )
            }
            "mount-field-conflict" => (
                "mount-field-conflict",
                format!("a {} mount has no `{field}`", beside("type")),
                "leave the field out",
            ),
            "remove-on-exit-conflict" => (
                "remove-on-exit-conflict",
                "`removeOnExit` needs `restart: {policy: never}` or `on-failure` beside it"
                    .to_owned(),
                "what is always started again has no last run",
            ),
            "max-retries-conflict" => {
                let message = "`maxRetries` needs `policy: on-failure` beside it".to_owned();
                (
                    "max-retries-conflict",
                    message,
                    "the other policies either never stop or never start again",
                )
            }
            _ => ("value-invalid", format!("`{field}` cannot stand here"), "leave the field out"),
        };
        Flaw::new(code, pointer.to_owned(), key.clone(), message).hint(hint)
    }
}

/// Unknown fields of one object that get advice; who has more has another format.
const ADVISED: usize = 100;

const IPC_DEFAULT: &str = "leave `ipcMode` out to get the controller's default";

const NAME_RULE: &str =
    "lower-case letters, digits and `-`, which is neither first nor last; at most 63 characters";

/// The place of a value; of its key when there is nothing to see of the value.
fn visible(node: &Node, key: Option<&Mark>) -> Mark {
    match key {
        Some(key) if node.mark.bytes.is_empty() => key.clone(),
        _ => node.mark.clone(),
    }
}

/// How a message calls the object at a pointer: "a manifest", "`spec.mounts[0]`".
fn object(pointer: &str) -> String {
    if pointer.is_empty() { "a manifest".to_owned() } else { format!("`{}`", dotted(pointer)) }
}

fn dotted(pointer: &str) -> String {
    let mut text = String::new();
    for token in pointer.split('/').skip(1) {
        if token.bytes().all(|c| c.is_ascii_digit()) {
            text.extend(["[", token, "]"]);
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(&shorten(token));
        }
    }
    text
}

/// How a message calls the value at a pointer: its field, or its list when it is an item.
fn last(pointer: &str) -> String {
    if pointer.is_empty() {
        return "the document".to_owned();
    }
    let mut from = pointer.rfind('/').unwrap_or_default();
    while from > 0 && pointer[from + 1..].bytes().next().is_some_and(|c| c.is_ascii_digit()) {
        from = pointer[..from].rfind('/').unwrap_or_default();
    }
    dotted(&pointer[from..])
}

pub(super) fn type_names(expected: &[&str]) -> String {
    if expected.contains(&"integer") && expected.contains(&"string") {
        return "a size such as `64Mi`".to_owned();
    }
    let names = expected.iter().map(|it| match *it {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "text",
        "integer" => "a whole number",
        "boolean" => "`true` or `false`",
        other => other,
    });
    names.collect::<Vec<_>>().join(" or ")
}

fn is_size(tokens: &[&str]) -> bool {
    matches!(
        tokens,
        ["spec", "shmSize"] | ["spec", "mounts", _, "size"] | ["spec", "log", "maxSize"]
    )
}

pub(super) fn list(words: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = words.iter().map(|it| format!("`{}`", it.as_ref())).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        Some((only, _)) => only.clone(),
        None => String::new(),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether a text can stand in a flow mapping without quotes.
fn plain(text: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
    text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '/'))
        && text.chars().all(safe)
}

/// A word without what people write differently: case, `-`, `_` and spaces.
fn folded(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).flat_map(char::to_lowercase).collect()
}

/// The candidate that a mistyped word most likely means.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Nobody mistypes a novel, and the distance of two long texts takes long.
    if word.len() > 64 {
        return None;
    }
    let word = folded(word);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let other = folded(candidate);
        let distance = strsim::osa_distance(&word, &other);
        let length = word.len().max(other.len());
        let close = distance <= length / 4 || length <= 4 && distance <= 1 && word.len() > 1;
        let begins = word.len() >= 4
            && (other.starts_with(&word) || word.starts_with(&other) && other.len() >= 4);
        if (close || begins) && best.is_none_or(|it| distance < it.0) {
            best = Some((distance, candidate));
        }
    }
    best.map(|it| it.1)
}

fn missing(pointer: &str, field: &str) -> Advice {
    match (pointer, field) {
        ("", "apiVersion") => Advice::hint("add `apiVersion: evenkeel/v1`"),
        ("", "kind") => Advice::hint("add `kind: Container`"),
        ("", "metadata") => Advice::hint("add `metadata: {name: NAME}`"),
        ("", "spec") => Advice::hint("add a `spec` with at least an `image`"),
        ("/metadata", "name") => Advice::hint(format!("a name is {NAME_RULE}")),
        ("/spec", "image") => {
            Advice::hint("add the image to run: `image: docker.io/library/busybox:1.35`")
        }
        (_, "source") => Advice::hint("a bind mount needs the path on the host as `source`"),
        (_, "target") => Advice::hint("add the path inside the container as `target`"),
        (_, "type") => Advice::hint("add `type: bind` or `type: tmpfs`"),
        (_, "uid") => Advice::hint("add the numeric user as `uid`"),
        _ => Advice::default(),
    }
}

fn unknown(parent: &str, node: &Node, name: &str, advised: bool) -> Flaw {
    let mark = node.entry(name).map_or(&node.mark, |it| &it.mark).clone();
    let message = format!("{} has no field `{}`", object(parent), shorten(name));
    let flaw = Flaw::new("unknown-field", format!("{parent}/{}", escape(name)), mark, message);
    if advised { unknown_field(parent, name, node.get(name)).add_to(flaw) } else { flaw }
}

/// The right word for what Docker, Compose, Kubernetes or Podman call differently, by the object it is in.
const FIELDS: &[(&str, &[&str], &str)] = &[
    ("/spec", &["ipc", "ipcNamespace"], "ipcMode"),
    ("/spec", &["shm", "shmsize", "devShmSize"], "shmSize"),
    ("/spec", &["entrypoint"], "command"),
    ("/spec", &["cmd", "arguments"], "args"),
    ("/spec", &["cwd", "workdir", "workingDirectory"], "workingDir"),
    ("/spec", &["environment", "envs"], "env"),
    ("/spec", &["host", "uts"], "hostname"),
    ("/spec", &["volumes", "volumeMounts", "binds"], "mounts"),
    ("/spec", &["readOnly", "readonlyRootfs", "readOnlyRootFilesystem"], "readOnlyRootfs"),
    ("/spec", &["pullPolicy", "pull"], "imagePullPolicy"),
    ("/spec", &["rm", "autoRemove", "remove"], "removeOnExit"),
    ("/spec", &["logging", "logs", "logConfig"], "log"),
    ("/spec", &["runAsUser"], "user"),
    ("/spec/restart", &["name", "condition"], "policy"),
    ("/spec/restart", &["maximumRetryCount", "maxAttempts", "retries"], "maxRetries"),
    ("/spec/restart", &["delay"], "backoff"),
    ("/spec/restart/backoff", &["base", "delay", "initialDelay"], "initial"),
    ("/spec/restart/backoff", &["cap", "limit", "maxDelay"], "max"),
    ("/spec/stop", &["gracePeriod", "grace", "stopTimeout"], "timeout"),
    ("/spec/stop", &["stopSignal"], "signal"),
    ("/spec/network", &["name", "type", "networkMode"], "mode"),
    ("/spec/log", &["type", "name"], "driver"),
    ("/spec/log", &["maxFile", "files"], "maxFiles"),
    ("/spec/log", &["size"], "maxSize"),
    ("/spec/user", &["user", "runAsUser"], "uid"),
    ("/spec/user", &["group", "runAsGroup"], "gid"),
    ("/spec/user", &["groups", "groupAdd"], "supplementalGroups"),
    ("/spec/mounts/*", &["mountPath", "destination", "dst", "path"], "target"),
    ("/spec/mounts/*", &["hostPath", "src"], "source"),
    ("/spec/mounts/*", &["ro"], "readOnly"),
    ("/spec/mounts/*", &["sizeLimit"], "size"),
    ("/spec/mounts/*", &["mountPropagation", "bindPropagation"], "propagation"),
    ("/spec/env/*", &["key"], "name"),
];

/// What others have as a field of its own and we have elsewhere or as something else, with the way to write it.
const ELSEWHERE: &[(&str, &[&str], &str)] = &[
    ("/spec", &["restartPolicy"], "restart: {policy: …}"),
    ("/spec", &["stopSignal"], "stop: {signal: …}"),
    (
        "/spec",
        &["terminationGracePeriodSeconds", "stopGracePeriod", "stopTimeout"],
        "stop: {timeout: 10s}",
    ),
    ("/spec", &["networkMode", "net"], "network: {mode: …}"),
    ("/spec", &["hostNetwork"], "network: {mode: host}"),
    ("/spec", &["hostIPC"], "ipcMode: host"),
    ("/spec", &["tmpfs"], "mounts: [{type: tmpfs, target: …}]"),
    ("/spec", &["securityContext"], "readOnlyRootfs: true or user: {uid: …}"),
    ("/spec", &["containerName", "name"], "metadata: {name: …}"),
    ("/spec", &["labels", "annotations"], "metadata: {labels: …, annotations: …}"),
    (
        "/spec",
        &["containers", "initContainers"],
        "one document for each container, with --- between them",
    ),
    ("", &["services"], "one document for each container, with --- between them"),
    ("", &["name", "labels", "annotations"], "metadata: {name: …, labels: …, annotations: …}"),
];

fn unknown_field(parent: &str, name: &str, value: Option<&Node>) -> Advice {
    let place: String = parent
        .split('/')
        .skip(1)
        .map(|it| {
            if it.bytes().all(|c| c.is_ascii_digit()) { "/*".to_owned() } else { format!("/{it}") }
        })
        .collect();
    let known = |words: &[&str]| words.iter().any(|it| folded(it) == folded(name));
    let fields = schema::fields(parent);
    // The same word in another spelling first: `shm_size`, `IpcMode`.
    if let Some(same) = fields.iter().find(|it| folded(it) == folded(name)) {
        return Advice::fix(*same);
    }
    if let Some((_, _, how)) = ELSEWHERE.iter().find(|(at, words, _)| *at == place && known(words))
    {
        let how = match (*how, value.and_then(Node::text).and_then(restart_policy)) {
            ("restart: {policy: …}", Some(policy)) => format!("restart: {{policy: {policy}}}"),
            (how, _) => how.to_owned(),
        };
        return Advice::hint(format!("here it is `{how}`"));
    }
    if let Some((_, _, field)) = FIELDS.iter().find(|(at, words, _)| *at == place && known(words)) {
        return Advice {
            hint: Some(format!("here it is `{field}`")),
            fix: Some((*field).to_owned()),
        };
    }
    // A field that exists, at the wrong place: most often not indented enough.
    let elsewhere = ["/spec", "/metadata", ""]
        .into_iter()
        .find(|at| *at != parent && schema::fields(at).contains(&name));
    if let Some(at) = elsewhere {
        return Advice::hint(match at {
            "" => "it stands at the start of the document, not indented".to_owned(),
            at => format!("it belongs into `{}`", dotted(at)),
        });
    }
    match nearest(name, fields.iter().copied()) {
        Some(field) => Advice::fix(field),
        None if fields.is_empty() || fields.len() > 12 => Advice::default(),
        None => Advice::hint(format!("it has {}", list(&fields))),
    }
}

fn choice(pointer: &str, node: &Node, words: &[String]) -> Flaw {
    let tokens: Vec<&str> = pointer.split('/').skip(1).collect();
    let raw = node.text().unwrap_or_default();
    let shown =
        if raw.is_empty() { "an empty text".to_owned() } else { format!("`{}`", shorten(raw)) };
    let known = match tokens.as_slice() {
        ["spec", "restart", "policy"] => restart_policy(raw),
        ["spec", "imagePullPolicy"] => match folded(raw).as_str() {
            "missing" | "build" => Some("if-not-present"),
            "no" | "off" => Some("never"),
            _ => None,
        },
        ["spec", "state"] => match folded(raw).as_str() {
            "started" | "start" | "up" | "present" | "on" => Some("running"),
            "stop" | "down" | "exited" | "off" | "paused" => Some("stopped"),
            "removed" | "deleted" | "gone" => Some("absent"),
            _ => None,
        },
        ["spec", "mounts", _, "propagation"] => match raw {
            "private" => Some("rprivate"),
            "slave" | "HostToContainer" => Some("rslave"),
            "shared" | "Bidirectional" => Some("rshared"),
            _ => None,
        },
        ["spec", "mounts", _, "type"] => match raw {
            "volume" | "hostPath" | "rbind" => Some("bind"),
            "emptyDir" | "memory" => Some("tmpfs"),
            _ => None,
        },
        _ => None,
    };
    let (code, what) = match tokens.as_slice() {
        ["kind"] => ("kind-invalid", "a kind"),
        ["apiVersion"] => ("api-version-unsupported", "a version that this Evenkeel reads"),
        ["spec", "stop", "signal"] => ("signal-invalid", "a signal"),
        _ => ("value-invalid", "a value that the field takes"),
    };
    let advice = match known {
        Some(word) => Advice::fix(word),
        None if code == "signal-invalid" => match Signal::from_image(&raw.to_uppercase()) {
            Some(signal) => Advice::fix(signal.to_string()),
            None if raw.starts_with("SIGRTMIN") => Advice::hint(
                "the real-time signals are `SIGRTMIN` and `SIGRTMIN+1` to `SIGRTMIN+30`",
            ),
            None => nearest(raw, words.iter().map(String::as_str)).map_or_else(
                || Advice::hint("write a signal's name: `SIGTERM`, `SIGRTMIN+3`"),
                Advice::fix,
            ),
        },
        None => match nearest(raw, words.iter().map(String::as_str)) {
            Some(word) => Advice::fix(word),
            None if raw == "bridge" && tokens.last() == Some(&"mode") => {
                Advice::hint("there is no bridge network yet: only `none` and `host`")
            }
            None => Advice::hint(format!("it takes {}", list(words))),
        },
    };
    advice.add_to(Flaw::new(
        code,
        pointer.to_owned(),
        node.mark.clone(),
        format!("{shown} is not {what}"),
    ))
}

fn restart_policy(word: &str) -> Option<&'static str> {
    match folded(word).as_str() {
        "always" | "unlessstopped" | "any" => Some("always"),
        "onfailure" | "onerror" => Some("on-failure"),
        "never" | "no" | "none" | "off" | "false" => Some("never"),
        it if it.starts_with("onfailure:") => Some("on-failure"),
        _ => None,
    }
}

pub(super) fn name(raw: &str) -> Advice {
    let mut slug = String::new();
    for c in raw.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(NAME_LENGTH);
    let slug = slug.trim_end_matches('-');
    let hint = format!("a name is {NAME_RULE}");
    Advice { hint: Some(hint), fix: slug.parse::<Name>().ok().map(|it| it.to_string()) }
}

pub(super) fn ipc_mode(raw: &str) -> Advice {
    let is_mode = |text: &str| text.parse::<IpcMode>().is_ok();
    if raw.is_empty() {
        return Advice::hint(IPC_DEFAULT);
    }
    // Spaces and capitals around a right word.
    let clean = raw.trim().to_lowercase();
    if is_mode(&clean) {
        return Advice::fix(clean);
    }
    match clean.split_once(':') {
        None if clean == "container" => Advice::hint("name the workload to join: `container:NAME`"),
        Some(("container", "")) => Advice::hint("name the workload to join: `container:NAME`"),
        Some(("container", target)) if target.contains(':') => {
            Advice::hint("`container:` takes the name of one workload, without a further `:`")
        }
        Some(("container", target)) => {
            let fix = name(target).fix.map(|it| format!("container:{it}"));
            Advice {
                hint: Some(format!("what follows `container:` is a workload's name: {NAME_RULE}")),
                fix,
            }
        }
        Some(("service", target)) if target.parse::<Name>().is_ok() => {
            Advice::fix(format!("container:{target}"))
        }
        Some((word, _)) if IPC_MODES.contains(&word) => Advice {
            hint: Some(format!("`{word}` takes nothing after it")),
            fix: Some(word.to_owned()),
        },
        None if matches!(clean.as_str(), "shared" | "joinable") => Advice::fix("shareable"),
        _ => match nearest(&clean, IPC_MODES) {
            Some(mode) => Advice::fix(mode),
            None => Advice::hint(format!(
                "the modes are {}, and `container:NAME`",
                IPC_MODES.map(|it| format!("`{it}`")).join(", ")
            )),
        },
    }
}

/// A number and the unit behind it, as people write them.
fn measured(raw: &str) -> Option<(f64, String)> {
    let raw = raw.trim();
    let end = raw.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(raw.len());
    let number: f64 = raw[..end].parse().ok()?;
    Some((number, raw[end..].trim().to_lowercase()))
}

pub(super) fn size(raw: &str) -> Advice {
    let rule = "write whole bytes, or a whole number with `Ki`, `Mi` or `Gi`: `64Mi`";
    let Some((number, unit)) = measured(raw) else { return Advice::hint(rule) };
    if number == 0.0 {
        return Advice::hint("a size is at least 1: a tmpfs of size 0 would have no limit");
    }
    let factor: f64 = match unit.as_str() {
        "" | "b" | "bytes" => 1.0,
        "k" | "kb" | "kib" | "ki" => 1024.0,
        "m" | "mb" | "mib" | "mi" => 1_048_576.0,
        "g" | "gb" | "gib" | "gi" => 1_073_741_824.0,
        "t" | "tb" | "tib" | "ti" => 1_099_511_627_776.0,
        _ => return Advice::hint(rule),
    };
    let bytes = number * factor;
    // Exact below 2^53.
    let whole = if bytes.fract() == 0.0 && bytes < 9e15 {
        format!("{bytes:.0}").parse().ok()
    } else {
        None
    };
    match whole.and_then(Bytes::new) {
        Some(bytes) => Advice::fix(bytes.to_string()),
        None => Advice::hint(rule),
    }
}

pub(super) fn duration(raw: &str, pointer: &str) -> Advice {
    let never = pointer == "/spec/stop/timeout";
    let rule = if never {
        "write `10s`, `1m30s`, `500ms` or `never`"
    } else {
        "write `10s`, `1m30s` or `500ms`"
    };
    if never
        && (raw.trim().starts_with('-')
            || matches!(folded(raw).as_str(), "never" | "infinity" | "infinite" | "forever"))
    {
        return Advice::fix("never");
    }
    let Some((number, unit)) = measured(raw) else { return Advice::hint(rule) };
    let millis = match unit.as_str() {
        "" | "s" | "sec" | "secs" | "second" | "seconds" => number * 1_000.0,
        "ms" | "msec" | "millis" | "milliseconds" => number,
        "m" | "min" | "mins" | "minute" | "minutes" => number * 60_000.0,
        "h" | "hr" | "hour" | "hours" => number * 3_600_000.0,
        "d" | "day" | "days" => number * 86_400_000.0,
        _ => return Advice::hint(rule),
    };
    let millis =
        if (0.0..3e11).contains(&millis) { format!("{millis:.0}").parse().ok() } else { None };
    match millis {
        Some(millis) => Advice::fix(Span(std::time::Duration::from_millis(millis)).to_string()),
        None => Advice::hint(rule),
    }
}

fn image(raw: &str) -> Advice {
    if raw.contains("://") {
        return Advice::hint("leave the `https://` out: `docker.io/library/busybox:1.35`");
    }
    if raw.chars().any(char::is_uppercase) {
        return Advice::hint("the path of an image has no capital letters");
    }
    Advice::hint("write it as `docker.io/library/busybox:1.35` or `NAME@sha256:…`")
}

pub(super) fn path(raw: &str) -> Advice {
    if raw.split('/').any(|it| it == "..") {
        return Advice::hint("write the path without `..`");
    }
    if !raw.starts_with('/') {
        return Advice::hint("a path starts with `/`; `~` and variables are not expanded");
    }
    if raw.bytes().all(|c| matches!(c, b'/' | b'.')) {
        return Advice::hint("a mount on `/` would hide the whole image");
    }
    Advice::hint("a path has at most 1023 characters")
}

fn hostname(raw: &str) -> Advice {
    let fix = if raw.contains('_') { Some(raw.replace('_', "-")) } else { None };
    let fix = fix.filter(|it| it.parse::<crate::workload::Hostname>().is_ok());
    Advice { hint: Some("letters, digits, `-` and `.`; at most 64 characters".to_owned()), fix }
}

fn variable(raw: &str) -> Advice {
    match raw.split_once('=') {
        Some((name, _)) if !name.is_empty() => Advice {
            hint: Some("the part after `=` is its `value`".to_owned()),
            fix: Some(name.to_owned()),
        },
        _ => Advice::hint("a name is not empty and has no `=`"),
    }
}

fn user(raw: &str) -> Advice {
    let (uid, gid) = match raw.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (raw, None),
    };
    let number = |it: &str| it.parse::<u32>().ok().map(Number::from);
    match (number(uid), gid.map(number)) {
        (Some(uid), None) => Advice::fix(format!("{{uid: {uid}}}")),
        (Some(uid), Some(Some(gid))) => Advice::fix(format!("{{uid: {uid}, gid: {gid}}}")),
        _ => Advice::hint(
            "write the numbers: `user: {uid: 1000, gid: 1000}`; names need the image's /etc/passwd",
        ),
    }
}

fn mount(raw: &str) -> Advice {
    let parts: Vec<&str> = raw.split(':').collect();
    let absolute = |it: &str| it.starts_with('/') && plain(it);
    match parts.as_slice() {
        [source, target] if absolute(source) && absolute(target) => {
            Advice::fix(format!("{{type: bind, source: {source}, target: {target}}}"))
        }
        [source, target, "ro"] if absolute(source) && absolute(target) => Advice::fix(format!(
            "{{type: bind, source: {source}, target: {target}, readOnly: true}}"
        )),
        _ => Advice::hint("write `{type: bind, source: /on/the/host, target: /in/the/container}`"),
    }
}
