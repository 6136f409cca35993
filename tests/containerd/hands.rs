//! A person's hand: stop, start, restart and retry, beside a controller and without one.

use std::fs;
use std::path::{Path, PathBuf};

use evenkeel::plan::Phase;
use evenkeel::status::Item;

use crate::program::{Site, eventually, manifest, sleeper, until_dead};
use crate::rig::{Rig, sweep};
use crate::safety::assert_untouched;

/// Runs for ever, and writes into its own file system at each start.
fn writer(name: &str) -> String {
    manifest(
        name,
        "command: [sh, -c, \"echo run >> /runs; exec sleep 36000\"]\nstop: {signal: SIGKILL}",
    )
}

/// How often a workload was started on the writable layer that it has.
fn runs(pid: u32) -> usize {
    let path = PathBuf::from(format!("/proc/{pid}/root/runs"));
    eventually("the first line of a run", || fs::read_to_string(&path).ok()).lines().count()
}

fn is_stopped(item: &Item) -> bool {
    item.phase == Phase::Stopped
        && item.reason == "stopped-by-hand"
        && item.instance.as_ref().is_some_and(|it| it.pid.is_none())
}

/// Files of wishes that wait to be seen to.
fn asked(site: &Site) -> Vec<String> {
    let entries = fs::read_dir(site.run_dir().join("hands")).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn strikes(site: &Site) -> usize {
    fs::read_dir(site.run_dir().join("strikes")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_stop_by_hand_holds_until_a_start() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    for name in ["web", "other"] {
        site.write(&format!("{name}.yaml"), &sleeper(name));
    }
    let controller = site.controller();
    let (web, other) = (site.until_running("web"), site.until_running("other"));
    site.run(&["stop", "wep"]).exits(2).says(&["did you mean `web`?"]);
    site.run(&["stop", "web", "nobody"]).exits(2).says(&["nobody"]);
    assert_eq!(asked(&site), [""; 0], "nothing is done by halves");
    site.run(&["stop", "web"]).exits(0).says(&["Stopped", "stopped-by-hand"]);
    assert!(!sweep::is_alive(web));
    // The command has looked for itself; the controller writes its status a moment later.
    site.until("web", |item| is_stopped(item?).then_some(()));
    site.run(&["status"]).exits(0).says(&["evenkeel start web"]);
    site.run(&["plan"]).exits(0).says(&["stopped-by-hand", "nothing to do"]);
    site.run(&["retry", "web"]).exits(4).says(&["evenkeel start web"]);

    // Neither an edit, nor another controller, nor an apply starts it.
    site.write("web.yaml", &sleeper("web").replace("36000", "36001"));
    site.run(&["apply"]).exits(0);
    controller.kill();
    site.run(&["apply"]).exits(0).says(&["stopped-by-hand"]);
    let _controller = site.controller();
    site.write("late.yaml", &sleeper("late"));
    site.until_running("late");
    assert!(is_stopped(&site.item("web").unwrap()));
    assert_eq!(asked(&site), ["web.json"]);

    site.run(&["start", "web"]).exits(0).says(&["Running"]);
    let again = site.until_running("web");
    let arguments = fs::read_to_string(format!("/proc/{again}/cmdline")).unwrap();
    assert!(arguments.contains("36001"), "{arguments:?}");
    site.run(&["start", "web", "late"]).exits(0);
    assert_eq!((site.pid("web"), site.pid("other")), (again, other));
    assert_eq!((asked(&site).len(), strikes(&site)), (0, 0));
    site.plan_is_empty();
}

#[tokio::test]
async fn a_restart_by_hand_is_another_process_and_no_failure() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &writer("web"));
    site.write("other.yaml", &sleeper("other"));
    let _controller = site.controller();
    let (first, other) = (site.until_running("web"), site.until_running("other"));
    let id = site.item("web").unwrap().instance.unwrap().id;
    assert_eq!(runs(first), 1);
    site.run(&["restart", "web"]).exits(0);
    let second = site.pid("web");
    until_dead(first);
    assert_eq!(runs(second), 2, "on the same writable layer");
    site.run(&["restart", "--fresh", "web"]).exits(0);
    let third = site.pid("web");
    until_dead(second);
    assert_eq!(runs(third), 1, "from the image anew");
    let item = site.item("web").unwrap();
    assert_eq!((item.instance.unwrap().id, item.reason), (id, String::new()));
    assert_eq!((asked(&site).len(), strikes(&site)), (0, 0));
    assert_untouched(&site, &[("other".to_owned(), other)]);
    site.plan_is_empty();

    // It waits for as long as it is told to, and what it asked for stands.
    site.write("web.yaml", &writer("web").replace("SIGKILL", "SIGUSR1, timeout: 36000s"));
    site.run(&["apply"]).exits(0);
    let pid = site.pid("web");
    site.run(&["stop", "--timeout", "2s", "web"]).exits(4).says(&["waiting for `web`"]);
    assert!(sweep::is_alive(pid));
    sweep::signal(pid, rustix::process::Signal::KILL);
    site.until("web", |item| item.filter(|it| is_stopped(it)).map(|_| ()));
}

