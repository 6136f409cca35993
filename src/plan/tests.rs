use std::fmt::Write as _;

use super::*;
use crate::observed::{End, FileKind, Hand, HandKind, Instance, ObservedState, STOPPED, Task};

const WANTS: [Want; 6] = [
    Want::Running,
    Want::Stopped,
    Want::Absent,
    Want::HeldRunning,
    Want::HeldStopped,
    Want::Unclaimed,
];
const HAVES: [Have; 9] = [
    Have::Nothing,
    Have::Unstarted,
    Have::Created,
    Have::Running,
    Have::Paused,
    Have::Exited,
    Have::Lost,
    Have::Ended,
    Have::Unknown,
];
const FITS: [Fit; 5] = [Fit::Current, Fit::Outdated, Fit::Changed, Fit::Restart, Fit::Renew];
const AGAINS: [Again; 4] = [Again::Now, Again::Later, Again::Completed, Again::Failed];

/// What decides besides the want: have, fit, ready and again, as indexes into what each can be.
type Case = [usize; 4];

/// Values of each of them.
type Sets = [Vec<usize>; 4];

const SIZES: [usize; 4] = [HAVES.len(), FITS.len(), 2, AGAINS.len()];

fn decided(want: Want, [have, fit, ready, again]: Case) -> Decision {
    decide(want, HAVES[have], FITS[fit], ready == 0, AGAINS[again])
}

fn cases(sets: &Sets) -> Vec<Case> {
    let mut all: Vec<Case> = vec![[0; 4]];
    for (column, values) in sets.iter().enumerate() {
        let with = |case: &Case, value: usize| {
            let mut case = *case;
            case[column] = value;
            case
        };
        all = all.iter().flat_map(|it| values.iter().map(move |v| with(it, *v))).collect();
    }
    all
}

/// As few rows as a tree of questions about these columns gives, each case in exactly one of them.
fn rows(want: Want, sets: &Sets, columns: &[usize]) -> Vec<(Sets, Decision)> {
    let decisions = |sets: &Sets| -> Vec<Decision> {
        cases(sets).into_iter().map(|it| decided(want, it)).collect()
    };
    let all = decisions(sets);
    if all.iter().all(|it| *it == all[0]) {
        return vec![(sets.clone(), all[0])];
    }
    let split = |column: &usize| {
        // Values that lead to the same answers everywhere stay together.
        let mut groups: Vec<(Vec<Decision>, Sets)> = Vec::new();
        for value in &sets[*column] {
            let mut one = sets.clone();
            one[*column] = vec![*value];
            let answers = decisions(&one);
            match groups.iter_mut().find(|it| it.0 == answers) {
                Some((_, group)) => group[*column].push(*value),
                None => groups.push((answers, one)),
            }
        }
        let rest: Vec<usize> = columns.iter().copied().filter(|it| it != column).collect();
        groups.iter().flat_map(|(_, group)| rows(want, group, &rest)).collect::<Vec<_>>()
    };
    columns.iter().map(split).min_by_key(Vec::len).expect("a column is left while answers differ")
}

fn shown(column: usize, values: &[usize]) -> String {
    let name = |value: &usize| match column {
        0 => format!("{:?}", HAVES[*value]),
        1 => format!("{:?}", FITS[*value]),
        2 => if *value == 0 { "yes" } else { "no" }.to_owned(),
        _ => format!("{:?}", AGAINS[*value]),
    };
    let others: Vec<usize> = (0..SIZES[column]).filter(|it| !values.contains(it)).collect();
    let list = |values: &[usize]| values.iter().map(name).collect::<Vec<_>>().join("|");
    match others.len() {
        0 => "*".to_owned(),
        n if n < values.len() => {
            format!("not {}", list(&others))
        }
        _ => list(values),
    }
}

/// The same, but for how it stands.
fn as_held(decision: Decision) -> Decision {
    match decision {
        Decision::Leave(_) => Decision::Leave(Phase::Held),
        Decision::Wait(_) => Decision::Wait(Phase::Held),
        Decision::FinishAs(_) => Decision::FinishAs(Phase::Held),
        Decision::Create
        | Decision::Start
        | Decision::Replace
        | Decision::Restart
        | Decision::Renew
        | Decision::Resume
        | Decision::FinishAndWait
        | Decision::FinishAndStart
        | Decision::Stop
        | Decision::Remove => decision,
    }
}

/// Every combination, in as few rows as can be read.
#[test]
fn the_decision_table_is_the_committed_one() {
    let every: Sets = SIZES.map(|it| (0..it).collect());
    let mut table = String::from(
        "# What is done about a workload. Each combination is in exactly one row. UPDATE=1 rewrites this file.\n\
         # want       have                   fit               ready  again        decision\n",
    );
    for want in WANTS {
        let plain = match want {
            Want::HeldRunning => Some(Want::Running),
            Want::HeldStopped => Some(Want::Stopped),
            Want::Running | Want::Stopped | Want::Absent | Want::Unclaimed => None,
        };
        // By what is there first: a reader knows that.
        let mut printed = Vec::new();
        for sets in rows_by_have(want, &every) {
            let like_plain = plain.is_some_and(|plain| {
                cases(&sets).iter().all(|it| decided(want, *it) == as_held(decided(plain, *it)))
            });
            if !like_plain {
                printed.extend(rows(want, &sets, &[1, 2, 3]));
            }
        }
        for (sets, decision) in &printed {
            let [have, fit, ready, again] = [0, 1, 2, 3].map(|column| shown(column, &sets[column]));
            writeln!(
                table,
                "{:<12} {have:<22} {fit:<17} {ready:<6} {again:<12} {decision:?}",
                format!("{want:?}")
            )
            .unwrap();
        }
        if let Some(plain) = plain {
            writeln!(
                table,
                "{:<12} everything else: as {plain:?}, but it stands as Held",
                format!("{want:?}")
            )
            .unwrap();
        }
        for case in cases(&every) {
            let is_in = |sets: &Sets| (0..4).all(|column| sets[column].contains(&case[column]));
            let mut of: Vec<Decision> =
                printed.iter().filter(|it| is_in(&it.0)).map(|it| it.1).collect();
            if of.is_empty()
                && let Some(plain) = plain
            {
                of.push(as_held(decided(plain, case)));
            }
            assert_eq!(of, [decided(want, case)], "{want:?} {case:?}");
        }
    }
    assert!(table.lines().count() < 70, "nobody reads that:\n{table}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/decisions.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == table,
        "tests/decisions.txt differs; read it again after UPDATE=1\n{table}"
    );
}

