//! The program is killed after each single effect, and the next run sets right what it left.
//!
//! Each try has directories and a containerd namespace of its own, so that many can run at once on one containerd.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{ListContainersRequest, ListRequest, ListTasksRequest};
use evenkeel::config::cgroup_parent;
use evenkeel::controller::EFFECTS;

use crate::others::{self, request};
use crate::program::{Done, Site, found_at_last, manifest, sleeper};
use crate::rig::recipe::Recipe;
use crate::rig::registry::{self, Registry};
use crate::rig::{Rig, sweep};

/// Most of the time of a try is spent waiting: for the second that a workload has to run before it is believed.
const AT_ONCE: usize = 6;

/// Far more effects than any of these commands has.
const MOST: usize = 60;

/// What is done before the command that is killed, and what it is to do.
struct Walk {
    name: String,
    /// Manifests that are applied before.
    before: Vec<(&'static str, String)>,
    /// What somebody else does then.
    meddling: fn(&Site),
    /// What that person takes away afterwards.
    tidying: fn(&Site),
    /// Manifests from then on; those that are only in `before` are removed.
    after: Vec<(&'static str, String)>,
    command: &'static str,
    /// For what the command is, else `apply` sets right what a killed one left.
    of: Option<&'static str>,
    /// What it ends with.
    exits: i32,
    /// It is killed after these alone; without any, after each one up to its end.
    at: &'static [&'static str],
    /// At least so many effects, so that none is lost unnoticed.
    effects: usize,
}

fn walk(
    name: impl Into<String>,
    before: Vec<(&'static str, String)>,
    after: Vec<(&'static str, String)>,
    effects: usize,
) -> Walk {
    Walk {
        name: name.into(),
        before,
        meddling: |_| {},
        tidying: |_| {},
        after,
        command: "apply",
        of: None,
        exits: 0,
        at: &[],
        effects,
    }
}

fn walks(from_registry: &str) -> Vec<Walk> {
    let private = || ("a", sleeper("a"));
    let donor = || ("donor", sleeper("donor") + "  ipcMode: shareable\n");
    let joiner = || ("joiner", sleeper("joiner") + "  ipcMode: container:donor\n");
    let once = || ("joiner", joiner().1 + "  restart: {policy: never}\n");
    let other = |(name, text): (&'static str, String)| {
        (name, text + "  env: [{name: OTHER, value: \"1\"}]\n")
    };
    let pulled = sleeper("a").replace("image: busybox", &format!("image: {from_registry}"));
    let job = || ("job", manifest("job", "command: [\"true\"]\nrestart: {policy: never}"));
    let by_hand = |name, command, effects| {
        let all = || vec![donor(), joiner()];
        Walk { command, of: Some("donor"), ..walk(name, all(), all(), effects) }
    };
    let mut walks = vec![
        walk("start", vec![], vec![private()], 14),
        walk("pull", vec![], vec![("a", pulled.clone())], 14),
        // Once it is named, what is made of it is made beside the rest.
        Walk {
            at: &["pull/image", "pull/release"],
            ..walk("pulled", vec![], vec![("a", pulled)], 0)
        },
        walk("start-shared", vec![], vec![donor(), joiner()], 24),
        walk("replace", vec![private()], vec![other(private())], 15),
        // It runs once, and that is not over with the run that was ended so that it follows its donor.
        walk("replace-donor", vec![donor(), once()], vec![other(donor()), once()], 27),
        walk("replace-job", vec![job()], vec![other(job())], 15),
        walk("remove", vec![private(), donor()], vec![private()], 8),
        Walk {
            command: "down",
            ..walk("down", vec![donor(), joiner()], vec![donor(), joiner()], 14)
        },
        by_hand("stop-by-hand", "stop", 4),
        by_hand("restart-by-hand", "restart", 10),
        by_hand("renew-by-hand", "restart --fresh", 15),
    ];
    walks.extend(["private", "shareable", "container:giver"].into_iter().flat_map(in_mode));
    walks.extend(meddled());
    walks
}

/// Runs that end, starts that fail, what has to be killed, and what has lost its container object.
fn in_mode(mode: &'static str) -> Vec<Walk> {
    let joins = mode.starts_with("container:");
    let with = |text: Option<String>| {
        let text = text.map(|it| ("a", format!("{it}\n  ipcMode: {mode}\n")));
        let giver = ("giver", sleeper("giver") + "  ipcMode: shareable\n");
        text.into_iter().chain(joins.then_some(giver)).collect::<Vec<_>>()
    };
    let name = |what: &str| format!("{what}-{}", mode.split(':').next().unwrap());
    let fails =
        manifest("a", "command: [sh, -c, exit 3]\nrestart: {policy: never}\nremoveOnExit: true");
    let is_refused = manifest("a", "command: [/nowhere]\nrestart: {policy: never}");
    let deaf = manifest("a", "command: [sleep, \"36000\"]\nstop: {timeout: 10ms}");
    let stopped = format!("{deaf}\n  state: stopped");
    vec![
        Walk {
            exits: 4,
            at: crate::faults::FINISH,
            ..walk(name("end"), with(None), with(Some(fails)), 0)
        },
        Walk {
            exits: 4,
            at: if mode == "shareable" {
                &["undo/task", "undo/unpublish", "failed/strikes", "failed/end"]
            } else {
                &["undo/task", "failed/strikes", "failed/end"]
            },
            ..walk(name("refused"), with(None), with(Some(is_refused)), 0)
        },
        Walk { at: &["stop/kill"], ..walk(name("kill"), with(Some(deaf)), with(Some(stopped)), 0) },
        Walk {
            meddling: |site| others::forget_container(site, "a"),
            at: &["orphan/object", "stop/kill", "orphan/task"],
            ..walk(name("orphan"), with(Some(sleeper("a"))), with(Some(sleeper("a"))), 0)
        },
    ]
}

/// What somebody else has had a hand in, and what happens to instances that stay.
fn meddled() -> Vec<Walk> {
    let a = |more: &str| vec![("a", sleeper("a") + more)];
    vec![
        Walk {
            meddling: |site| others::pause(site, "a"),
            at: &["resume"],
            ..walk("resume", a(""), a(""), 0)
        },
        Walk {
            meddling: |site| others::pause(site, "a"),
            at: &["stop/resume"],
            ..walk("stop-paused", a(""), a("  state: stopped\n"), 0)
        },
        Walk {
            meddling: |site| others::forget_in_runc(site, "a"),
            tidying: others::remove_cgroups,
            at: &["stop/pid"],
            ..walk("stop-lost", a(""), a("  state: stopped\n"), 0)
        },
        Walk {
            meddling: |site| others::unpin(site, "a"),
            at: &["publish"],
            ..walk("publish", a("  ipcMode: shareable\n"), a("  ipcMode: shareable\n"), 0)
        },
        Walk {
            meddling: |site| drop(others::leave_logs(site)),
            at: &["sweep"],
            ..walk("sweep", a(""), a(""), 0)
        },
        Walk {
            at: &["update"],
            ..walk("update", a(""), a("  restart: {policy: on-failure}\n"), 0)
        },
        Walk {
            meddling: |site| {
                others::bring_unwanted(site);
                site.configure("removeAfter: 200ms\npruneLimit: 100\nimages: {grace: 0s}\n");
            },
            tidying: others::assert_nothing_unwanted,
            at: &["image/mark", "image/remove"],
            ..walk("unwanted", a(""), a(""), 0)
        },
        Walk {
            // What an earlier try has made.
            meddling: |site| drop(std::fs::remove_dir(site.dir().with_file_name("made"))),
            at: &["start/directory"],
            ..walk(
                "directory",
                vec![],
                a("  mounts: [{type: bind, source: SITES/made, target: /made, create: true}]\n"),
                0,
            )
        },
    ]
}

impl Walk {
    fn words(&self) -> Vec<&'static str> {
        self.command.split(' ').chain(self.of).collect()
    }

    /// One try: that effect, by its number or its name, is the last one, or none is without it. The effect that was
    /// the last one, unless the command came to its end before, and what there is after the next one.
    fn run(&self, rig: &Rig, aborting: &Path, last: Option<&str>) -> (Option<String>, Vec<String>) {
        let name = last.map_or_else(
            || self.name.clone(),
            |it| format!("{}-{}", self.name, it.replace('/', "-")),
        );
        let site = Site::beside(rig, &name);
        site.configure("removeAfter: 200ms\npruneLimit: 100\n");
        let sites = site.dir().parent().unwrap().to_str().unwrap();
        let write = |(file, text): &(&str, String)| {
            site.write(&format!("{file}.yaml"), &text.replace("SITES", sites));
        };
        if !self.before.is_empty() {
            self.before.iter().for_each(write);
            site.apply();
        }
        (self.meddling)(&site);
        for (file, _) in &self.before {
            if !self.after.iter().any(|it| it.0 == *file) {
                site.remove(&format!("{file}.yaml"));
            }
        }
        self.after.iter().for_each(write);

        let mut effect = None;
        if let Some(last) = last {
            let site = site.clone().with_program(aborting).with("EVENKEEL_ABORT_AFTER", last);
            let done = site.run(&self.words());
            if done.code.is_some() {
                done.exits(self.exits);
            } else {
                effect = Some(last_effect(&done));
            }
        }
        // What a person asked for is done by whoever comes next.
        if self.of.is_none() || last.is_none() {
            site.run(&self.words()).exits(self.exits);
        }
        if self.of.is_some() {
            site.apply();
        }
        if self.command != "down" {
            site.plan_is_empty();
        }
        (self.tidying)(&site);
        let mut found = inventory(rig, &site);
        found.extend(said(&site));
        // What is there after it can be removed, all of it.
        site.run(&["down"]).exits(0);
        let left = left_after_down(rig, &site);
        assert_eq!(left, Vec::<String>::new(), "{name}: left after down");
        (effect, found)
    }
}

/// How everything stands, and how what ended or did not start did so.
fn said(site: &Site) -> Vec<String> {
    let items = site.status().items;
    let words = items.iter().map(|it| {
        let end = it.last_exit.as_ref().map(|it| (it.code, &it.reason));
        let failure = it.start_failure.as_ref().map(|it| (it.code, &it.reason));
        let (name, phase, reason) = (&it.name, it.phase, &it.reason);
        format!("said: {name} {phase} {} {reason} {end:?} {failure:?}", it.up_to_date)
    });
    words.collect()
}

/// The effect after which a command says that it was killed.
fn last_effect(done: &Done) -> String {
    let line = done.err.lines().find(|it| it.contains("aborting as asked"));
    let effect = line.and_then(|it| it.split_once("effect=\"")?.1.split('"').next());
    effect.unwrap_or_else(|| panic!("killed by somebody else: {done:?}")).to_owned()
}

/// How an inventory names a shim, and a task.
const SHIM: &str = "shim: ";
const TASK: &str = "task: ";

/// Everything of a site on this machine, in words that are the same for equal sites.
pub(crate) fn inventory(rig: &Rig, site: &Site) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let look = || (runtime.block_on(objects(rig, site.namespace())), processes(site));
    // Shims and logs end a moment after their tasks, and on a busy machine that is a long one.
    let (objects, processes) = found_at_last(look, |(objects, processes)| {
        let id = |it: &String| Some(it.strip_prefix(TASK)?.split(' ').next()?.to_owned());
        let tasks: Vec<String> = objects.iter().filter_map(id).collect();
        let is_of_task = |it: &String| tasks.iter().any(|task| it.contains(task.as_str()));
        // A controller is of none.
        let is_instance = |it: &&String| it.starts_with(SHIM) || it.contains("/logs/");
        processes.iter().filter(is_instance).all(is_of_task)
    });
    let mut found = processes;
    found.extend(objects);

    let bundles = format!("/{}/", site.namespace());
    for mount in sweep::mounts_below(site.dir().parent().unwrap().parent().unwrap()) {
        if let Ok(below) = mount.strip_prefix(site.dir()) {
            found.push(format!("mount: {}", below.display()));
        } else if let Some((_, id)) = mount.to_str().unwrap().split_once(&bundles) {
            found.push(format!("mount of a task: {id}"));
        }
    }

    let cgroup = cgroup_parent(&site.run_dir());
    for root in sweep::cgroup_roots() {
        let own = root.join(cgroup.trim_start_matches('/'));
        for directory in directories(&own) {
            let id = directory.strip_prefix(&own).unwrap().display().to_string();
            found.push(format!("cgroup: {} {id}", root.display()));
        }
    }

    for directory in [site.run_dir(), site.state_dir()] {
        for path in files(&directory) {
            let below = path.strip_prefix(site.dir()).unwrap().display().to_string();
            // Made when first needed, and kept.
            let known = [
                "run/strikes",
                "run/approvals",
                "run/holds",
                "run/hands",
                "run/images",
                "run/pulls",
            ];
            // Who is killed while it pulls leaves a lock that is held by nobody, and that the next controller sweeps.
            let known = known.contains(&below.as_str()) || below.starts_with("run/pulls/");
            if !known && below != "run/status.json" && below != "lib/engine.json" {
                found.push(format!("file: {}", below.replace(site.namespace(), "NAMESPACE")));
            }
        }
    }
    found.sort();
    found
}

/// What is there of a site beside the files that it is made of.
pub(crate) fn left_after_down(rig: &Rig, site: &Site) -> Vec<String> {
    let nothing: BTreeSet<&str> = [
        "file: lib",
        "file: lib/images",
        "file: lib/images/busybox.tar",
        "file: lib/owner",
        "file: run",
        "file: run/lock",
    ]
    .into();
    let mut left = inventory(rig, site);
    left.retain(|it| !nothing.contains(it.as_str()));
    left
}

/// The processes of a site: shims, logs, and what is in its cgroups.
fn processes(site: &Site) -> Vec<String> {
    let cgroup = cgroup_parent(&site.run_dir());
    let own = format!("{}/", site.dir().display());
    let mut found = Vec::new();
    for process in sweep::processes() {
        let words = &process.arguments;
        let is_shim = words.windows(2).any(|it| it[0] == "-namespace" && it[1] == site.namespace());
        if is_shim {
            found.push(format!("{SHIM}{}", after(words, "-id")));
        } else if is_in(process.pid, &cgroup) {
            found.push(format!("process: {}", words.join(" ")));
        } else if let Some(log) = words.iter().find_map(|it| it.split_once(&own)) {
            found.push(format!("process with: {}", log.1));
        }
    }
    found.sort();
    found
}

/// What containerd has in a namespace, but for images and what belongs to them.
async fn objects(rig: &Rig, namespace: &str) -> Vec<String> {
    let channel = rig.channel();
    let mut found = Vec::new();
    let list = request(namespace, ListContainersRequest::default());
    let containers = ContainersClient::new(channel.clone()).list(list).await.unwrap().into_inner();
    found.extend(containers.containers.iter().map(|it| format!("container: {}", it.id)));
    let list = request(namespace, ListTasksRequest::default());
    let tasks = TasksClient::new(channel.clone()).list(list).await.unwrap().into_inner().tasks;
    found.extend(tasks.iter().map(|it| format!("{TASK}{} {:?}", it.id, it.status())));
    let list = request(namespace, ListRequest::default());
    let leases = LeasesClient::new(channel.clone()).list(list).await.unwrap().into_inner().leases;
    found.extend(leases.iter().map(|it| format!("lease: {}", it.id)));
    let list = ListSnapshotsRequest { snapshotter: Rig::snapshotter(), ..Default::default() };
    let mut client = SnapshotsClient::new(channel);
    let mut snapshots = client.list(request(namespace, list)).await.unwrap().into_inner();
    while let Some(message) = snapshots.message().await.unwrap() {
        let active = message.info.iter().filter(|it| it.kind() != Kind::Committed);
        found.extend(active.map(|it| format!("snapshot: {} {:?}", it.name, it.kind())));
    }
    found
}

fn after(words: &[String], flag: &str) -> String {
    words.iter().skip_while(|it| *it != flag).nth(1).cloned().unwrap_or_default()
}

fn is_in(pid: u32, cgroup: &str) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().any(|it| it.ends_with(cgroup) || it.contains(&format!(":{cgroup}/")))
}

