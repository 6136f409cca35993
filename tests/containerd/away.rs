//! containerd goes away, hangs, has no room, or is another one than before: containers go on, and on its return
//! everything is as wanted.

use std::collections::BTreeSet;
use std::path::Path;

use evenkeel::plan::Phase;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

use crate::program::{Site, manifest, sleeper, until_dead};
use crate::rig::{Engine, Rig, sweep};
use crate::safety::assert_untouched;

fn start(site: &Site, n: usize) -> Vec<(String, u32)> {
    let names: Vec<String> = (0..n).map(|it| format!("w{it}")).collect();
    for name in &names {
        site.write(&format!("{name}.yaml"), &sleeper(name));
    }
    names.into_iter().map(|name| (name.clone(), site.until_running(&name))).collect()
}

/// Waits until the status says that the runtime does not answer, and returns why.
#[track_caller]
fn until_unreachable(site: &Site) -> String {
    site.until_status("an unreachable runtime", |status| {
        (status.runtime.state == "unreachable").then(|| status.runtime.message.clone())
    })
}

#[track_caller]
fn until_ready(site: &Site) {
    site.until_status("a runtime that answers", |status| {
        (status.runtime.state == "ready").then_some(())
    });
}

fn restarts(site: &Site, name: &str) -> u64 {
    site.item(name).unwrap().instance.unwrap().restarts
}

#[tokio::test]
async fn containers_outlive_a_killed_containerd_and_what_was_dropped_meanwhile_runs_after_it() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    let controller = site.controller();
    let before = start(&site, 10);

    rig.kill_containerd();
    let why = until_unreachable(&site);
    assert!(!why.is_empty());
    site.run(&["status"]).says(&["unreachable"]);
    site.write("late.yaml", &sleeper("late"));
    site.remove("w9.yaml");
    assert!(before.iter().all(|it| sweep::is_alive(it.1)));

    rig.start_containerd().await;
    site.until_running("late");
    site.until_gone("w9");
    until_ready(&site);
    assert_untouched(&site, &before[..9]);
    assert!(before[..9].iter().all(|it| restarts(&site, &it.0) == 0));
    site.plan_is_empty();

    // Ended as its service manager would, and nothing but time passes.
    rig.stop_containerd();
    until_unreachable(&site);
    rig.start_containerd().await;
    until_ready(&site);
    assert_untouched(&site, &before[..9]);
    // It is told once that it went and once that it came, however often it was tried.
    let log = controller.log();
    assert!(log.matches("the runtime cannot be observed").count() <= 6, "{log}");
    assert_eq!(controller.terminate(), Some(0));
}

#[tokio::test]
async fn a_containerd_that_hangs_is_told_of_and_nothing_is_done_twice_after_it() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let controller = site.controller();
    let before = start(&site, 2);
    let containerd = rig.containerd_pid();

    sweep::signal(containerd, Signal::STOP);
    site.write("late.yaml", &sleeper("late"));
    let why = until_unreachable(&site);
    assert!(why.contains("not answered"), "{why}");
    // Another command says what it waits for, instead of nothing.
    let mut plan = site.command(&["plan"]);
    plan.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let mut plan = plan.spawn().unwrap();
    let mut said = std::io::BufReader::new(plan.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("waiting for containerd"), "{line}");
    plan.kill().unwrap();
    plan.wait().unwrap();

    sweep::signal(containerd, Signal::CONT);
    site.until_running("late");
    until_ready(&site);
    assert_untouched(&site, &before);
    assert_eq!(controller.terminate(), Some(0));
    site.plan_is_empty();
}

#[tokio::test]
async fn a_containerd_without_room_fails_the_new_and_leaves_the_others() {
    let mut rig = Rig::start().await;
    rig.stop_containerd();
    let root = rig.dir().join("containerd-root");
    rustix::mount::mount(
        "tmpfs",
        &root,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=48m,nr_inodes=16k"),
    )
    .unwrap();
    rig.start_containerd().await;
    let site = Site::of(&rig);
    let controller = site.controller();
    let before = start(&site, 2);

    let ballast = root.join("ballast");
    fill(&ballast);
    site.write("late.yaml", &sleeper("late"));
    let message = site.until("late", |item| {
        let item = item.filter(|it| it.phase == Phase::BackingOff)?;
        (!item.message.is_empty()).then(|| item.message.clone())
    });
    assert!(message.contains("no space left"), "{message}");
    assert_untouched(&site, &before);

    std::fs::remove_dir_all(&ballast).unwrap();
    site.until_running("late");
    assert_untouched(&site, &before);
    site.run(&["status"]).exits(0);
    assert_eq!(controller.terminate(), Some(0));
    site.run(&["down"]).exits(0);
    rig.stop_containerd();
    rustix::mount::unmount(&root, UnmountFlags::DETACH).unwrap();
}

