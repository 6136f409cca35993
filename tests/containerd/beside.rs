//! What commands say beside a controller and about one workload alone.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use evenkeel::plan::Phase;
use rustix::process::Signal;

use crate::program::{Site, manifest, now, sleeper};
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
