//! What commands say beside a controller and about one workload alone.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use evenkeel::plan::Phase;
use evenkeel::status::PlanReport;
use rustix::process::Signal;

use crate::others::occupy;
use crate::program::{Done, Site, manifest, now, sleeper};
use crate::rig::{Rig, sweep};

#[tokio::test]
async fn apply_beside_a_controller_judges_as_one_alone_does() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &sleeper("web"));
    let controller = site.controller();
    let web = site.until_running("web");
    site.run(&["apply"]).exits(0);
    // What runs now and not in a moment is not believed.
    let short = "command: [sh, -c, \"sleep 0.7; exit 3\"]\nrestart: {policy: never}";
    site.write("short.yaml", &manifest("short", short));
    site.run(&["apply"]).exits(4).says(&["short", "Failed"]);
    site.write("short.yaml", &manifest("short", "state: absent"));
    site.until("short", |it| (it?.reason == "absent").then_some(()));
    // A crash loop gets no better by waiting for it.
    site.write("loop.yaml", &manifest("loop", "command: [sh, -c, \"exit 3\"]"));
    site.until("loop", |it| (it?.instance.as_ref()?.restarts > 5).then_some(()));
    let begun = now();
    site.run(&["apply", "--timeout", "2m"]).exits(4).says(&["loop", "BackingOff"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // Who waits does so until the time is up.
    let begun = now();
    site.run(&["apply", "--wait", "--timeout", "3s"]).exits(4);
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    site.write("loop.yaml", &manifest("loop", "state: absent"));
    site.until("loop", |it| (it?.reason == "absent").then_some(()));
    // When the controller ends, the work is that of the command.
    sweep::signal(controller.pid(), Signal::STOP);
    site.write("late.yaml", &sleeper("late"));
    let mut late = site
        .command(&["apply", "--timeout", "1m"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(late.stderr.take().unwrap()).lines();
    let waits = lines.any(|it| it.unwrap().contains("waiting for it to get there"));
    assert!(waits, "it says that it waits for the controller");
    controller.kill();
    // Nobody is to be kept from writing.
    lines.for_each(drop);
    assert_eq!(late.wait().unwrap().code(), Some(0));
    assert!(sweep::is_alive(site.pid("late")) && sweep::is_alive(web));
    site.run(&["down"]).exits(0);
}

/// Of what the plan alone does not know: a step that is to be done, and that does not work.
#[tokio::test]
async fn apply_beside_a_controller_ends_with_the_reason_when_all_that_is_left_fails() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("blocked.yaml", &sleeper("blocked"));
    let plan: PlanReport =
        serde_json::from_str(&site.run(&["plan", "--output", "json"]).out).unwrap();
    let id = plan.steps.iter().find(|it| it.action == "prepare").unwrap().subject.clone();
    let vacate = occupy(&site, &id);
    let fails = |it: Done| {
        let Done { code, out, err, .. } = &it;
        assert!(out.contains("prepare-failed") && out.contains("not ours"), "{code:?}: {out}{err}");
        assert_eq!(*code, Some(4), "{out}{err}");
    };
    fails(site.run(&["apply", "--timeout", "2m"]));
    let controller = site.controller();
    // Whatever else there is to do is done before.
    site.write("web.yaml", &sleeper("web"));
    let begun = now();
    fails(site.run(&["apply", "--timeout", "2m"]).says(&["web"]));
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
    assert!(sweep::is_alive(site.pid("web")));
    // Who waits is told the same when the time is up.
    fails(site.run(&["apply", "--wait", "--timeout", "3s"]));
    // What failed before says nothing of what is wanted since.
    site.until("blocked", |it| it?.next_retry_at.is_some().then_some(()));
    site.write("blocked.yaml", &(sleeper("blocked") + "  args: [\"36000\"]\n"));
    site.run(&["apply"]).exits(0);
    site.write("blocked.yaml", &sleeper("blocked"));
    fails(site.run(&["apply"]));
    vacate();
    site.run(&["retry", "blocked"]).exits(0);
    site.run(&["apply"]).exits(0);
    assert_eq!(controller.terminate(), Some(0));
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn what_is_said_of_one_workload_does_not_depend_on_others() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &sleeper("web"));
    site.write("bad.yaml", &manifest("bad", "command: [slep]\nnonsense: 1"));
    let controller = site.controller();
    site.until_running("web");
    for command in ["status", "explain"] {
        site.run(&[command, "web"]).exits(0);
        site.run(&[command, "bad"]).exits(1);
    }
    site.run(&["status"]).exits(1);
    site.remove("bad.yaml");
    for name in ["x", "y", "z"] {
        site.write(&format!("{name}.yaml"), &sleeper(name));
        site.until_running(name);
    }
    for name in ["x", "y", "z"] {
        site.remove(&format!("{name}.yaml"));
    }
    site.until_status("they are held", |it| (!it.holds.is_empty()).then_some(()));
    for command in ["status", "explain"] {
        site.run(&[command, "web"]).exits(0);
        site.run(&[command, "x"]).exits(4).says(&["prune-limit"]);
    }
    assert_eq!(site.item("x").unwrap().phase, Phase::Held);
    controller.terminate();
    site.run(&["down"]).exits(0);
}