/// The directory and all directories below it, without following links.
fn directories(directory: &Path) -> Vec<PathBuf> {
    files(directory).into_iter().filter(|it| it.is_dir() && !it.is_symlink()).collect()
}

/// The directory and all that is below it, without following links or entering mounts.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![directory.to_owned()];
    while let Some(path) = queue.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() && !path.ends_with("shm") {
            queue.extend(
                std::fs::read_dir(&path).into_iter().flatten().flatten().map(|it| it.path()),
            );
        }
        found.push(path);
    }
    found
}

/// The program, built so that it can be told to abort; beside the usual one, and from the same parts.
pub(crate) fn aborting_program() -> PathBuf {
    if cfg!(feature = "abort-after-effect") {
        return PathBuf::from(env!("CARGO_BIN_EXE_evenkeel"));
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let own = target.join("abort-after-effect");
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo
        .args([
            "build",
            "--quiet",
            "--bin",
            "evenkeel",
            "--features",
            "abort-after-effect",
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(&own)
        .env("CARGO_BUILD_BUILD_DIR", target.parent().unwrap());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    own.join("debug/evenkeel")
}

/// Does all of this, some of it at once; in order, but for that.
fn at_once<T: Send>(all: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let all = Mutex::new(all);
    let next = || all.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(one) = next() {
                    work(one);
                }
            });
        }
    });
}