/// The look between create and start: what each expectation refuses, and by which reason.
#[test]
fn a_created_process_is_accepted_only_with_exactly_what_was_wanted() {
    type Row = (ExpectNamespace, ExpectShm, u64, Option<u64>, Option<&'static str>);
    const HOST: View = View { ipc_ns: 1, shm: Some(10), shm_root: Some(1) };
    let donor: InstanceId = "donor-0123456789".parse().unwrap();
    // The donor publishes namespace 2 and device 20.
    let published = |id: &InstanceId| {
        if *id == donor { (Some(2), Some(20)) } else { (None, None) }
    };
    let stranger: InstanceId = "stranger-0123456789".parse().unwrap();
    let of = |id: &InstanceId| ExpectNamespace::Of(id.clone());
    let shm_of = |id: &InstanceId| ExpectShm::Of(id.clone());
    let rows: [Row; 22] = [
        (ExpectNamespace::Own, ExpectShm::Own, 3, Some(30), None),
        (ExpectNamespace::Own, ExpectShm::Own, 1, Some(30), Some("namespace-not-own")),
        (ExpectNamespace::Own, ExpectShm::Own, 3, Some(10), Some("shm-not-own")),
        (ExpectNamespace::Own, ExpectShm::Own, 3, None, Some("shm-not-own")),
        (ExpectNamespace::Own, ExpectShm::Absent, 3, None, None),
        (ExpectNamespace::Own, ExpectShm::Absent, 3, Some(30), Some("shm-unexpected")),
        (ExpectNamespace::Own, ExpectShm::Absent, 3, Some(10), Some("shm-unexpected")),
        (ExpectNamespace::Own, ExpectShm::Any, 3, None, None),
        (ExpectNamespace::Own, ExpectShm::Any, 3, Some(10), None),
        (ExpectNamespace::Own, ExpectShm::Any, 1, Some(30), Some("namespace-not-own")),
        (ExpectNamespace::Host, ExpectShm::Host, 1, Some(10), None),
        (ExpectNamespace::Host, ExpectShm::Host, 3, Some(10), Some("namespace-not-host")),
        (ExpectNamespace::Host, ExpectShm::Host, 1, Some(30), Some("shm-not-host")),
        (ExpectNamespace::Host, ExpectShm::Host, 1, None, Some("shm-not-host")),
        (of(&donor), shm_of(&donor), 2, Some(20), None),
        (of(&donor), shm_of(&donor), 3, Some(20), Some("donor-vanished")),
        (of(&donor), shm_of(&donor), 1, Some(20), Some("donor-vanished")),
        (of(&donor), shm_of(&donor), 2, Some(30), Some("mounts-not-shared")),
        (of(&donor), shm_of(&donor), 2, None, Some("mounts-not-shared")),
        // What is not published is nobody's, also when the process has nothing either.
        (of(&stranger), shm_of(&donor), 2, Some(20), Some("donor-vanished")),
        (of(&donor), shm_of(&stranger), 2, None, Some("mounts-not-shared")),
        (ExpectNamespace::Own, shm_of(&donor), 3, Some(10), Some("mounts-not-shared")),
    ];
    for (namespace, shm, ipc_ns, device, reason) in rows {
        let seen = View { ipc_ns, shm: device, shm_root: None };
        let expect = Expect { namespace, shm };
        let answer = accept(&expect, &seen, Some(&HOST), published);
        assert_eq!(answer.map_err(|it| it.reason).err(), reason, "{expect:?} {seen:?}");
    }
}

/// What is there, together where it makes no difference.
fn rows_by_have(want: Want, every: &Sets) -> Vec<Sets> {
    let mut groups: Vec<(Sets, Vec<Decision>)> = Vec::new();
    for have in &every[0] {
        let one: Sets = [vec![*have], every[1].clone(), every[2].clone(), every[3].clone()];
        let answers: Vec<Decision> = cases(&one).into_iter().map(|it| decided(want, it)).collect();
        match groups.iter_mut().find(|it| it.1 == answers) {
            Some((group, _)) => group[0].push(*have),
            None => groups.push((one, answers)),
        }
    }
    groups.into_iter().map(|it| it.0).collect()
}

mod hands;
mod images;
mod strays;
mod model {
    //! Observed states and a model of what steps do to them.

    use std::path::Path;

    use super::super::*;
    use crate::backoff::Strikes;
    use crate::desired::{DesiredState, SourceState, Wanted};
    use crate::observed::{
        EXITED, End, ImagePlace, Instance, ObservedState, Published, Run, STOPPED, Task,
    };
    use crate::workload::Shm;

    pub(super) const BOOT: &str = "boot-1";

    pub(super) fn now() -> BootTime {
        BootTime(Duration::from_secs(1000))
    }

    pub(super) fn policy() -> Policy {
        Policy {
            ipc: IpcDefaults::default(),
            restart: RestartPolicy::Always,
            delays: Delays::default(),
            log: LogDefaults { max_size: Bytes::new(1 << 20).unwrap(), max_files: 2 },
            images: ImagePolicy::default(),
            prune_limit: 50,
            run_directory: PathBuf::from("/run/evenkeel"),
            log_directory: PathBuf::from("/var/lib/evenkeel/logs"),
            cgroup_parent: "/evenkeel".to_owned(),
        }
    }

    pub(super) fn source() -> Source {
        Source::new(Path::new("/"), Path::new("/manifests"))
    }

    pub(super) fn origin(name: &str) -> Origin {
        Origin { source: source(), file: PathBuf::from(format!("{name}.yaml")), document: 0 }
    }

    /// A workload from the inside of its spec as JSON, with an image and a command.
    pub(super) fn workload(name: &str, spec: &str) -> Arc<Workload> {
        let mut value: serde_json::Value = serde_json::from_str(&format!("{{{spec}}}")).unwrap();
        let fields = value.as_object_mut().unwrap();
        fields.entry("image").or_insert("busybox".into());
        fields.entry("command").or_insert(serde_json::json!(["sleep", "1000"]));
        let whole = serde_json::json!({ "name": name, "spec": value });
        Arc::new(serde_json::from_value(whole).unwrap())
    }

    /// A desired state of one source with these workloads; `None` has problems.
    pub(super) fn desired(workloads: &[(&str, Option<&str>)]) -> DesiredState {
        let wanted = |name: &str, spec: Option<&str>| Wanted {
            origin: origin(name),
            workload: spec.map(|spec| workload(name, spec)),
        };
        let state = SourceState {
            prunes: true,
            blockers: Vec::new(),
            partial: Vec::new(),
            absence_acts_at: BootTime::default(),
            absent: BTreeMap::new(),
            unseen_acts_at: BootTime(Duration::MAX),
            confirmed: now(),
            documents: workloads.len(),
        };
        DesiredState {
            sources: [(source(), state)].into(),
            workloads: workloads
                .iter()
                .map(|(name, spec)| (name.parse().unwrap(), wanted(name, *spec)))
                .collect(),
            problems: Vec::new(),
        }
    }

    pub(super) fn image(name: &str, digest: &str, place: ImagePlace) -> Image {
        Image {
            name: name.to_owned(),
            digest: digest.to_owned(),
            config: ImageConfig::default(),
            place,
        }
    }

    pub(super) fn empty() -> ObservedState {
        let name = "docker.io/library/busybox:latest";
        ObservedState {
            boot_id: BOOT.to_owned(),
            images: [(name.to_owned(), image(name, "sha256:aaaa", ImagePlace::Store))].into(),
            ..ObservedState::default()
        }
    }

    /// Does what a plan's steps say, as if each succeeds.
    pub(super) fn apply(observed: &mut ObservedState, plan: &Plan) {
        let mut inode = 1 + observed
            .instances
            .values()
            .filter_map(|it| it.view)
            .map(|it| it.ipc_ns)
            .max()
            .unwrap_or(100);
        for (at, step) in plan.steps.iter().enumerate() {
            assert!(step.requires.iter().all(|it| it.0 < at), "{plan}");
            match &step.action {
                Action::Pull { .. } | Action::MarkImage { .. } | Action::RemoveImage { .. } => {
                    panic!("no image is in the store here: {plan}")
                }
                Action::Import { image } => {
                    let known = observed
                        .images
                        .get_mut(&image.name)
                        .expect("only known images are imported");
                    known.place = ImagePlace::Store;
                }
                Action::Clear { id } => {
                    observed.instances.get_mut(id).expect("it is there").has_snapshot = false;
                }
                Action::Prepare(it) if it.snapshot_only => {
                    observed.instances.get_mut(&it.id).expect("it is there").has_snapshot = true;
                }
                Action::Prepare(it) => {
                    let instance = Instance {
                        id: it.id.clone(),
                        name: it.workload.name.clone(),
                        revision: it.revision.clone(),
                        origin: it.origin.clone(),
                        workload: Some(Arc::clone(&it.workload)),
                        defaults: it.defaults.clone(),
                        image: Image { place: ImagePlace::Store, ..it.image.clone() },
                        has_snapshot: true,
                        run: None,
                        end: None,
                        ending: None,
                        task: Task::None,
                        published: Published::default(),
                        view: None,
                    };
                    assert!(
                        observed.instances.insert(it.id.clone(), instance).is_none(),
                        "made twice: {plan}"
                    );
                }
                Action::Update(it) => {
                    let instance = observed.instances.get_mut(&it.id).expect("it is there");
                    instance.origin = it.origin.clone();
                    instance.workload = Some(Arc::clone(&it.workload));
                    instance.ending = instance.ending.filter(|_| !it.calls_off_stop);
                }
                Action::Stop(it) => {
                    let instance = observed.instances.get_mut(&it.id).expect("it is there");
                    instance.task = Task::None;
                    instance.view = None;
                    instance.published = Published::default();
                    instance.end = Some(End {
                        n: it.run,
                        code: 143,
                        reason: STOPPED.to_owned(),
                        at: String::new(),
                        lasted_ms: 0,
                        ..End::default()
                    });
                }
                Action::Resume { id } => {
                    let instance = observed.instances.get_mut(id).expect("it is there");
                    instance.task =
                        Task::Running { pid: instance.task.pid().expect("it was paused") };
                }
                Action::Finish(it) => {
                    let instance = observed.instances.get_mut(&it.id).expect("it is there");
                    instance.task = Task::None;
                    instance.published = Published::default();
                    if it.run > 0 {
                        let code = it.exit.as_ref().map_or(255, |it| it.0);
                        instance.end = Some(End {
                            n: it.run,
                            code,
                            reason: EXITED.to_owned(),
                            at: String::new(),
                            lasted_ms: 0,
                            ..End::default()
                        });
                        let strikes = Strikes {
                            revision: it.revision.clone(),
                            count: it.strikes,
                            at: now(),
                            run: None,
                            failure: None,
                        };
                        observed.strikes.insert(instance.name.clone(), strikes);
                    }
                }
                Action::Start(it) => {
                    inode += 1;
                    let view = match &it.expect.namespace {
                        ExpectNamespace::Of(donor) => {
                            observed.instances[donor].view.expect("the donor runs")
                        }
                        ExpectNamespace::Own | ExpectNamespace::Host => {
                            View { ipc_ns: inode, shm: Some(inode), shm_root: None }
                        }
                    };
                    let instance = observed.instances.get_mut(&it.id).expect("it is there");
                    assert_eq!(instance.task, Task::None, "started twice: {plan}");
                    let stray = observed.strays.keys().find(|stray| stray.stem() == it.id.stem());
                    assert_eq!(stray, None, "started beside what is lost: {plan}");
                    let others = |other: &Instance| other.task.pid().is_some();
                    instance.task = Task::Running { pid: u32::try_from(inode).unwrap() };
                    instance.run = Some(Run {
                        n: it.run,
                        order: it.order,
                        boot: BOOT.to_owned(),
                        at: now(),
                        started: String::new(),
                        image_unchecked: None,
                    });
                    instance.view = Some(view);
                    if it.publish.is_some() {
                        instance.published = Published {
                            directory: true,
                            shm: view.shm,
                            shm_mounts: 1,
                            ns: true,
                            ns_inode: Some(view.ipc_ns),
                        };
                    }
                    let name = instance.name.clone();
                    let running = observed
                        .instances
                        .values()
                        .filter(|it| it.name == name && others(it))
                        .count();
                    assert_eq!(running, 1, "two instances of {name} run: {plan}");
                }
                Action::Remove { id, .. } => {
                    let gone = observed.instances.remove(id).expect("it is there");
                    assert_eq!(gone.task, Task::None, "removed while it runs: {plan}");
                    assert!(!observed.strays.contains_key(id), "removed while it runs: {plan}");
                }
                Action::Publish { id, .. } => {
                    let instance = observed.instances.get_mut(id).expect("it is there");
                    instance.published.ns = true;
                    instance.published.ns_inode = instance.view.map(|it| it.ipc_ns);
                }
                Action::RemoveOrphan { id, .. } => drop(observed.orphans.remove(id)),
                Action::RemoveStray(it) => {
                    assert!(observed.strays.remove(&it.id).is_some(), "it is there: {plan}");
                }
                Action::Sweep(Leftover::Hand(name, hand)) => {
                    assert_eq!(observed.hands.remove(name).as_ref(), Some(hand), "{plan}");
                }
                Action::Sweep(Leftover::Strikes(name)) if step.name.is_some() => {
                    observed.strikes.remove(name);
                }
                Action::Sweep(it) => drop(observed.leftovers.remove(it)),
            }
        }
    }

    /// Plans and applies until nothing is left to do; panics when that takes more than a few passes.
    pub(super) fn converge(desired: &DesiredState, observed: &mut ObservedState) -> Plan {
        for _ in 0..4 {
            let plan = diff(desired, observed, &policy(), now());
            if plan.is_empty() {
                return plan;
            }
            apply(observed, &plan);
        }
        panic!("does not converge:\n{}", diff(desired, observed, &policy(), now()));
    }

    pub(super) fn running(observed: &ObservedState) -> Vec<String> {
        let running = observed.instances.values().filter(|it| it.task.pid().is_some());
        running.map(|it| it.name.to_string()).collect()
    }

    pub(super) fn pid(observed: &ObservedState, name: &str) -> u32 {
        let mut of = observed.instances.values().filter(|it| it.name.as_str() == name);
        of.find_map(|it| it.task.pid()).unwrap_or_else(|| panic!("{name} does not run"))
    }

    pub(super) fn published_size(plan: &Plan) -> Option<Bytes> {
        plan.steps
            .iter()
            .find_map(|it| if let Action::Start(start) = &it.action { start.publish } else { None })
    }

    pub(super) fn joinable(workload: &Workload) -> bool {
        matches!(workload.spec.ipc(&IpcDefaults::default()).shm, Shm::Published(_))
    }
}

use model::{apply, converge, desired, empty, pid, policy, running};

fn standing<'a>(plan: &'a Plan, name: &str) -> &'a Standing {
    &plan.standings[&name.parse::<Name>().unwrap()]
}

