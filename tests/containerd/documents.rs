//! What is printed for programs, with `--output json`: all of it is as its schema says, and each field of each kind of
//! document is filled in some state of a box.

use std::collections::BTreeSet;
use std::path::PathBuf;

use evenkeel::plan::Phase;
use evenkeel::status::PlanReport;
use serde_json::Value;

use crate::others::occupy;
use crate::program::{Site, manifest, sleeper};
use crate::rig::Rig;
use crate::rig::proxy::{Asked, Fault, Proxy};
use crate::rig::recipe::Recipe;
use crate::rig::registry::{self, Registry};

/// A published schema, and which fields of its documents were filled.
struct Kind {
    name: &'static str,
    schema: Value,
    filled: BTreeSet<String>,
}

impl Kind {
    fn new(name: &'static str) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let path = root.join(format!("schemas/{name}.schema.json"));
        let schema = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        Self { name, schema, filled: BTreeSet::new() }
    }

    /// Takes a document of this kind.
    #[track_caller]
    fn take(&mut self, document: &Value) {
        let violations = evenkeel::schema::check_against(&self.schema, document);
        assert!(violations.is_empty(), "{}: {violations:?} in {document:#}", self.name);
        note("", &self.schema, &self.schema, document, &mut self.filled);
    }

    /// Runs a command that prints one.
    #[track_caller]
    fn of(&mut self, site: &Site, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().chain(&["--output", "json"]).copied().collect();
        let done = site.run(&args);
        let document =
            serde_json::from_str(&done.out).unwrap_or_else(|it| panic!("{it}: {done:?}"));
        self.take(&document);
        document
    }

    /// Runs a command that prints one a line.
    #[track_caller]
    fn lines_of(&mut self, site: &Site, args: &[&str]) {
        let args: Vec<&str> = args.iter().chain(&["--output", "json"]).copied().collect();
        let done = site.run(&args).exits(0);
        assert!(!done.out.is_empty());
        done.out.lines().for_each(|line| self.take(&serde_json::from_str(line).unwrap()));
    }

    /// Every field of the schema that no document had.
    fn empty(&self) -> Vec<String> {
        let definitions = self.schema["$defs"].as_object().into_iter().flatten();
        let all = definitions.map(|(name, it)| (name.as_str(), it)).chain([("", &self.schema)]);
        let fields = all.flat_map(|(name, it)| {
            let fields = it["properties"].as_object().into_iter().flatten();
            fields.map(move |(field, _)| format!("{name}/{field}"))
        });
        fields
            .filter(|it| !self.filled.contains(it))
            .map(|it| format!("{}{it}", self.name))
            .collect()
    }
}

/// Notes the fields of a value that say something: an empty text or list says as little as one that is not there.
fn note(name: &str, schema: &Value, of: &Value, value: &Value, filled: &mut BTreeSet<String>) {
    let alternatives = ["anyOf", "oneOf", "allOf"].map(|it| of[it].as_array());
    for alternative in alternatives.into_iter().flatten().flatten() {
        note(name, schema, alternative, value, filled);
    }
    if let Some(name) = of["$ref"].as_str().and_then(|it| it.strip_prefix("#/$defs/")) {
        return note(name, schema, &schema["$defs"][name], value, filled);
    }
    for element in value.as_array().into_iter().flatten() {
        note(name, schema, &of["items"], element, filled);
    }
    for (field, of) in of["properties"].as_object().into_iter().flatten() {
        let it = &value[field];
        let says_nothing = it.is_null()
            || it.as_str().is_some_and(str::is_empty)
            || it.as_array().is_some_and(Vec::is_empty);
        if !says_nothing {
            filled.insert(format!("{name}/{field}"));
            note(name, schema, of, it, filled);
        }
    }
}