/// What ends while there is no room is told and started again once there is, and nothing is done twice.
#[tokio::test]
async fn exits_restarts_and_stops_without_room_are_caught_up_with_when_there_is_some() {
    let mut rig = Rig::start().await;
    rig.stop_containerd();
    let root = rig.dir().join("containerd-root");
    let size = Some(c"size=48m,nr_inodes=16k");
    rustix::mount::mount("tmpfs", &root, "tmpfs", MountFlags::empty(), size).unwrap();
    rig.start_containerd().await;
    let site = Site::of(&rig);
    let out = rig.dir().join("out");
    std::fs::create_dir(&out).unwrap();
    let script = "echo run >> /out/runs; until [ -e /out/end ]; do sleep 0.1; done; exit 7";
    let mount = format!("{{type: bind, source: {}, target: /out}}", out.display());
    let once =
        format!("command: [sh, -c, \"{script}\"]\nmounts: [{mount}]\nrestart: {{policy: never}}");
    site.write("once.yaml", &manifest("once", &once));
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n"));
    let controller = site.controller();
    let before = start(&site, 3);
    let (once, donor) = (site.until_running("once"), site.until_running("donor"));

    let ballast = root.join("ballast");
    fill(&ballast);
    std::fs::write(out.join("end"), "").unwrap();
    for pid in [before[0].1, donor] {
        sweep::signal(pid, Signal::KILL);
    }
    site.write("w1.yaml", &(sleeper("w1") + "  state: stopped\n"));
    for pid in [once, donor, before[0].1, before[1].1] {
        until_dead(pid);
    }
    assert_untouched(&site, &before[2..]);
    site.run(&["status"]);

    std::fs::remove_dir_all(&ballast).unwrap();
    let ended = |name: &str, phase: Phase| {
        site.until(name, |item| {
            let item = item.filter(|it| it.phase == phase)?;
            item.last_exit.as_ref().map(|it| (it.code, it.reason.clone()))
        })
    };
    assert_eq!(ended("once", Phase::Failed), (7, "exited".to_owned()));
    assert_eq!(ended("w1", Phase::Stopped), (137, "stopped".to_owned()));
    for (name, old) in [("w0", before[0].1), ("donor", donor)] {
        assert_ne!(site.until_running(name), old);
        assert_eq!(ended(name, Phase::Running), (137, "exited".to_owned()), "{name}");
    }
    assert_eq!(std::fs::read_to_string(out.join("runs")).unwrap(), "run\n");
    assert_untouched(&site, &before[2..]);
    assert_eq!(controller.terminate(), Some(0));
    site.plan_is_empty();
    site.run(&["down"]).exits(0);
    rig.stop_containerd();
    rustix::mount::unmount(&root, UnmountFlags::DETACH).unwrap();
}

/// Until there is neither a byte left, also not behind what others give back meanwhile, nor a file: a database that has
/// room within takes one more container without a byte.
fn fill(directory: &Path) {
    use std::io::Write as _;
    std::fs::create_dir(directory).unwrap();
    let mut file = std::fs::File::create(directory.join("bytes")).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    let mut names = (0_u32..).map(|it| directory.join(it.to_string()));
    while names.next().is_some_and(|it| std::fs::File::create(it).is_ok()) {}
}