#[tokio::test]
async fn a_retry_waits_for_no_delay_and_a_restart_runs_a_job_once_more() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let flag = site.dir().join("flag");
    let bind = |command: &str, restart: &str| {
        let mounts =
            format!("mounts: [{{type: bind, source: {}, target: /site}}]", site.dir().display());
        manifest("web", &format!("command: [sh, -c, \"{command}\"]\n{restart}\n{mounts}"))
    };
    let slow = "restart: {backoff: {initial: 1h, max: 1h}}";
    site.write("web.yaml", &bind("test -e /site/flag && exec sleep 36000", slow));
    let _controller = site.controller();
    site.until("web", |it| it.filter(|it| it.phase == Phase::BackingOff).map(|_| ()));
    site.run(&["retry", "web"]).exits(4).says(&["BackingOff"]);
    fs::write(&flag, "").unwrap();
    site.run(&["retry", "web"]).exits(0).says(&["Running"]);
    assert_eq!((asked(&site).len(), strikes(&site)), (0, 0));

    let log = |path: &Path| fs::read_to_string(path).map_or(0, |it| it.lines().count());
    let runs = site.dir().join("runs");
    site.write("web.yaml", &bind("echo x >> /site/runs", "restart: {policy: never}"));
    site.until("web", |it| {
        it.filter(|it| it.phase == Phase::Completed && it.up_to_date).map(|_| ())
    });
    assert_eq!(log(&runs), 1);
    site.run(&["retry", "web"]).exits(0);
    assert_eq!(log(&runs), 1, "nothing of it failed");
    site.run(&["restart", "web"]).exits(0).says(&["Completed"]);
    assert_eq!(log(&runs), 2);
}

#[tokio::test]
async fn without_a_controller_a_command_does_it_and_touches_nothing_else() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    for name in ["a", "b", "c"] {
        site.write(&format!("{name}.yaml"), &writer(name));
    }
    site.run(&["stop", "nobody"]).exits(2);
    site.apply();
    let all = site.pids();
    // Others' changes wait for somebody who is told to make them.
    site.write("b.yaml", &sleeper("b"));
    site.remove("c.yaml");
    site.write("new.yaml", &sleeper("new"));
    site.run(&["stop", "a"]).exits(0).says(&["stopped-by-hand"]);
    assert!(!sweep::is_alive(all[0].1));
    assert_untouched(&site, &all[1..]);
    assert_eq!(site.pids().len(), 2);
    site.run(&["start", "a"]).exits(0).says(&["Running"]);
    let pid = site.pid("a");
    assert_eq!(runs(pid), 2);
    site.run(&["restart", "--fresh", "a"]).exits(0);
    assert_eq!(runs(site.pid("a")), 1);
    assert_untouched(&site, &all[1..]);
    assert_eq!((asked(&site).len(), strikes(&site)), (0, 0));
    site.run(&["stop", "a"]).exits(0);
    site.apply();
    assert!(is_stopped(&site.item("a").unwrap()));
    // A wish that nobody can read is said, and stops nothing.
    fs::write(site.run_dir().join("hands/b.json"), "{").unwrap();
    site.run(&["status"]).exits(0).says(&["wish-unreadable", "hands/b.json"]);
    site.plan_is_empty();
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn joiners_run_on_when_their_donor_is_stopped_by_hand_and_it_is_not_removed_without_them() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n"));
    site.write("joiner.yaml", &(sleeper("joiner") + "  ipcMode: container:donor\n"));
    let controller = site.controller();
    let (donor, joiner) = (site.until_running("donor"), site.until_running("joiner"));
    site.run(&["stop", "donor"]).exits(0);
    assert!(!sweep::is_alive(donor));
    assert_untouched(&site, &[("joiner".to_owned(), joiner)]);
    // It could not be started again.
    site.run(&["restart", "--timeout", "1s", "joiner"]).exits(4).says(&["waiting-for-donor"]);
    assert_untouched(&site, &[("joiner".to_owned(), joiner)]);
    site.run(&["start", "donor"]).exits(0);
    let follower = site.until_running("joiner");
    assert_ne!(follower, joiner);
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/ipc")).unwrap();
    assert_eq!(namespace(follower), namespace(site.pid("donor")));

    // What no manifest names any more goes when a person says so, but not from under its joiner.
    site.run(&["down", "donor"]).exits(3).says(&["donor.yaml", "evenkeel stop donor"]);
    site.write("free.yaml", &sleeper("free"));
    site.until_running("free");
    assert_eq!(controller.terminate(), Some(0));
    let elsewhere = rig.dir().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let site = site.with_manifests(&[&elsewhere]);
    site.write("one.yaml", &sleeper("one"));
    let from_under_its_joiner = |site: &Site, more: &[&str]| {
        let before = site.pids();
        let named = [&["down", "donor"][..], more].concat();
        site.run(&named).exits(4).says(&["`donor` is in use by joiner", "[donor-in-use]"]);
        assert_eq!(site.pids(), before);
    };
    // Without a controller as beside one, and all of it or nothing.
    from_under_its_joiner(&site, &[]);
    from_under_its_joiner(&site, &["free"]);
    from_under_its_joiner(&site, &["--dry-run"]);
    let _controller = site.controller();
    site.until("donor", |it| it.filter(|it| it.reason == "unclaimed").map(|_| ()));
    site.run(&["stop", "donor"]).exits(4).says(&["left alone", "evenkeel down"]);
    from_under_its_joiner(&site, &[]);
    from_under_its_joiner(&site, &["free"]);
    assert_eq!(asked(&site), [""; 0]);
    site.run(&["down", "donor", "joiner", "free"]).exits(0);
    assert!(!sweep::is_alive(follower) && site.pids().is_empty());
}