#[tokio::test]
async fn each_field_of_what_is_printed_for_programs_is_filled_and_all_is_as_its_schema_says() {
    let mut rig = Rig::start().await;
    let base = Site::of(&rig);
    let second = base.dir().join("second");
    std::fs::create_dir(&second).unwrap();
    let site = base.clone().with_manifests(&[&base.manifests_dir(), &second]);
    let in_second = |name: &str| second.join(format!("{name}.yaml"));
    // A step of it fails, and there is no start yet to be told of as failed.
    site.write("blocked.yaml", &sleeper("blocked"));
    let first: PlanReport =
        serde_json::from_str(&site.run(&["plan", "--output", "json"]).out).unwrap();
    let blocked = first.steps.iter().find(|it| it.action == "prepare").unwrap().subject.clone();
    let vacate = occupy(&site, &blocked);
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n  shmSize: 1Mi\n"));
    site.write("joiner.yaml", &(sleeper("joiner") + "  ipcMode: container:donor\n"));
    let hello = "command: [sh, -c, \"printf hello; exit 3\"]\n\
                 restart: {backoff: {initial: 10m, max: 10m}}";
    site.write("loop.yaml", &manifest("loop", hello));
    site.write("typo.yaml", &manifest("typo", "command: [slep]"));
    for name in ["one", "two", "three", "four"] {
        std::fs::write(in_second(name), sleeper(name)).unwrap();
    }

    let [mut status, mut plan, mut explanation, mut holds, mut event, mut log] =
        ["status", "plan", "explanation", "holds", "event", "log"].map(Kind::new);
    let [mut problems, mut checks] = ["problems", "checks"].map(Kind::new);

    explanation.of(&site, &["explain", "joiner"]);
    plan.of(&site, &["plan"]);
    let controller = site.controller();
    for name in ["donor", "joiner", "one", "two", "three", "four"] {
        site.until_running(name);
    }
    site.until("loop", |item| {
        item.filter(|it| it.phase == Phase::BackingOff && it.last_exit.is_some()).map(drop)
    });
    site.until("typo", |item| item.filter(|it| it.start_failure.is_some()).map(drop));
    site.until("blocked", |item| item.filter(|it| it.tried.is_some()).map(drop));
    log.lines_of(&site, &["logs", "loop"]);

    // What cannot be read, what is wrong, and what goes too fast.
    site.write("syntax.yaml", "kind: {\n");
    let wrong = sleeper("wrong") + "  ipcMode: sharable\n";
    site.write("wrong.yaml", &wrong);
    for name in ["one", "two", "three"] {
        std::fs::remove_file(in_second(name)).unwrap();
    }
    site.until_status("a hold", |it| (!it.holds.is_empty()).then_some(()));
    site.until("wrong", |item| item.filter(|it| !it.problems.is_empty()).map(drop));

    // An image that has come half-way.
    let registry = Registry::start(registry::Kind::Plain);
    let proxy = Proxy::to(registry.address());
    let pushed = registry.push("half:1", &Recipe::busybox().with_data(1, 3_000_000, 3));
    let layer = registry.stored(&pushed).layers[1].digest.clone();
    proxy.fail_all(Asked::containing(&layer), Fault::Stall(2_000_000));
    let half = format!("image: {}", proxy.name(&pushed.name));
    site.write("half.yaml", &sleeper("half").replace("image: busybox", &half));
    site.until_status("a pull", |it| it.pulls.iter().any(|it| it.done > 0).then_some(()));

    // What could not be checked.
    let there = registry.push("there:1", &Recipe::busybox());
    let image = format!("image: {}", proxy.name(&there.name));
    site.run(&["image", "pull", &proxy.name(&there.name)]).exits(0);
    proxy.fail_all(Asked::containing(&"/there/manifests/"), Fault::status(503));
    let always = format!("{image}\n  imagePullPolicy: always");
    site.write("unchecked.yaml", &sleeper("unchecked").replace("image: busybox", &always));
    site.until_running("unchecked");
    site.run(&["status"]).says(&["runs an image that could not be checked: registry-failed: "]);
    site.run(&["status", "unchecked"]).exits(0).says(&["not checked", "registry-failed: "]);

    let now = status.of(&site, &["status"]);
    let item = |name: &str| {
        let mut items = now["items"].as_array().unwrap().iter();
        items.find(|it| it["name"] == name).unwrap_or_else(|| panic!("{name} is not in {now:#}"))
    };
    // Whose memory it is, and how much of it.
    let shared = |mode: &str, donor: Option<&str>| {
        let mut ipc = serde_json::json!({ "mode": mode, "shmSize": "1Mi" });
        if let Some(donor) = donor {
            ipc["donor"] = donor.into();
        }
        ipc
    };
    assert_eq!(item("donor")["ipc"], shared("shareable", None));
    assert_eq!(item("joiner")["ipc"]["donor"], "donor");
    assert_eq!(item("joiner")["ipc"]["mode"], "container:donor");
    assert_eq!(item("loop")["lastExit"]["code"], 3);
    assert_eq!(item("typo")["startFailure"]["code"], 127);
    assert_eq!(now["controller"]["pid"], controller.pid());

    plan.of(&site, &["plan"]);
    holds.of(&site, &["approve"]);
    event.lines_of(&site, &["events"]);
    problems.of(&site, &["validate", site.manifests_dir().to_str().unwrap()]);
    let page = explanation.of(&site, &["explain", "blocked"]);
    assert_eq!(page["item"]["reason"], "prepare-failed", "{page:#}");
    for name in ["typo", "loop", "wrong", "joiner", "one", "unchecked"] {
        explanation.of(&site, &["explain", name]);
    }
    checks.of(&site, &["doctor"]);
    // And what is not in order.
    rig.kill_containerd();
    site.until_status("an unreachable containerd", |it| {
        (it.runtime.state == "unreachable").then_some(())
    });
    status.of(&site, &["status"]);
    checks.of(&site, &["doctor"]);
    rig.start_containerd().await;

    let all = [&status, &plan, &explanation, &holds, &event, &log, &problems, &checks];
    let mut empty: Vec<String> = all.iter().flat_map(|it| it.empty()).collect();
    // A plan is made by the command, and without a containerd there is none.
    let by_nobody = |it: &str| {
        it.starts_with("planControllerStatus/")
            || it.starts_with("planPullStatus/")
            || matches!(
                it,
                "planStatus/controller"
                    | "planStatus/pulls"
                    | "planRuntimeStatus/message"
                    | "planItem/tried"
            )
    };
    empty.retain(|it| !by_nobody(it));
    assert_eq!(empty, [""; 0], "never filled");
    drop(controller);
    vacate();
    site.run(&["down"]).exits(0);
}