/// What containerd keeps goes, below what it runs.
fn lose(rig: &Rig, directories: &[&str]) {
    sweep::remember_sockets(rig.dir());
    for directory in directories {
        let directory = rig.dir().join(directory);
        for mount in sweep::mounts_below(&directory).iter().rev() {
            rustix::mount::unmount(mount, UnmountFlags::DETACH).unwrap();
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}

const EVERYTHING: [&str; 2] = ["containerd-root", "containerd-state"];

/// The programs of all workloads, and their shims.
fn processes(rig: &Rig) -> (usize, usize) {
    let all = sweep::processes_of(rig.dir());
    let count = |name: &str| {
        let is = |it: &&sweep::Process| it.arguments.first().is_some_and(|it| it.ends_with(name));
        all.iter().filter(is).count()
    };
    (count("sleep"), count("containerd-shim-runc-v2"))
}

/// containerd is killed and comes back without what it kept there. What it ran is to run anew then, once.
async fn forget(
    rig: &mut Rig,
    site: &Site,
    lost: &[&str],
    before: &[(String, u32)],
    meanwhile: impl FnOnce(),
) {
    rig.kill_containerd();
    until_unreachable(site);
    lose(rig, lost);
    meanwhile();
    rig.start_containerd().await;
    until_ready(site);
    until_run_anew(site, rig, before);
}

/// Waits until each of them runs as something else, once.
#[track_caller]
fn until_run_anew(site: &Site, rig: &Rig, before: &[(String, u32)]) {
    for (name, old) in before {
        site.until(name, |item| {
            let pid = item.filter(|it| it.phase == Phase::Running)?.instance.as_ref()?.pid?;
            (pid != *old).then_some(())
        });
        assert!(!sweep::is_alive(*old), "{name} runs twice on {}", rig.engine());
    }
    crate::program::eventually("one program and one shim of each", || {
        (processes(rig) == (before.len(), before.len())).then_some(())
    });
    site.plan_is_empty();
}

/// A containerd that has lost everything, at the same address, while what the one before it started still runs.
#[tokio::test]
async fn nothing_runs_twice_under_a_containerd_that_has_forgotten_everything() {
    for engine in Engine::all() {
        let mut rig = Rig::start_on(&engine).await;
        let site = Site::of(&rig);
        let controller = site.controller();
        let before = start(&site, 2);

        // The names of instances are the same, and so is the place of runc's state.
        forget(&mut rig, &site, &EVERYTHING, &before, || {}).await;
        assert_eq!(controller.terminate(), Some(0));
    }
}

/// The instance that is wanted has another name than the one that nobody remembers.
#[tokio::test]
async fn an_edit_while_containerd_forgets_everything_leaves_nothing_of_the_old_one() {
    for engine in Engine::all() {
        let mut rig = Rig::start_on(&engine).await;
        let site = Site::of(&rig);
        let controller = site.controller();
        let before = start(&site, 2);

        let edit = || {
            site.write("w0.yaml", &(sleeper("w0") + "  env: [{name: OTHER, value: \"1\"}]\n"));
        };
        forget(&mut rig, &site, &EVERYTHING, &before, edit).await;
        let kept = std::fs::read_dir(site.run_dir().join("runc").join(site.namespace())).unwrap();
        assert_eq!(kept.count(), 2, "runc keeps what nobody needs on {engine}");
        let log = controller.log();
        assert!(log.contains("containerd has lost it, and a process of it still runs"), "{log}");
        assert_eq!(controller.terminate(), Some(0));
    }
}

/// The containers are there, and what runs of them is not known: a power cut on a box whose `/run` is not in memory, or
/// a shim that was killed while runc could not clean up after it.
#[tokio::test]
async fn nothing_runs_twice_whose_task_alone_is_lost() {
    for engine in Engine::all() {
        let mut rig = Rig::start_on(&engine).await;
        let site = Site::of(&rig);
        let controller = site.controller();
        let before = start(&site, 2);
        forget(&mut rig, &site, &["containerd-state"], &before, || {}).await;

        let before: Vec<_> =
            before.iter().map(|it| (it.0.clone(), site.until_running(&it.0))).collect();
        let (kept, away) = (site.run_dir().join("runc"), site.run_dir().join("runc.away"));
        std::fs::rename(&kept, &away).unwrap();
        sweep::remember_sockets(rig.dir());
        for shim in sweep::processes_of(rig.dir()) {
            if shim.arguments.first().is_some_and(|it| it.ends_with("containerd-shim-runc-v2")) {
                sweep::signal(shim.pid, Signal::KILL);
            }
        }
        until_run_anew(&site, &rig, &before);
        std::fs::remove_dir_all(&away).unwrap();
        assert_eq!(controller.terminate(), Some(0));
    }
}

#[tokio::test]
async fn down_ends_what_containerd_has_forgotten_and_leaves_nothing() {
    down_leaves_nothing_without(&EVERYTHING).await;
}

#[tokio::test]
async fn down_ends_whose_containers_containerd_has_forgotten_and_leaves_nothing() {
    down_leaves_nothing_without(&["containerd-root"]).await;
}

#[tokio::test]
async fn down_ends_whose_tasks_containerd_has_forgotten_and_leaves_nothing() {
    down_leaves_nothing_without(&["containerd-state"]).await;
}

async fn down_leaves_nothing_without(lost: &[&str]) {
    for engine in Engine::all() {
        let mut rig = Rig::start_on(&engine).await;
        let site = Site::beside(&rig, "lost");
        site.write("a.yaml", &(sleeper("a") + "  ipcMode: shareable\n"));
        site.write("b.yaml", &(sleeper("b") + "  ipcMode: container:a\n"));
        site.apply();
        rig.kill_containerd();
        lose(&rig, lost);
        rig.start_containerd().await;
        site.run(&["down", "--dry-run"]).exits(0).says(&["a-", "b-"]);
        site.run(&["down"]).exits(0);
        assert_eq!(processes(&rig).0, 0, "{engine}");
        // It waits for shims and for containerd by itself.
        let left = std::thread::scope(|it| {
            it.spawn(|| crate::crash::left_after_down(&rig, &site)).join().unwrap()
        });
        assert_eq!(left, Vec::<String>::new(), "{engine}");
    }
}

/// As of something that listens there and is no containerd, or one that cannot get on.
#[tokio::test]
async fn a_socket_that_accepts_and_never_answers_is_told_of_and_left_as_soon_as_there_is_another() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    let controller = site.controller();
    let before = start(&site, 2);

    let silent = |rig: &mut Rig| {
        rig.kill_containerd();
        std::fs::remove_file(rig.socket()).unwrap();
        std::os::unix::net::UnixListener::bind(rig.socket()).unwrap()
    };
    let listener = silent(&mut rig);
    // For a moment there was nobody, which is told until there is more to say.
    site.until_status("that it does not answer", |status| {
        let is_silent = status.runtime.message.contains("no answer from");
        (status.runtime.state == "unreachable" && is_silent).then_some(())
    });
    site.write("late.yaml", &sleeper("late"));
    site.run(&["status"]).exits(3).says(&["unreachable", "w0"]);
    assert!(before.iter().all(|it| sweep::is_alive(it.1)));

    drop(listener);
    std::fs::remove_file(rig.socket()).unwrap();
    rig.start_containerd().await;
    site.until_running("late");
    until_ready(&site);
    assert_untouched(&site, &before);
    assert_eq!(controller.terminate(), Some(0));
    site.plan_is_empty();
}

/// Everything that runs in the cgroups of a site.
fn programs(site: &Site) -> BTreeSet<u32> {
    let parent = evenkeel::config::cgroup_parent(&site.run_dir());
    let is_ours = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().any(|it| it.contains(&format!(":{parent}/")))
    };
    let processes = sweep::processes().into_iter().map(|it| it.pid);
    processes.filter(|pid| is_ours(*pid)).collect()
}

