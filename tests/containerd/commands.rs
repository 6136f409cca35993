//! Exit codes, limits and pipes of the commands, on a real containerd.

use std::process::Stdio;
use std::time::{Duration, Instant};

use evenkeel::engine::{Embedded, Found};

use crate::program::{Site, eventually, manifest, sleeper};
use crate::rig::{Rig, sweep};

#[expect(clippy::disallowed_methods, reason = "how long another process takes")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn each_exit_code_has_its_cause_and_of_several_the_first_counts() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    let other = rig.dir().join("other");
    let missing = manifest("missing", "command: [\"true\"]\nimagePullPolicy: never")
        .replace("busybox", "nowhere:1");
    site.write("web.yaml", &sleeper("web"));
    site.run(&["plan"]).exits(5).says(&["new manifest"]);
    site.run(&["status"]).exits(4);
    site.run(&["apply"]).exits(0);
    site.run(&["plan"]).exits(0);
    site.run(&["status"]).exits(0);

    site.write("missing.yaml", &missing);
    site.run(&["apply"]).exits(4).says(&["image-missing"]);
    site.run(&["status"]).exits(4);
    // Nothing can be done, so there are no changes.
    site.run(&["plan"]).exits(0).says(&["image-missing"]);

    // Problems, before what has not converged and what would change.
    site.write("wrong.yaml", &(sleeper("wrong") + "  ipcMode: sharable\n"));
    site.write("late.yaml", &sleeper("late"));
    site.run(&["plan"]).exits(1).says(&["ipc-mode-invalid", "new manifest"]);
    site.run(&["apply"]).exits(1).says(&["ipc-mode-invalid", "late"]);
    site.run(&["status"]).exits(1);
    site.run(&["validate", site.manifests_dir().to_str().unwrap()]).exits(1);

    // The surroundings, before problems.
    let elsewhere = site.clone().with("EVENKEEL_STATE_DIR", &other);
    elsewhere.run(&["apply"]).exits(3).says(&["--take-over"]);
    rig.kill_containerd();
    for command in ["plan", "apply", "status", "approve", "down"] {
        site.run(&[command]).exits(3);
    }
    // What is wrong with the command line, before everything.
    site.run(&["plan", "--nonsense"]).exits(2);
    site.clone().with("EVENKEEL_ENGINE", "nonsense").run(&["plan"]).exits(2);
    site.run(&["down", "--source", "/x", "Not_A_Name"]).exits(2);
    rig.start_containerd().await;
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn an_apply_gives_up_at_its_limit_and_waits_for_more_when_it_is_told_to() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let deaf = "command: [sh, -c, \"trap '' TERM; : > /up; while :; do sleep 0.02; done\"]\n\
                stop: {timeout: never}";
    site.write("deaf.yaml", &manifest("deaf", deaf));
    site.apply();
    let pid = site.pid("deaf");
    eventually("its trap", || {
        std::path::Path::new(&format!("/proc/{pid}/root/up")).exists().then_some(())
    });
    site.write("deaf.yaml", &manifest("deaf", &(deaf.to_owned() + "\nhostname: other")));
    let begun = now();
    site.run(&["apply", "--timeout", "1s"]).exits(4).says(&["Stopping"]);
    assert!(now() - begun < Duration::from_secs(30), "{:?}", now() - begun);
    assert_eq!(site.pid("deaf"), pid);
    sweep::signal(pid, rustix::process::Signal::KILL);

    // An image that is not there yet is nothing to wait for, unless somebody says that it comes.
    let archive = rig.archive();
    let aside = rig.dir().join("aside.tar");
    std::fs::rename(&archive, &aside).unwrap();
    site.remove("deaf.yaml");
    site.run(&["down"]).exits(0);
    rig.ctr(&["images", "remove", crate::rig::busybox::IMAGE]);
    site.write("web.yaml", &(sleeper("web") + "  imagePullPolicy: never\n"));
    site.run(&["apply", "--timeout", "1m"]).exits(4).says(&["image-missing"]);
    site.run(&["apply", "--wait", "--timeout", "1s"]).exits(4).says(&["image-missing"]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| site.run(&["apply", "--wait", "--timeout", "80s"]));
        eventually("the command at work", || (site.run(&["status"]).code == Some(4)).then_some(()));
        std::fs::copy(&aside, &archive).unwrap();
        drop(waiting.join().unwrap().exits(0));
    });
    assert!(sweep::is_alive(site.pid("web")));
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_closed_pipe_is_no_failure_of_what_is_shown() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let talker =
        "command: [sh, -c, \"yes | head -n 100000; exec sleep 36000\"]\nlog: {maxSize: 1Mi}";
    site.write("web.yaml", &manifest("web", &format!("{talker}\nstop: {{signal: SIGKILL}}")));
    let _controller = site.controller();
    site.until_running("web");
    eventually("output", || (!site.run(&["logs", "web"]).out.is_empty()).then_some(()));
    for line in
        ["status", "status --output json", "plan", "explain web", "logs web", "events", "approve"]
    {
        let words: Vec<&str> = line.split(' ').collect();
        let mut child =
            site.command(&words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{line}");
    }
}

#[tokio::test]
async fn the_engine_of_its_own_is_ended_with_everything_or_when_it_is_asked_for() {
    let mut rig = Rig::start().await;
    rig.stop_containerd();
    let site = Site::of(&rig).with_embedded_engine();
    let embedded = Embedded::new(&site.state_dir(), &site.run_dir());
    let runs = || matches!(embedded.find(), Found::Running { .. });
    for name in ["a", "b", "c"] {
        site.write(&format!("{name}.yaml"), &sleeper(name));
    }
    site.apply();
    let (b, c) = (site.pid("b"), site.pid("c"));
    site.remove("a.yaml");
    site.run(&["down", "a"]).exits(0);
    assert!(runs(), "some are left");
    site.remove("b.yaml");
    site.run(&["down", "b", "--stop-engine"]).exits(0);
    assert!(!runs() && !sweep::is_alive(b));
    assert!(sweep::is_alive(c), "containers outlive it");
    site.run(&["plan"]).exits(3).says(&["evenkeel apply"]);
    site.apply();
    assert_eq!(site.pid("c"), c);
    site.run(&["down"]).exits(0);
    assert!(!runs(), "nothing is left that it is there for");
    assert!(!sweep::is_alive(c));
}
