//! The same over and over: nothing piles up, and no order of things leads elsewhere.

use std::fs;
use std::path::Path;

use evenkeel::plan::Phase;
use rustix::process::Signal;

use crate::ipc::stage::{Inside, ipc_namespace};
use crate::program::{Controller, Site, eventually, manifest, pause, sleeper};
use crate::rig::{Rig, sweep};

const MODES: [&str; 5] = ["none", "private", "shareable", "host", "container:donor"];

/// What may happen in a life: a crash, a stop, nothing.
const EVENTS: usize = 3;

const BOOTS: usize = 20;
const BOOTS_AT_ONCE: usize = 4;

/// A small generator, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.below(n + 1));
        }
    }
}

/// What the host, the controller and containerd have now, but for what is known to be kept; what is there twice is
/// there twice.
fn inventory(rig: &Rig, site: &Site, controller: &Controller) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = rig.dir().to_str().unwrap();
    let mounts = mounts.lines().filter(|it| it.contains(own));
    // Without their numbers, which are given anew.
    let mut found: Vec<String> =
        mounts.map(|it| it.split(' ').skip(3).take(2).collect::<Vec<_>>().join(" ")).collect();
    let descriptors = fs::read_dir(format!("/proc/{}/fd", controller.pid())).unwrap().count();
    found.push(format!("{descriptors} open files"));
    // Bundles too; removed layers are deleted when containerd comes to it.
    let mut directories =
        vec![site.run_dir(), site.state_dir(), rig.dir().join("containerd-state")];
    let cgroup = evenkeel::config::cgroup_parent(&site.run_dir());
    for root in sweep::cgroup_roots() {
        let own = root.join(cgroup.trim_start_matches('/'));
        let entries = fs::read_dir(own).into_iter().flatten().flatten().map(|it| it.path());
        found.extend(entries.filter(|it| it.is_dir()).map(|it| it.display().to_string()));
    }
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            // Where something below is mounted, the mount says so.
            if entry.file_type().is_ok_and(|it| it.is_dir()) {
                directories.push(entry.path());
            }
            found.push(entry.path().display().to_string());
        }
    }
    // It has its own history, which is bounded.
    found.retain(|it| !it.ends_with("/removals.json"));
    found.extend(rig.remains());
    for args in [
        &["images", "list", "--quiet"][..],
        &["content", "list", "--quiet"],
        &["snapshots", "--snapshotter", &Rig::snapshotter(), "list"],
    ] {
        found.extend(rig.ctr(args).lines().map(|it| format!("{} {it}", args[0])));
    }
    found.sort();
    found
}

/// The directory of a pass through life of one workload of each mode.
fn cycle(site: &Site, n: usize, event: usize) {
    let mode = MODES[n % MODES.len()];
    let name = format!("c{n}");
    let file = format!("{name}.yaml");
    let text = sleeper(&name) + &format!("  ipcMode: {mode}\n");
    site.write(&file, &text);
    let first = site.until_running(&name);
    match event {
        0 => {
            // It crashes, and comes back.
            sweep::signal(first, Signal::KILL);
            site.until(&name, |item| {
                let pid = item.filter(|it| it.phase == Phase::Running)?.instance.as_ref()?.pid?;
                (pid != first).then_some(())
            });
        }
        1 => {
            site.write(&file, &(text + "  state: stopped\n"));
            site.until(&name, |item| {
                item.filter(|it| it.phase == Phase::Stopped && it.up_to_date).map(drop)
            });
        }
        _ => {}
    }
    site.remove(&file);
    site.until_gone(&name);
}