#[tokio::test]
async fn a_crash_after_any_effect_is_set_right_by_the_next_run() {
    let aborting = aborting_program();
    let rig = Rig::start().await;
    let only = std::env::var("EVENKEEL_WALK").ok();
    let registry = Registry::start(registry::Kind::Plain);
    let pushed = registry.push("busybox:1", &Recipe::busybox());
    let mut walks = walks(&pushed.name);
    walks.retain(|it| only.as_ref().is_none_or(|only| it.name.starts_with(only)));
    let references: Vec<OnceLock<Vec<String>>> = walks.iter().map(|_| OnceLock::new()).collect();
    at_once(walks.iter().zip(&references), |(walk, reference)| {
        reference.set(walk.run(&rig, &aborting, None).1).unwrap();
    });

    // Those that are killed at a named effect, then the others, those with few effects first; such a walk is over with
    // the first that comes to its end.
    let numbers: Vec<String> = (1..=MOST).map(|it| it.to_string()).collect();
    let all = walks.iter().enumerate();
    let by_name = all.clone().flat_map(|(n, walk)| walk.at.iter().map(move |last| (n, *last)));
    let by_number = numbers.iter().flat_map(|last| {
        let numbered = all.clone().filter(|(_, walk)| walk.at.is_empty());
        numbered.map(move |(n, _)| (n, last.as_str()))
    });
    let over: Vec<(AtomicBool, AtomicUsize)> =
        walks.iter().map(|_| (AtomicBool::new(false), AtomicUsize::new(0))).collect();
    let problems = Mutex::new(Vec::new());
    let walked = Mutex::new(BTreeSet::new());
    at_once(by_name.chain(by_number), |(index, last)| {
        let (walk, (is_over, effects)) = (&walks[index], &over[index]);
        if is_over.load(Ordering::SeqCst) {
            return;
        }
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            walk.run(&rig, &aborting, Some(last))
        }));
        let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problem = |text: &str| problems.push(format!("{} after {last}: {text}", walk.name));
        let Ok((effect, found)) = tried else { return problem("see above") };
        let reference = references[index].get().unwrap();
        if found != *reference {
            problem(&difference(reference, &found));
        }
        match effect {
            Some(effect) => {
                effects.fetch_max(last.parse().unwrap_or_default(), Ordering::SeqCst);
                walked.lock().unwrap().insert(effect);
            }
            None if walk.at.is_empty() => is_over.store(true, Ordering::SeqCst),
            None => problem("it never gets there"),
        }
    });
    assert_eq!(problems.into_inner().unwrap(), Vec::<String>::new());
    for (walk, (is_over, _)) in walks.iter().zip(&over) {
        let comes_to_its_end = is_over.load(Ordering::SeqCst) || !walk.at.is_empty();
        assert!(comes_to_its_end, "{} does not come to its end", walk.name);
    }
    // What is passed without a crash has not been walked.
    let few = walks.iter().zip(over).map(|(walk, it)| (walk, it.1.into_inner()));
    let few: Vec<_> =
        few.filter(|(walk, n)| *n < walk.effects).map(|(walk, n)| (&walk.name, n)).collect();
    assert!(few.is_empty(), "{few:?}");
    if only.is_none() {
        assert_all_were_walked(&walked.into_inner().unwrap());
    }
    rig.assert_clean();
}

/// A new effect has to be walked too.
///
/// Not those for what containerd has lost: it would have to lose everything of everybody who shares it. They are
/// interrupted in memory, and made for real where a containerd of its own forgets all it knew.
#[track_caller]
pub(crate) fn assert_all_were_walked(walked: &BTreeSet<String>) {
    let is_walked = |it: &str| walked.contains(it) || it.starts_with("stray/");
    let left: Vec<_> = EFFECTS.iter().filter(|it| !is_walked(it)).collect();
    assert!(left.is_empty(), "no walk comes to {left:?}");
}

pub(crate) fn difference(wanted: &[String], found: &[String]) -> String {
    let missing = wanted.iter().filter(|it| !found.contains(it)).map(|it| format!("- {it}"));
    let more = found.iter().filter(|it| !wanted.contains(it)).map(|it| format!("+ {it}"));
    missing.chain(more).collect::<Vec<_>>().join("\n")
}
