//! A runtime that could start nothing: what runs is left alone, and what is missing is told.

use std::fs;

use evenkeel::host::means::{RUNC, SHIM};
use evenkeel::plan::Phase;

use crate::program::{Site, manifest, sleeper};
use crate::rig::{Around, Engine, Rig, SEALED};

const OTHER: &str = "  env: [{name: OTHER, value: \"1\"}]\n";

/// An edited manifest and a new one wait for this reason; what runs goes on.
#[track_caller]
fn held(site: &Site, pid: u32, reason: &str, says: &str) {
    for (name, phase) in [("web", Phase::Running), ("new", Phase::Waiting)] {
        site.until(name, |item| {
            let item = item.filter(|it| it.reason == reason && it.phase == phase)?;
            assert!(item.message.contains(says), "{}", item.message);
            Some(())
        });
    }
    assert_eq!(site.pid("web"), pid);
    site.run(&["explain", "web"]).exits(4).says(&[reason, says]);
    let done = site.run(&["doctor"]).exits(3);
    assert!(done.out.lines().any(|it| it.starts_with("problem")), "{}", done.out);
}

#[tokio::test]
async fn nothing_that_runs_is_touched_while_runc_or_its_shim_is_missing() {
    let rig = Rig::start_around(&Engine::chosen(), Around::OwnPrograms).await;
    let site = Site::of(&rig);
    site.write("web.yaml", &sleeper("web"));
    let controller = site.controller();
    let mut pid = site.until_running("web");
    let done = site.run(&["doctor"]).exits(0);
    assert!(done.out.contains(rig.programs().join(SHIM).to_str().unwrap()), "{}", done.out);
    for program in [SHIM, RUNC] {
        fs::remove_file(rig.programs().join(program)).unwrap();
        let other = if program == SHIM { OTHER } else { "" };
        site.write("web.yaml", &(sleeper("web") + other));
        site.write("new.yaml", &sleeper("new"));
        held(&site, pid, "runtime-missing", program);
        rig.link(program, &rig.programs());
        // It would look again by itself, within half a minute.
        controller.hang_up();
        let before = pid;
        pid = site.until("web", |item| {
            let item = item.filter(|it| it.up_to_date && it.reason.is_empty())?;
            item.instance.as_ref()?.pid.filter(|it| *it != before)
        });
        site.until_running("new");
        site.remove("new.yaml");
        site.until_gone("new");
    }
    // containerd does not look again for a shim that it has found once, so this start fails. What it would have
    // replaced is lost with it: nobody can see from outside what containerd remembers.
    fs::remove_file(rig.programs().join(SHIM)).unwrap();
    rig.link(SHIM, &rig.more_programs());
    site.write("late.yaml", &sleeper("late"));
    site.until("late", |item| {
        let failure = item?.start_failure.as_ref()?;
        assert_eq!(failure.reason, "runtime-missing", "{}", failure.message);
        Some(())
    });
    assert_eq!(site.pid("web"), pid);
    rig.link(SHIM, &rig.programs());
    site.until_running("late");
    drop(controller);
    site.run(&["down"]).exits(0);
}

#[tokio::test]
async fn nothing_that_runs_is_touched_while_cgroups_cannot_be_written_to() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    // Whether mounts are shared is another question.
    let web = manifest("web", "command: [sleep, \"36000\"]\nstop: {signal: SIGKILL}");
    site.write("web.yaml", &web);
    let _controller = site.controller();
    let pid = site.until_running("web");
    rig.stop_containerd();
    rig.surround(Around::SealedCgroups);
    rig.start_containerd().await;
    site.write("web.yaml", &(web.clone() + OTHER));
    site.write("new.yaml", &sleeper("new"));
    held(&site, pid, "cgroup-failed", SEALED);
    rig.stop_containerd();
    rig.surround(Around::Everything);
    rig.start_containerd().await;
    site.until_running("new");
    assert_ne!(site.until_running("web"), pid);
}