const PAIR: [(&str, Option<&str>); 2] = [
    ("donor", Some(r#""ipcMode": "shareable""#)),
    ("joiner", Some(r#""ipcMode": "container:donor""#)),
];

#[test]
fn a_new_manifest_is_prepared_and_started() {
    let mut observed = empty();
    let plan = diff(&desired(&[("web", Some(""))]), &observed, &policy(), model::now());
    let verbs: Vec<&str> = plan.steps.iter().map(|it| it.action.verb()).collect();
    assert_eq!(verbs, ["prepare", "start"]);
    assert_eq!(plan.steps[1].requires, [StepId(0)]);
    assert_eq!(plan.steps[0].cause, Cause::Added);
    apply(&mut observed, &plan);
    assert_eq!(running(&observed), ["web"]);
    assert!(diff(&desired(&[("web", Some(""))]), &observed, &policy(), model::now()).is_empty());
}

#[test]
fn an_image_of_an_archive_is_imported_once_for_all() {
    let mut observed = empty();
    let name = "docker.io/library/busybox:latest";
    let place = crate::observed::ImagePlace::Archive("/images/busybox.tar".into());
    observed.images.insert(name.to_owned(), model::image(name, "sha256:aaaa", place));
    let plan =
        diff(&desired(&[("a", Some("")), ("b", Some(""))]), &observed, &policy(), model::now());
    assert_eq!(plan.steps.iter().filter(|it| it.action.verb() == "import").count(), 1, "{plan}");
    converge(&desired(&[("a", Some("")), ("b", Some(""))]), &mut observed);
}

#[test]
fn donors_start_before_joiners_whatever_their_names() {
    let wanted = desired(&[
        ("a", Some(r#""ipcMode": "container:z""#)),
        ("m", Some(r#""ipcMode": "container:a""#)),
        ("z", Some(r#""ipcMode": "shareable""#)),
    ]);
    let mut observed = empty();
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert!(model::published_size(&plan).is_some());
    apply(&mut observed, &plan);
    let views: std::collections::BTreeSet<u64> =
        observed.instances.values().map(|it| it.view.unwrap().ipc_ns).collect();
    assert_eq!(views.len(), 1, "all share one namespace");
    assert!(diff(&wanted, &observed, &policy(), model::now()).is_empty());
}

#[test]
fn an_edit_replaces_just_that_one_and_names_the_field() {
    let mut observed = empty();
    converge(&desired(&[("a", Some("")), ("b", Some(""))]), &mut observed);
    let (a, b) = (pid(&observed, "a"), pid(&observed, "b"));
    let edited = desired(&[("a", Some(r#""args": ["x"]"#)), ("b", Some(""))]);
    let plan = diff(&edited, &observed, &policy(), model::now());
    let verbs: Vec<&str> = plan.steps.iter().map(|it| it.action.verb()).collect();
    assert_eq!(verbs, ["prepare", "stop", "start", "remove"], "{plan}");
    assert!(plan.to_string().contains(r#"args: (none) → ["x"]"#), "{plan}");
    converge(&edited, &mut observed);
    assert_ne!(pid(&observed, "a"), a);
    assert_eq!(pid(&observed, "b"), b);
    assert_eq!(observed.instances.len(), 2);
}

#[test]
fn the_same_meaning_changes_nothing_but_settings_in_place() {
    let mut observed = empty();
    converge(
        &desired(&[(
            "a",
            Some(r#""shmSize": "64Mi", "env": [{"name": "A", "value": "1"}, {"name": "B"}]"#),
        )]),
        &mut observed,
    );
    let same = desired(&[(
        "a",
        Some(
            r#""shmSize": 67108864, "env": [{"name": "B", "value": ""}, {"name": "A", "value": "1"}], "hostname": "a", "stop": {"timeout": "1s"}"#,
        ),
    )]);
    let plan = diff(&same, &observed, &policy(), model::now());
    assert_eq!(plan.steps.len(), 1, "{plan}");
    assert_eq!(plan.steps[0].action.verb(), "update");
    converge(&same, &mut observed);
}

#[test]
fn changed_defaults_recreate_nothing_and_explicit_ones_mean_the_same() {
    let mut observed = empty();
    converge(&desired(&[("a", Some(""))]), &mut observed);
    let mut other = policy();
    other.ipc = IpcDefaults {
        mode: crate::workload::IpcMode::Shareable,
        shm_size: Bytes::new(1 << 20).unwrap(),
    };
    assert!(diff(&desired(&[("a", Some(""))]), &observed, &other, model::now()).is_empty());
    let explicit = desired(&[("a", Some(r#""ipcMode": "private", "shmSize": "64Mi""#))]);
    let plan = diff(&explicit, &observed, &other, model::now());
    assert!(plan.steps.iter().all(|it| it.action.verb() == "update"), "{plan}");
    let now_shareable = desired(&[("a", Some(r#""ipcMode": "shareable""#))]);
    let plan = diff(&now_shareable, &observed, &policy(), model::now());
    assert!(plan.to_string().contains("ipcMode: private → shareable"), "{plan}");
}

#[test]
fn nothing_running_is_touched_while_its_replacement_cannot_start() {
    let mut observed = empty();
    converge(&desired(&[("a", Some(""))]), &mut observed);
    for (spec, reason) in [
        (r#""image": "nowhere:1""#, "image-missing"),
        (
            r#""mounts": [{"type": "bind", "source": "/nowhere", "target": "/x"}]"#,
            "mount-source-missing",
        ),
    ] {
        let plan = diff(&desired(&[("a", Some(spec))]), &observed, &policy(), model::now());
        assert!(plan.is_empty(), "{plan}");
        let it = standing(&plan, "a");
        assert_eq!((it.phase, it.reason, it.up_to_date), (Phase::Running, reason, false));
    }
}

#[test]
fn an_edit_waits_for_an_image_that_is_gone_and_what_runs_goes_on() {
    let edited = desired(&[("a", Some(r#""args": ["x"]"#))]);
    let mut there = empty();
    converge(&desired(&[("a", Some(""))]), &mut there);
    let pid = pid(&there, "a");
    let mut observed = there.clone();
    observed.images.clear();
    let plan = diff(&edited, &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    let it = standing(&plan, "a");
    assert_eq!((it.phase, it.reason, it.up_to_date), (Phase::Running, "image-missing", false));
    assert!(it.message.contains("docker.io/library/busybox:latest"), "{}", it.message);
    // Going back needs no image, and neither does what was prepared while it was there.
    let back = diff(&desired(&[("a", Some(""))]), &observed, &policy(), model::now());
    assert!(back.is_empty() && standing(&back, "a").up_to_date);
    let only = Plan { steps: prepared(&edited, &there), ..Plan::default() };
    apply(&mut there, &only);
    there.images.clear();
    let plan = converge(&edited, &mut there);
    assert_ne!(self::pid(&there, "a"), pid);
    assert!(standing(&plan, "a").up_to_date);
}

/// The steps that make what is wanted, without those that need it.
fn prepared(
    wanted: &crate::desired::DesiredState,
    observed: &crate::observed::ObservedState,
) -> Vec<Step> {
    let plan = diff(wanted, observed, &policy(), model::now());
    plan.steps.into_iter().take_while(|it| it.action.verb() == "prepare").collect()
}

#[test]
fn a_root_file_system_is_not_made_again_from_an_image_that_is_gone_or_another_one() {
    let wanted = desired(&[("a", Some(""))]);
    let mut observed = empty();
    converge(&wanted, &mut observed);
    let instance = observed.instances.values_mut().next().unwrap();
    (instance.task, instance.has_snapshot) = (Task::None, false);
    let later = model::now() + Duration::from_mins(2);
    let finish = diff(&wanted, &observed, &policy(), model::now());
    apply(&mut observed, &finish);
    let plan = diff(&wanted, &observed, &policy(), later);
    assert_eq!(plan.steps[0].action.verb(), "prepare", "{plan}");
    observed.images.clear();
    let plan = diff(&wanted, &observed, &policy(), later);
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(
        (standing(&plan, "a").phase, standing(&plan, "a").reason),
        (Phase::Waiting, "image-missing")
    );
    // One that is held goes on as it was, whatever its tag is now.
    let held = desired(&[("a", None), ("b", Some(""))]);
    let name = "docker.io/library/busybox:latest".to_owned();
    let other = model::image(&name, "sha256:bbbb", crate::observed::ImagePlace::Store);
    observed.images.insert(name, other);
    let plan = diff(&held, &observed, &policy(), later);
    let it = standing(&plan, "a");
    assert!(it.phase == Phase::Held && it.message.contains("problems"), "{it:?}");
    assert!(plan.steps.iter().all(|it| it.name.as_ref().is_some_and(|it| it.as_str() != "a")));
}

#[test]
fn an_invalid_manifest_keeps_what_runs_and_starts_it_after_a_reboot() {
    let mut observed = empty();
    converge(&desired(&[("a", Some(""))]), &mut observed);
    let broken = desired(&[("a", None), ("new", None)]);
    let plan = diff(&broken, &observed, &policy(), model::now());
    assert!(plan.is_empty());
    assert_eq!(standing(&plan, "a").phase, Phase::Held);
    assert_eq!(standing(&plan, "new").phase, Phase::Invalid);
    observed.boot_id = "boot-2".to_owned();
    for instance in observed.instances.values_mut() {
        instance.task = crate::observed::Task::None;
    }
    converge_after_boot(&broken, &mut observed);
    assert_eq!(running(&observed), ["a"]);
}

/// The first pass records the lost run and, with the strikes of a first failure, waits 100 ms.
fn converge_after_boot(
    desired: &crate::desired::DesiredState,
    observed: &mut crate::observed::ObservedState,
) {
    for pass in 0..4_u64 {
        let now = model::now() + Duration::from_secs(pass);
        let plan = diff(desired, observed, &policy(), now);
        apply(observed, &plan);
    }
    assert!(diff(desired, observed, &policy(), model::now() + Duration::from_secs(9)).is_empty());
}

#[test]
fn a_donor_in_use_is_not_removed_made_absent_or_made_private() {
    let mut observed = empty();
    converge(&desired(&PAIR), &mut observed);
    let before = (pid(&observed, "donor"), pid(&observed, "joiner"));
    // The joiner's document is invalid once its donor is gone or cannot be joined.
    for wanted in [
        desired(&[("joiner", None)]),
        desired(&[("donor", Some(r#""ipcMode": "private""#)), ("joiner", None)]),
        desired(&[("donor", Some(r#""ipcMode": "shareable", "state": "absent""#)), PAIR[1]]),
    ] {
        let plan = diff(&wanted, &observed, &policy(), model::now());
        assert!(plan.is_empty(), "{plan}");
        let it = standing(&plan, "donor");
        assert_eq!((it.phase, it.reason), (Phase::Held, "donor-in-use"), "{it:?}");
        assert!(it.message.contains("joiner"), "{}", it.message);
        assert!(plan.holds.is_empty(), "approve does not release it");
    }
    assert_eq!((pid(&observed, "donor"), pid(&observed, "joiner")), before);
}

#[test]
fn a_donor_and_its_joiner_leave_together_joiner_first() {
    let mut observed = empty();
    converge(&desired(&[PAIR[0], PAIR[1], ("c", Some("")), ("d", Some(""))]), &mut observed);
    let wanted = desired(&[("c", Some("")), ("d", Some(""))]);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    let removed: Vec<String> = plan
        .steps
        .iter()
        .filter(|it| it.action.verb() == "remove")
        .map(|it| it.name.clone().unwrap().to_string())
        .collect();
    assert_eq!(removed, ["joiner", "donor"]);
    converge(&wanted, &mut observed);
}

#[test]
fn a_replaced_donor_is_followed_by_its_joiner() {
    let mut observed = empty();
    converge(&desired(&PAIR), &mut observed);
    let before = pid(&observed, "joiner");
    let wanted =
        desired(&[("donor", Some(r#""ipcMode": "shareable", "shmSize": "1Mi""#)), PAIR[1]]);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    let start = plan.steps.iter().position(|it| it.action.verb() == "start").unwrap();
    let stop = plan
        .steps
        .iter()
        .position(|it| it.name.as_ref().is_some_and(|it| it.as_str() == "joiner"))
        .unwrap();
    assert!(plan.steps[stop].requires.contains(&StepId(start)), "{plan}");
    assert_eq!(plan.steps[stop].pause, Duration::from_millis(100));
    converge(&wanted, &mut observed);
    assert_ne!(pid(&observed, "joiner"), before);
    let inodes: std::collections::BTreeSet<u64> =
        observed.instances.values().map(|it| it.view.unwrap().ipc_ns).collect();
    assert_eq!(inodes.len(), 1);
}

#[test]
fn a_donor_is_not_replaced_while_a_running_joiner_could_not_start_again() {
    let mut observed = empty();
    let joiner = r#""ipcMode": "container:donor", "mounts": [{"type": "bind", "source": "/data", "target": "/x"}]"#;
    observed.mount_sources.insert("/data".into(), crate::observed::FileKind::Directory);
    converge(&desired(&[PAIR[0], ("joiner", Some(joiner))]), &mut observed);
    observed.mount_sources.clear();
    let wanted = desired(&[
        ("donor", Some(r#""ipcMode": "shareable", "shmSize": "1Mi""#)),
        ("joiner", Some(joiner)),
    ]);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(standing(&plan, "donor").reason, "joiner-not-startable");
    // One that does not run takes nothing away from anybody by its start.
    for it in observed.instances.values_mut().filter(|it| it.name.as_str() == "donor") {
        it.task = Task::Stopped { code: 1, at: String::new() };
        it.view = None;
    }
    assert!(!diff(&wanted, &observed, &policy(), model::now()).is_empty());
}

#[test]
fn programs_do_not_inherit_the_protection_of_a_runtime() {
    let wanted = desired(&[("a", Some(""))]);
    for score in [None, Some(0)] {
        let mut observed = empty();
        observed.oom_score_adj = score;
        let plan = diff(&wanted, &observed, &policy(), model::now());
        let Some(Action::Start(start)) = plan.steps.last().map(|it| &it.action) else {
            panic!("it starts: {plan}")
        };
        let spec = start.blueprint.lower(&start.id).unwrap();
        assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), score);
    }
}

/// `/etc/resolv.conf` may point to what comes with the first lease, or not at all.
#[test]
fn a_network_file_that_the_host_does_not_have_keeps_nobody_from_the_host_s_network() {
    let wanted = desired(&[("a", Some(r#""network": {"mode": "host"}"#))]);
    let mut observed = empty();
    observed.mount_sources.insert("/etc/hosts".into(), FileKind::Other);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    let Some(Action::Start(start)) = plan.steps.last().map(|it| &it.action) else {
        panic!("it starts: {plan}")
    };
    let mounts = start.blueprint.lower(&start.id).unwrap().mounts().clone().unwrap();
    let has = |path: &str| mounts.iter().any(|it| it.destination().to_str() == Some(path));
    assert!(has("/etc/hosts") && !has("/etc/resolv.conf"));
}

#[test]
fn a_bind_source_that_does_not_answer_holds_a_start_and_nothing_that_runs() {
    for create in [false, true] {
        let bind = |args: &str| {
            format!(
                r#"{args}"mounts": [{{"type": "bind", "source": "/data", "target": "/x", "create": {create}}}]"#
            )
        };
        let (old, new) = (bind(""), bind(r#""args": ["x"], "#));
        let mut observed = empty();
        observed.mount_sources.insert("/data".into(), FileKind::Directory);
        converge(&desired(&[("a", Some(&old))]), &mut observed);
        observed.mount_sources.insert("/data".into(), FileKind::Silent);
        let same = diff(&desired(&[("a", Some(&old))]), &observed, &policy(), model::now());
        assert!(same.is_empty(), "{same}");
        let plan = diff(
            &desired(&[("a", Some(&new)), ("b", Some(&old)), ("c", Some(""))]),
            &observed,
            &policy(),
            model::now(),
        );
        assert!(plan.steps.iter().all(|it| it.name == Some("c".parse().unwrap())), "{plan}");
        for name in ["a", "b"] {
            assert_eq!(standing(&plan, name).reason, "mount-source-silent", "{name}");
        }
        // It answers again.
        observed.mount_sources.insert("/data".into(), FileKind::Directory);
        converge(&desired(&[("a", Some(&new)), ("b", Some(&old))]), &mut observed);
    }
}

#[test]
fn a_runtime_that_could_start_nothing_holds_every_start_and_nothing_that_runs() {
    let lacks = |programs: &[&'static str], cgroup: Option<&str>| {
        (programs.iter().copied().collect(), cgroup.map(str::to_owned))
    };
    for ((programs, cgroup), reason, message) in [
        (
            lacks(&["containerd-shim-runc-v2", "runc"], Some("`/x` is mounted read-only")),
            "runtime-missing",
            "`containerd-shim-runc-v2` and `runc` are nowhere where containerd looks for programs",
        ),
        (
            lacks(&["runc"], None),
            "runtime-missing",
            "`runc` is nowhere where containerd looks for programs",
        ),
        (
            lacks(&[], Some("`/x` is mounted read-only")),
            "cgroup-failed",
            "no container can have a cgroup: `/x` is mounted read-only",
        ),
    ] {
        let ends = r#""ipcMode": "shareable""#;
        let joins = r#""ipcMode": "container:donor""#;
        let before = [("donor", Some(ends)), ("joiner", Some(joins)), ("gone", Some(""))];
        let mut observed = empty();
        converge(&desired(&before), &mut observed);
        observed.missing_programs = programs;
        observed.cgroup_fault = cgroup;
        let same = diff(&desired(&before), &observed, &policy(), model::now());
        assert!(same.is_empty(), "{same}");
        let edited = r#""ipcMode": "shareable", "args": ["x"]"#;
        let after = [
            ("donor", Some(edited)),
            ("joiner", Some(joins)),
            ("gone", Some(r#""state": "stopped""#)),
            ("new", Some("")),
        ];
        let plan = diff(&desired(&after), &observed, &policy(), model::now());
        for name in ["donor", "new"] {
            let standing = standing(&plan, name);
            assert_eq!((standing.reason, standing.message.as_str()), (reason, message), "{name}");
        }
        // Ending something needs none of it.
        assert!(plan.steps.iter().all(|it| it.name == Some("gone".parse().unwrap())), "{plan}");
        assert!(plan.steps.iter().any(|it| matches!(it.action, Action::Stop(_))), "{plan}");
        // It is there again.
        observed.missing_programs.clear();
        observed.cgroup_fault = None;
        converge(&desired(&after), &mut observed);
        assert_eq!(running(&observed), ["donor", "joiner", "new"]);
    }
}

#[test]
fn who_only_wants_to_join_a_donor_and_cannot_start_does_not_hold_it() {
    let private = [PAIR[0], ("joiner", Some(r#""ipcMode": "private""#))];
    let joiner = r#""ipcMode": "container:donor", "mounts": [{"type": "bind", "source": "/data", "target": "/x"}]"#;
    let other = r#""ipcMode": "shareable", "shmSize": "1Mi""#;
    let mut observed = empty();
    converge(&desired(&private), &mut observed);
    let before = pid(&observed, "joiner");
    let wanted = desired(&[("donor", Some(other)), ("joiner", Some(joiner))]);
    converge(&wanted, &mut observed);
    assert_eq!(pid(&observed, "joiner"), before);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert!(standing(&plan, "donor").up_to_date, "{plan}");
    // Nor does one that could go on as it was last applied.
    let mut observed = empty();
    converge(&desired(&PAIR), &mut observed);
    let wanted = desired(&[("donor", Some(other)), ("joiner", Some(joiner))]);
    converge(&wanted, &mut observed);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert!(standing(&plan, "donor").up_to_date, "{plan}");
    assert_eq!(running(&observed), ["donor", "joiner"]);
}

#[test]
fn a_joiner_waits_for_a_donor_that_does_not_run_and_keeps_running_when_it_stops() {
    let mut observed = empty();
    let stopped =
        desired(&[("donor", Some(r#""ipcMode": "shareable", "state": "stopped""#)), PAIR[1]]);
    let plan = diff(&stopped, &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(standing(&plan, "joiner").reason, "waiting-for-donor");
    converge(&desired(&PAIR), &mut observed);
    let before = pid(&observed, "joiner");
    converge(&stopped, &mut observed);
    assert_eq!(running(&observed), ["joiner"]);
    assert_eq!(pid(&observed, "joiner"), before);
}

#[test]
fn nobody_joins_a_donor_whose_pin_or_shm_is_gone_and_the_pin_is_put_back() {
    let mut observed = empty();
    converge(&desired(&[PAIR[0]]), &mut observed);
    for (spoil, heals) in [
        ((|it| it.published.ns = false) as fn(&mut Instance), true),
        (|it| it.published.ns_inode = Some(1), true),
        (|it| it.published.shm = None, false),
        (|it| it.published.shm = Some(1), false),
    ] {
        let mut observed = observed.clone();
        observed.instances.values_mut().for_each(spoil);
        let plan = diff(&desired(&PAIR), &observed, &policy(), model::now());
        let verbs: Vec<&str> = plan.steps.iter().map(|it| it.action.verb()).collect();
        assert_eq!(verbs, if heals { vec!["publish"] } else { vec![] }, "{plan}");
        let it = standing(&plan, "joiner");
        assert_eq!((it.phase, it.reason), (Phase::Waiting, "donor-vanished"), "{it:?}");
        if heals {
            converge(&desired(&PAIR), &mut observed);
            assert_eq!(running(&observed), ["donor", "joiner"]);
        }
    }
    // A process that cannot be looked at is no reason to do anything.
    observed.instances.values_mut().for_each(|it| it.view = None);
    assert!(diff(&desired(&[PAIR[0]]), &observed, &policy(), model::now()).is_empty());
}

#[test]
fn nobody_joins_through_a_joiner_that_keeps_the_namespace_its_donor_has_left() {
    let chain = [
        ("a", Some(r#""ipcMode": "container:m""#)),
        ("m", Some(r#""ipcMode": "container:z", "restart": {"onDonorChange": "keep"}"#)),
        ("z", Some(r#""ipcMode": "shareable""#)),
    ];
    let mut observed = empty();
    converge(&desired(&chain), &mut observed);
    for it in observed.instances.values_mut().filter(|it| it.name.as_str() == "z") {
        let view = View { ipc_ns: 1000, shm: Some(1000), shm_root: None };
        it.view = Some(view);
        it.published.ns_inode = Some(1000);
        it.published.shm = view.shm;
    }
    let plan = diff(&desired(&chain), &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(standing(&plan, "m").reason, "donor-changed");
    assert_eq!(standing(&plan, "a").phase, Phase::Running);
    for it in observed.instances.values_mut().filter(|it| it.name.as_str() == "a") {
        it.task = Task::None;
        it.end = Some(End {
            n: 1,
            code: 0,
            reason: STOPPED.to_owned(),
            at: String::new(),
            lasted_ms: 0,
            ..End::default()
        });
        it.view = None;
    }
    let plan = diff(&desired(&chain), &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    let it = standing(&plan, "a");
    assert_eq!((it.phase, it.reason), (Phase::Waiting, "waiting-for-donor"), "{it:?}");
}

#[test]
fn a_start_names_everybody_through_whom_it_joins() {
    let line = [
        ("a", Some(r#""ipcMode": "container:b""#)),
        ("b", Some(r#""ipcMode": "container:c""#)),
        ("c", Some(r#""ipcMode": "container:d""#)),
        ("d", Some(r#""ipcMode": "shareable""#)),
    ];
    let plan = diff(&desired(&line), &empty(), &policy(), model::now());
    let starts = plan
        .steps
        .iter()
        .filter_map(|it| if let Action::Start(start) = &it.action { Some(start) } else { None });
    let joined: BTreeMap<&str, Vec<&str>> =
        starts.map(|it| (it.id.stem(), it.donors.iter().map(InstanceId::stem).collect())).collect();
    let expected =
        [("a", vec!["b", "c", "d"]), ("b", vec!["c", "d"]), ("c", vec!["d"]), ("d", vec![])];
    assert_eq!(joined, expected.into());
}

#[test]
fn removing_one_of_four_removes_it_and_removing_three_is_held() {
    let all = ["a", "b", "c", "d"].map(|it| (it, Some("")));
    let mut observed = empty();
    converge(&desired(&all), &mut observed);
    let plan = diff(&desired(&all[..3]), &observed, &policy(), model::now());
    assert_eq!(plan.steps.len(), 2, "{plan}");
    let three = desired(&all[..1]);
    let plan = diff(&three, &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(plan.holds.len(), 1);
    assert_eq!(plan.holds[0].code, "prune-limit");
    assert_eq!(plan.holds[0].removals.len(), 3);
    observed.approvals = plan.holds[0].removals.clone();
    converge(&three, &mut observed);
    assert_eq!(running(&observed), ["a"]);
}

#[test]
fn a_slow_deletion_does_not_pass_one_by_one() {
    let all = ["a", "b", "c", "d"].map(|it| (it, Some("")));
    let mut observed = empty();
    converge(&desired(&all), &mut observed);
    for left in [3, 2] {
        let wanted = desired(&all[..left]);
        let plan = diff(&wanted, &observed, &policy(), model::now());
        for step in &plan.steps {
            if let Action::Remove { by_absence: Some(it), .. } = &step.action {
                let removal = crate::observed::Removal {
                    source: it.source.clone(),
                    name: it.name.clone(),
                    at: model::now(),
                    of: it.of,
                };
                observed.removals.push(removal);
            }
        }
        apply(&mut observed, &plan);
        assert_eq!(running(&observed).len(), left);
    }
    let plan = diff(&desired(&all[..1]), &observed, &policy(), model::now());
    assert!(plan.is_empty() && plan.holds.len() == 1, "{plan}");
    let later = model::now() + PRUNE_WINDOW + Duration::from_secs(1);
    assert!(!diff(&desired(&all[..1]), &observed, &policy(), later).is_empty());
}

#[test]
fn an_instance_of_a_source_that_was_not_given_is_left_alone() {
    let mut observed = empty();
    converge(&desired(&[("a", Some(""))]), &mut observed);
    let mut other = desired(&[]);
    other.sources.clear();
    let plan = diff(&other, &observed, &policy(), model::now());
    assert!(plan.is_empty());
    assert_eq!(standing(&plan, "a").reason, "unclaimed");
}

#[test]
fn an_ended_run_follows_its_policy() {
    use crate::observed::Task;
    let cases = [
        ("always", 0, Phase::BackingOff),
        ("always", 3, Phase::BackingOff),
        ("on-failure", 0, Phase::Completed),
        ("on-failure", 3, Phase::BackingOff),
        ("never", 0, Phase::Completed),
        ("never", 3, Phase::Failed),
    ];
    for (policy_word, code, phase) in cases {
        let spec = format!(r#""restart": {{"policy": "{policy_word}"}}"#);
        let wanted = desired(&[("a", Some(&spec))]);
        let mut observed = empty();
        converge(&wanted, &mut observed);
        for instance in observed.instances.values_mut() {
            instance.task = Task::Stopped { code, at: String::new() };
        }
        let plan = diff(&wanted, &observed, &policy(), model::now());
        assert_eq!(plan.steps.len(), 1, "{plan}");
        assert_eq!(plan.steps[0].action.verb(), "finish");
        assert_eq!(standing(&plan, "a").phase, phase, "{policy_word} {code}");
        apply(&mut observed, &plan);
        let later = diff(&wanted, &observed, &policy(), model::now() + Duration::from_millis(100));
        let starts = later.steps.iter().any(|it| it.action.verb() == "start");
        assert_eq!(starts, phase == Phase::BackingOff, "{policy_word} {code}: {later}");
        // A run that nobody saw end is a failure, never one that did not happen.
        let mut lost = empty();
        converge(&wanted, &mut lost);
        for instance in lost.instances.values_mut() {
            instance.task = Task::None;
        }
        let plan = diff(&wanted, &lost, &policy(), model::now());
        let expected = if policy_word == "never" { Phase::Failed } else { Phase::BackingOff };
        assert_eq!(standing(&plan, "a").phase, expected, "{policy_word}, lost");
    }
}

#[test]
fn a_failure_of_what_is_replaced_counts_when_its_successor_cannot_start() {
    let mut observed = empty();
    converge(&desired(&[("a", Some(""))]), &mut observed);
    for instance in observed.instances.values_mut() {
        instance.task = Task::Stopped { code: 3, at: String::new() };
    }
    // An edit acts at once, and what it replaces has failed all the same.
    let plan =
        diff(&desired(&[("a", Some(r#""args": ["x"]"#))]), &observed, &policy(), model::now());
    assert!(plan.steps.iter().any(|it| it.action.verb() == "start"), "{plan}");
    let finish = plan
        .steps
        .iter()
        .find_map(|it| if let Action::Finish(finish) = &it.action { Some(finish) } else { None });
    assert_eq!(finish.unwrap().strikes, 1);
}

#[test]
fn after_a_reboot_the_instance_that_ran_since_stands_for_its_workload() {
    let (first, second) = ([("a", Some(""))], [("a", Some(r#""args": ["x"]"#))]);
    let mut observed = empty();
    converge(&desired(&first), &mut observed);
    let mut old = observed.instances.values().next().unwrap().clone();
    old.task = Task::None;
    old.view = None;
    // A boot that had lasted for longer than this one has.
    let run = old.run.as_mut().unwrap();
    run.boot = "the one before".to_owned();
    run.at = model::now() + Duration::from_secs(9999);
    let run = run.n;
    old.end = Some(End { n: run, code: 0, reason: STOPPED.to_owned(), ..End::default() });
    let mut observed = empty();
    converge(&desired(&second), &mut observed);
    let new = observed.instances.values_mut().next().unwrap();
    new.task = Task::None;
    let id = new.id.clone();
    observed.instances.insert(old.id.clone(), old);
    let plan = diff(&desired(&second), &observed, &policy(), model::now());
    // Its run ended unseen, and is not passed over for that of the old one.
    assert_eq!(plan.steps[0].action.verb(), "finish", "{plan}");
    assert_eq!(standing(&plan, "a").instance.as_ref(), Some(&id));
    assert_eq!(standing(&plan, "a").phase, Phase::BackingOff);
}

#[test]
fn what_the_runtime_does_not_say_is_left_alone() {
    let mut observed = empty();
    converge(&desired(&[("a", Some(""))]), &mut observed);
    for instance in observed.instances.values_mut() {
        instance.task = crate::observed::Task::Unknown;
    }
    for wanted in [
        desired(&[("a", Some(""))]),
        desired(&[("a", Some(r#""args": ["x"]"#))]),
        desired(&[("b", Some(""))]),
    ] {
        let plan = diff(&wanted, &observed, &policy(), model::now());
        assert!(
            plan.steps.iter().all(|it| it.name.as_ref().is_some_and(|it| it.as_str() == "b")),
            "{plan}"
        );
        assert_eq!(standing(&plan, "a").reason, "runtime-not-answering");
    }
}

#[test]
fn a_task_without_its_container_object_ends_before_its_workload_starts() {
    let wanted = desired(&[("a", Some("")), ("b", Some(""))]);
    let mut observed = empty();
    // Of whatever revision it was made.
    let orphan: InstanceId = "a-0123456789".parse().unwrap();
    observed.orphans.insert(orphan.clone(), crate::observed::Task::Running { pid: 7 });
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert_eq!(plan.steps[0].action, Action::RemoveOrphan { id: orphan.clone(), pid: Some(7) });
    for step in plan.steps.iter().filter(|it| it.action.verb() == "prepare") {
        let is_its = step.name == Some("a".parse().unwrap());
        assert_eq!(step.requires == [StepId(0)], is_its, "{plan}");
    }
    converge(&wanted, &mut observed);
    assert_eq!(running(&observed), ["a", "b"]);
    // While nobody knows how it is, nothing starts beside it.
    let mut observed = empty();
    observed.orphans.insert(orphan, crate::observed::Task::Unknown);
    let plan = converge(&wanted, &mut observed);
    assert_eq!(running(&observed), ["b"]);
    assert_eq!(standing(&plan, "a").reason, "runtime-not-answering");
    assert!(down(&observed, Some(&["a".parse().unwrap()].into())).is_empty());
}

#[test]
fn down_removes_joiners_first_and_sweeps_what_is_left() {
    let mut observed = empty();
    converge(&desired(&PAIR), &mut observed);
    observed.leftovers.insert(Leftover::Lease("evenkeel-x".to_owned()));
    let plan = down(&observed, None);
    apply(&mut observed, &plan);
    assert!(observed.instances.is_empty() && observed.leftovers.is_empty());
    let order: Vec<String> =
        plan.steps.iter().filter_map(|it| it.name.as_ref().map(ToString::to_string)).collect();
    assert_eq!(order, ["joiner", "joiner", "donor", "donor"]);
}

#[test]
fn down_of_some_removes_no_donor_from_under_a_joiner_that_stays() {
    let mut observed = empty();
    let workloads = [
        ("donor", Some(r#""ipcMode": "shareable""#)),
        ("joiner", Some(r#""ipcMode": "container:donor""#)),
        ("other", Some("")),
    ];
    converge(&desired(&workloads), &mut observed);
    let check = |observed: &ObservedState, named: &[&str], removed: &[&str], held: &[&str]| {
        let plan = down(observed, Some(&named.iter().map(|it| it.parse().unwrap()).collect()));
        let removes = |it: &&Step| it.action.verb() == "remove";
        let of = plan.steps.iter().filter(removes).filter_map(|it| it.name.as_ref());
        let of: Vec<&str> = of.map(Name::as_str).collect();
        assert_eq!(of, removed, "{named:?}: {plan}");
        let stay: Vec<&str> = plan.standings.keys().map(Name::as_str).collect();
        assert_eq!(stay, held, "{named:?}");
        assert!(plan.standings.values().all(|it| it.reason == "donor-in-use"), "{named:?}");
        plan
    };
    let plan = check(&observed, &["donor", "other"], &["other"], &["donor"]);
    let message = &standing(&plan, "donor").message;
    assert_eq!(message, "in use by joiner");
    check(&observed, &["donor", "joiner"], &["joiner", "donor"], &[]);
    check(&observed, &["joiner"], &["joiner"], &[]);
    // A joiner that has ended joins it again when it starts.
    for it in observed.instances.values_mut().filter(|it| it.name.as_str() == "joiner") {
        it.task = Task::None;
    }
    check(&observed, &["donor"], &[], &["donor"]);
    // What somebody asked for of it is nothing that is left over.
    let boot_id = model::BOOT.to_owned();
    let hand = Hand { kind: HandKind::Stop, at: model::now(), boot_id, fresh: false };
    observed.hands.insert("donor".parse().unwrap(), hand);
    assert!(check(&observed, &["donor"], &[], &["donor"]).is_empty());
    assert!(down(&observed, None).standings.is_empty());
}

#[test]
fn only_what_can_be_joined_publishes() {
    assert!(model::joinable(&model::workload("a", r#""ipcMode": "shareable""#)));
    let own = r#""ipcMode": "shareable", "mounts": [{"type": "tmpfs", "target": "/dev/shm"}]"#;
    assert!(!model::joinable(&model::workload("a", own)));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// One of a few specs per name, so that pairs of states differ in every way that matters.
    fn wish() -> impl Strategy<Value = Vec<(String, Option<String>)>> {
        let spec = prop_oneof![
            Just(String::new()),
            Just(r#""args": ["x"]"#.to_owned()),
            Just(r#""ipcMode": "shareable""#.to_owned()),
            Just(r#""ipcMode": "shareable", "shmSize": "1Mi""#.to_owned()),
            Just(r#""state": "stopped""#.to_owned()),
            Just(r#""state": "absent""#.to_owned()),
            Just(r#""restart": {"policy": "never"}"#.to_owned()),
        ];
        let joiner =
            prop_oneof![Just(r#""ipcMode": "container:a""#.to_owned()), Just(String::new())];
        (
            proptest::option::of(spec.clone()),
            proptest::option::of(spec),
            proptest::option::of(joiner),
            any::<bool>(),
        )
            .prop_map(|(a, b, c, broken)| {
                // A joiner of something that cannot be joined is an invalid document, as the loader finds.
                let joinable = a
                    .as_deref()
                    .is_some_and(|it| it.contains("shareable") && !it.contains("state"));
                let c = c.map(|it| {
                    if it.contains("container") && (!joinable || broken) { None } else { Some(it) }
                });
                [("a", a.map(Some)), ("b", b.map(Some)), ("c", c)]
                    .into_iter()
                    .filter_map(|(name, spec)| Some((name.to_owned(), spec?)))
                    .collect()
            })
    }

    fn as_desired(wish: &[(String, Option<String>)]) -> crate::desired::DesiredState {
        let borrowed: Vec<(&str, Option<&str>)> =
            wish.iter().map(|(n, s)| (n.as_str(), s.as_deref())).collect();
        desired(&borrowed)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_wish_after_any_other_converges_and_stays(first in wish(), second in wish()) {
            let mut observed = empty();
            for wish in [&first, &second] {
                let wanted = as_desired(wish);
                let plan = converge(&wanted, &mut observed);
                prop_assert!(plan.is_empty());
                // What is planned for a converged state under the same wish is nothing, again and again.
                prop_assert_eq!(&diff(&wanted, &observed, &policy(), model::now()), &plan);
            }
        }

        #[test]
        fn a_joiner_never_runs_in_another_namespace_than_its_running_donor(first in wish(), second in wish()) {
            let mut observed = empty();
            for wish in [&first, &second] {
                converge(&as_desired(wish), &mut observed);
                let running = |name: &str| observed.instances.values().find(|it| it.name.as_str() == name && it.task.pid().is_some());
                if let (Some(donor), Some(joiner)) = (running("a"), running("c"))
                    && joiner.workload.as_ref().unwrap().spec.ipc_mode.as_ref().is_some_and(|it| it.donor().is_some())
                    && donor.published.ns
                {
                    prop_assert_eq!(donor.view, joiner.view);
                }
            }
        }
    }
}
