//! How long a plan takes: 1,000 wanted × 1,000 observed. Prints medians of the time on the clock and of the processor's,
//! and fails when the latter is over the limit: a busy machine makes no plan slow.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench talks, and a failed step is its failure"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel::backoff::Delays;
use evenkeel::desired::{BootTime, DesiredState, Origin, Source, SourceState, Wanted};
use evenkeel::observed::{
    Image, ImageConfig, ImagePlace, Instance, ObservedState, Published, Run, Task, View,
};
use evenkeel::plan::{ImagePolicy, LogDefaults, Plan, Policy, diff, down};
use evenkeel::workload::{Bytes, InstanceId, IpcDefaults, Name, RestartPolicy, Workload};

const WORKLOADS: usize = 1000;
const ROUNDS: usize = 15;

/// A look at a full box must not be noticed on it.
const LIMIT: Duration = Duration::from_millis(50);

/// Every tenth is a donor, and the nine after it join it.
fn workload(n: usize, version: &str) -> (Name, Arc<Workload>) {
    let ipc_mode = if n.is_multiple_of(10) {
        "shareable".to_owned()
    } else {
        format!("container:w{}", n - n % 10)
    };
    let env: Vec<_> = (0..10)
        .map(|it| serde_json::json!({ "name": format!("V{it}"), "value": version }))
        .collect();
    let name = format!("w{n}");
    let workload = serde_json::json!({ "name": name, "spec": {
        "image": "docker.io/library/busybox:1", "command": ["sleep", "1000"], "ipcMode": ipc_mode, "env": env,
        "mounts": [{ "type": "tmpfs", "target": "/tmp", "size": "1Mi" }],
    }});
    (name.parse().unwrap(), Arc::new(serde_json::from_value(workload).unwrap()))
}

fn source() -> Source {
    Source::new(Path::new("/"), Path::new("/manifests"))
}

fn origin(name: &Name) -> Origin {
    Origin { source: source(), file: PathBuf::from(format!("{name}.yaml")), document: 0 }
}

fn desired(version: &str, number: usize) -> DesiredState {
    let state = SourceState {
        prunes: true,
        blockers: Vec::new(),
        partial: Vec::new(),
        absence_acts_at: BootTime::default(),
        absent: BTreeMap::new(),
        unseen_acts_at: BootTime::default(),
        confirmed: now(),
        documents: number,
    };
    let wanted = |(name, workload): (Name, _)| {
        let wanted = Wanted { origin: origin(&name), workload: Some(workload) };
        (name, wanted)
    };
    DesiredState {
        sources: [(source(), state)].into(),
        workloads: (0..number).map(|it| wanted(workload(it, version))).collect(),
        problems: Vec::new(),
    }
}

fn now() -> BootTime {
    BootTime(Duration::from_secs(1000))
}

fn observed(version: &str, place: ImagePlace) -> ObservedState {
    let name = "docker.io/library/busybox:1".to_owned();
    let digest = "sha256:".to_owned() + &"a".repeat(64);
    let image = Image { name: name.clone(), digest, config: ImageConfig::default(), place };
    let instance = |n: usize| {
        let (name, workload) = workload(n, version);
        let revision = workload.revision(&image.digest);
        let inode = u64::try_from(n - n % 10).unwrap() + 1;
        let publishes = n.is_multiple_of(10);
        Instance {
            id: InstanceId::new(&name, &revision),
            origin: origin(&name),
            name,
            revision,
            workload: Some(workload),
            defaults: IpcDefaults::default(),
            image: Image { place: ImagePlace::Store, ..image.clone() },
            has_snapshot: true,
            run: Some(Run {
                n: 1,
                order: 1,
                boot: "boot".to_owned(),
                at: BootTime(Duration::from_secs(10)),
                started: String::new(),
                image_unchecked: None,
            }),
            end: None,
            ending: None,
            task: Task::Running { pid: u32::try_from(n).unwrap() + 1000 },
            published: Published {
                directory: publishes,
                shm: publishes.then_some(inode),
                shm_mounts: u32::from(publishes),
                ns: publishes,
                ns_inode: publishes.then_some(inode),
            },
            view: Some(View { ipc_ns: inode, shm: Some(inode), shm_root: Some(1) }),
        }
    };
    ObservedState {
        boot_id: "boot".to_owned(),
        instances: (0..WORKLOADS).map(instance).map(|it| (it.id.clone(), it)).collect(),
        images: [(name, image.clone())].into(),
        ..ObservedState::default()
    }
}

fn measure(what: &str, steps: usize, plan: impl Fn() -> Plan) -> bool {
    let (mut times, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (begun, before) = (Instant::now(), processor());
        let plan = std::hint::black_box(plan());
        times.push(begun.elapsed());
        busy.push(processor().saturating_sub(before));
        assert_eq!(plan.steps.len(), steps, "{what}");
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[ROUNDS / 2]
    };
    let (time, busy) = (median(&mut times), median(&mut busy));
    let ms = |it: Duration| it.as_secs_f64() * 1000.0;
    println!("{what:<36} {:>7.2} ms, {:>7.2} ms of CPU", ms(time), ms(busy));
    busy < LIMIT
}

/// What this thread has used.
fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

fn main() {
    let policy = Policy {
        ipc: IpcDefaults::default(),
        restart: RestartPolicy::Always,
        delays: Delays::default(),
        log: LogDefaults { max_size: Bytes::new(1 << 20).unwrap(), max_files: 2 },
        images: ImagePolicy::default(),
        prune_limit: 100,
        run_directory: PathBuf::from("/run/evenkeel"),
        log_directory: PathBuf::from("/var/lib/evenkeel/logs"),
        cgroup_parent: "/evenkeel".to_owned(),
    };
    let (one, two, none) = (desired("1", WORKLOADS), desired("2", WORKLOADS), desired("1", 0));
    let there = observed("1", ImagePlace::Store);
    let archived = observed("1", ImagePlace::Archive(PathBuf::from("/images/busybox.tar")));
    let empty = ObservedState { instances: BTreeMap::new(), ..archived.clone() };
    let plan =
        |desired: &DesiredState, observed: &ObservedState| diff(desired, observed, &policy, now());
    let fast = [
        measure("1,000 wanted, all as wanted", 0, || plan(&one, &there)),
        measure("1,000 wanted, none there", 1 + 2 * WORKLOADS, || plan(&one, &empty)),
        measure("1,000 wanted, all to be replaced", 4 * WORKLOADS, || plan(&two, &there)),
        measure("1,000 there, none wanted", 2 * WORKLOADS, || plan(&none, &there)),
        measure("1,000 there, taken down", 2 * WORKLOADS, || down(&there, None)),
    ];
    assert!(fast.iter().all(|it| *it), "a plan takes longer than {LIMIT:?}");
}