/// The address stays, and who listens there is somebody else, with nothing of ours, while the one before lives on.
#[tokio::test]
async fn nothing_runs_twice_when_another_containerd_takes_the_socket_over() {
    for engine in Engine::all() {
        let (rig, other) = tokio::join!(Rig::start_on(&engine), Rig::start_on(&engine));
        let socket = rig.dir().join("current.sock");
        let point_at = |rig: &Rig, to: &Rig| {
            let new = rig.dir().join("new.sock");
            std::os::unix::fs::symlink(to.socket(), &new).unwrap();
            std::fs::rename(new, rig.dir().join("current.sock")).unwrap();
        };
        point_at(&rig, &rig);
        let site = Site::of(&rig).with_socket(&socket);
        let controller = site.controller();
        let before = start(&site, 2);
        point_at(&rig, &other);
        // Whoever is connected to the one before stays so, and nothing changes for him.
        controller.hang_up();
        controller.until_logged("configuration was read again", 1);
        assert_untouched(&site, &before);
        assert_eq!(controller.terminate(), Some(0));
        let controller = site.controller();
        let now = before.iter().map(|(name, old)| {
            site.until(name, |item| {
                let item = item.filter(|it| it.phase == Phase::Running && it.up_to_date)?;
                item.instance.as_ref()?.pid.filter(|it| it != old)
            })
        });
        let now: BTreeSet<u32> = now.collect();
        assert_eq!(programs(&site), now, "something runs twice");
        assert_eq!(controller.terminate(), Some(0));
        // And back.
        point_at(&rig, &rig);
        let controller = site.controller();
        let back = before.iter().map(|(name, _)| {
            site.until(name, |item| {
                let item = item.filter(|it| it.phase == Phase::Running && it.up_to_date)?;
                item.instance.as_ref()?.pid.filter(|it| !now.contains(it))
            })
        });
        let back: BTreeSet<u32> = back.collect();
        assert_eq!(programs(&site), back, "something runs twice");
        assert_eq!(controller.terminate(), Some(0));
        site.plan_is_empty();
        site.run(&["down"]).exits(0);
    }
}
