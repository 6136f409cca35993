//! The end of the machine: everything ends in order, and is kept for the next start.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use evenkeel::plan::Phase;

use crate::program::{Site, eventually, manifest, sleeper, until_dead};
use crate::rig::{Rig, sweep};

/// Writes into its own file system at each start and into the site's directory when it is told to end.
fn witness(site: &Site, name: &str, more: &str) -> String {
    let script = format!(
        "echo run >> /runs; trap 'echo {name} >> /site/ends; exit 0' TERM; while :; do sleep 0.02; done"
    );
    let mounts =
        format!("mounts: [{{type: bind, source: {}, target: /site}}]", site.dir().display());
    manifest(name, &format!("command: [sh, -c, \"{script}\"]\n{mounts}\n{more}"))
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).map_or(Vec::new(), |it| it.lines().map(str::to_owned).collect())
}

/// Waits until the program has begun: before that it traps nothing.
fn until_begun(pid: u32) {
    eventually("a run", || fs::read_to_string(format!("/proc/{pid}/root/runs")).ok());
}

#[tokio::test]
async fn everything_ends_in_order_beside_a_controller_and_runs_again_with_the_next_one() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("donor.yaml", &witness(&site, "donor", "ipcMode: shareable"));
    site.write("joiner.yaml", &witness(&site, "joiner", "ipcMode: container:donor"));
    site.write("job.yaml", &witness(&site, "job", "restart: {policy: never}"));
    site.write("asked.yaml", &sleeper("asked"));
    let mut controller = site.controller();
    let pids = ["donor", "joiner", "job", "asked"].map(|it| site.until_running(it));
    pids[..3].iter().for_each(|it| until_begun(*it));
    site.run(&["stop", "asked"]).exits(0);
    let done = site.run(&["shutdown", "--for", "reboot"]).exits(0);
    assert!(done.err.contains("the machine reboots"), "{}", done.err);
    assert_eq!(controller.ended(), Some(0));
    let ends = lines(&site.dir().join("ends"));
    let at = |name: &str| ends.iter().position(|it| it == name).unwrap();
    assert!(ends.len() == 3 && at("joiner") < at("donor"), "{ends:?}");
    assert!(!pids.iter().any(|it| sweep::is_alive(*it)) && site.pids().is_empty());
    assert_eq!(fs::read_dir(site.run_dir().join("strikes")).map_or(0, Iterator::count), 0);
    assert!(!site.run_dir().join("shutdown.json").exists());
    // There is nothing more to end.
    site.run(&["shutdown"]).exits(0);
    site.run(&["shutdown", "--for", "power-off", "--timeout", "5s"]).exits(0);

    let _controller = site.controller();
    for (name, before) in ["donor", "joiner", "job"].iter().zip(pids) {
        let pid = site.until_running(name);
        assert_ne!(pid, before);
        let runs = Path::new("/proc").join(pid.to_string()).join("root/runs");
        eventually("the second run on the same layer", || (lines(&runs).len() == 2).then_some(()));
    }
    // What a person has stopped in this boot stays so.
    assert_eq!(site.item("asked").unwrap().reason, "stopped-by-hand");
    site.plan_is_empty();
}

#[tokio::test]
async fn nobody_starts_anything_while_it_waits_for_an_end_and_what_takes_too_long_is_killed() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let slow = "command: [sh, -c, \"trap '' TERM; : > /runs; while :; do sleep 0.02; done\"]\nstop: {timeout: never}\nrestart: {policy: never}";
    site.write("slow.yaml", &manifest("slow", slow));
    site.write("web.yaml", &sleeper("web"));
    let controller = site.controller();
    let (pid, web) = (site.until_running("slow"), site.until_running("web"));
    until_begun(pid);
    let mut child = site
        .command(&["shutdown", "--timeout", "12s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until_dead(web);
    // As if it had died of the handover, and somebody starts another one.
    controller.kill();
    for command in [&["run"][..], &["apply"], &["start", "web"], &["down"]] {
        site.run(command).exits(3).says(&["evenkeel shutdown", &format!("pid {}", child.id())]);
    }
    assert!(sweep::is_alive(pid));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!sweep::is_alive(pid));
    // It ended because the machine did, which is no failure of a job that runs once.
    let item = site.item("slow").unwrap();
    assert_eq!((item.last_exit.unwrap().reason.as_str(), item.phase), ("stopped", Phase::Starting));
    site.apply();
    assert_eq!(site.pids().len(), 2);
}

#[tokio::test]
async fn one_that_is_killed_leaves_nothing_that_the_next_start_does_not_repair() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("slow.yaml", &witness(&site, "slow", "stop: {signal: SIGUSR2, timeout: never}"));
    site.write("web.yaml", &sleeper("web"));
    site.apply();
    let web = site.pid("web");
    let mut child = site.command(&["shutdown"]).stderr(Stdio::null()).spawn().unwrap();
    until_dead(web);
    child.kill().unwrap();
    child.wait().unwrap();
    let _controller = site.controller();
    assert_ne!(site.until_running("web"), web);
    site.until_running("slow");
    site.plan_is_empty();
}

#[tokio::test]
async fn without_containerd_it_says_so_and_sends_no_controller_away() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &sleeper("web"));
    let controller = site.controller();
    let pid = site.until_running("web");
    rig.kill_containerd();
    site.run(&["shutdown", "--timeout", "20s"]).exits(3).says(&["containerd"]);
    assert!(sweep::is_alive(pid) && sweep::is_alive(controller.pid()));
    rig.start_containerd().await;
    assert_eq!(site.until_running("web"), pid);
    // Somebody who holds on is named.
    sweep::signal(controller.pid(), rustix::process::Signal::STOP);
    let done = site.run(&["shutdown", "--timeout", "2s"]).exits(3);
    assert!(done.err.contains(&format!("pid {}", controller.pid())), "{}", done.err);
    sweep::signal(controller.pid(), rustix::process::Signal::CONT);
    assert_eq!(site.until_running("web"), pid);
}