#[tokio::test]
async fn after_a_hundred_lives_in_mixed_modes_everything_is_as_it_was_at_first() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    // The same few come and go all the time.
    site.configure("removeAfter: 10ms\npruneLimit: 100\n");
    let controller = site.controller();
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n"));
    let donor = site.until_running("donor");
    let mut random = Random(7);
    // What is made when first needed is there after this.
    (0..EVENTS).for_each(|event| cycle(&site, event, event));
    let settled = || {
        let mut before = inventory(&rig, &site, &controller);
        eventually("the same twice", || {
            pause();
            let now = inventory(&rig, &site, &controller);
            let is_same = now == before;
            before = now;
            is_same.then(|| before.clone())
        })
    };
    let first = settled();
    for n in 0..100 {
        cycle(&site, n, random.below(EVENTS));
    }
    // Shims and log writers end a moment after their containers.
    let mut last = settled();
    for _ in 0..50 {
        if last == first {
            break;
        }
        pause();
        last = settled();
    }
    assert_eq!(last, first);
    assert_eq!(site.pid("donor"), donor);
    assert_eq!(controller.terminate(), Some(0));
}

#[tokio::test]
async fn twenty_boots_in_any_order_of_files_end_in_one_namespace() {
    let rig = Rig::start().await;
    // Most of a boot is waiting: for the second that a workload has to run before it is believed.
    std::thread::scope(|scope| {
        for first in 0..BOOTS_AT_ONCE {
            let rig = &rig;
            scope.spawn(move || (first..BOOTS).step_by(BOOTS_AT_ONCE).for_each(|n| boot(rig, n)));
        }
    });
}

fn boot(rig: &Rig, n: usize) {
    let site = Site::beside(rig, &format!("boot-{n}"));
    let mut workloads = vec![
        ("donor", "shareable"),
        ("one", "container:donor"),
        ("two", "container:one"),
        ("three", "container:donor"),
    ];
    Random(n as u64).shuffle(&mut workloads);
    for (n, (name, mode)) in workloads.iter().enumerate() {
        site.write(&format!("{n}.yaml"), &(sleeper(name) + &format!("  ipcMode: {mode}\n")));
    }
    site.apply();
    let pids = site.pids();
    assert_eq!(pids.len(), workloads.len(), "{workloads:?}");
    // The namespace, /dev/shm and the queues.
    let inside: Vec<Inside> = pids.iter().map(|(_, pid)| Inside::of(&pid.to_string())).collect();
    let own = inside[0].identity();
    assert!(own.1.is_some() && inside.iter().all(|it| it.identity() == own), "{inside:?}");
    assert_ne!(own.0, ipc_namespace("self"));
    site.run(&["down"]).exits(0);
}

#[tokio::test]
async fn a_program_that_needs_ten_seconds_to_end_gets_what_its_timeout_gives_it() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let out = rig.dir().join("out");
    fs::create_dir(&out).unwrap();
    let controller = site.controller();
    let cases =
        [("zero", "0s", 137), ("short", "2s", 137), ("long", "20s", 7), ("ever", "never", 7)];
    let text = |name: &str, timeout: &str| {
        let script = format!(
            "trap 'sleep 10; exit 7' TERM; echo up > /out/{name}; while true; do sleep 0.1; done"
        );
        let spec = format!(
            "command: [sh, -c, \"{script}\"]\nmounts: [{{type: bind, source: {}, target: /out}}]\nstop: {{timeout: {timeout}}}",
            out.display()
        );
        manifest(name, &spec)
    };
    for (name, timeout, _) in cases {
        site.write(&format!("{name}.yaml"), &text(name, timeout));
    }
    for (name, ..) in cases {
        site.until_running(name);
        eventually("a program that is up", || Path::new(&out).join(name).exists().then_some(()));
    }
    for (name, timeout, _) in cases {
        site.write(&format!("{name}.yaml"), &(text(name, timeout) + "\n  state: stopped\n"));
    }
    for (name, _, code) in cases {
        let found = site.until(name, |item| {
            let item = item.filter(|it| it.phase == Phase::Stopped)?;
            item.instance.as_ref().filter(|it| it.pid.is_none())?;
            Some(item.last_exit.as_ref()?.code)
        });
        assert_eq!(found, code, "{name}");
    }
    assert_eq!(controller.terminate(), Some(0));
}
