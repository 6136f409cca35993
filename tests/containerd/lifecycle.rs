//! Controllers, engines and programs that come and go, and what that does to containers.

use std::fs;

use containerd_client::services::v1::DeleteContainerRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use evenkeel::engine::{Embedded, Found};
use evenkeel::plan::Phase;
use evenkeel::status::Item;
use rustix::process::Signal;

use crate::others;
use crate::program::{Site, eventually, manifest, sleeper, until_dead, write};
use crate::rig::{Engine, NAMESPACE, Rig, busybox, sweep};
use crate::safety::assert_untouched;

#[tokio::test]
async fn containers_outlive_their_controller_and_a_second_one_is_refused() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let names: Vec<String> = (0..10).map(|n| format!("w{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let mode =
            ["", "  ipcMode: shareable\n", "  ipcMode: container:w1\n"].get(n).unwrap_or(&"");
        site.write(&format!("{name}.yaml"), &(sleeper(name) + mode));
    }
    let controller = site.controller();
    for it in &names {
        site.until_running(it);
    }
    let all = site.pids();
    assert_eq!(all.len(), 10);

    // A second one, and everything that would work against the first.
    let pid = format!("pid {}", controller.pid());
    site.run(&["run"]).exits(3).says(&[&pid]);
    site.run(&["down"]).exits(3).says(&[&pid]);
    site.write("late.yaml", &sleeper("late"));
    site.run(&["apply"]).exits(0).says(&["a controller runs", "late"]);
    let late = site.pid("late");
    site.remove("late.yaml");
    site.run(&["apply"]).exits(0);
    assert!(!sweep::is_alive(late), "apply came back before its removal");

    // One of its own files is a part of what it does; another one it would never get to.
    let one = site.dir().join("one.yaml");
    write(&one, &sleeper("one"));
    let (own, one) = (site.manifests_dir().join("w0.yaml"), one.to_str().unwrap());
    site.run(&["apply", own.to_str().unwrap()]).exits(0).says(&["w0"]);
    site.run(&["apply", one]).exits(3).says(&[&pid, one]);
    site.run(&["apply", "-"]).exits(3).says(&[&pid]);

    // A configuration that cannot be read changes nothing.
    site.configure("removeAfter: [\n");
    controller.hang_up();
    controller.until_logged("configuration is not valid; nothing changed", 1);
    // Another default concerns new instances only.
    site.configure("removeAfter: 200ms\ndefaultIpcMode: shareable\n");
    controller.hang_up();
    controller.until_logged("configuration was read again", 1);
    site.write("late.yaml", &sleeper("late"));
    site.until_running("late");
    let mode = |name: &str| site.item(name).unwrap().ipc.unwrap().mode;
    assert_eq!(mode("late"), "shareable");
    assert_eq!(mode("w0"), "private");
    assert_untouched(&site, &all);
    site.plan_is_empty();
    site.remove("late.yaml");
    site.until_gone("late");

    controller.kill();
    assert_untouched(&site, &all);
    site.plan_is_empty();
    let controller = site.controller();
    for it in &names {
        site.until_running(it);
    }
    assert_untouched(&site, &all);
    site.plan_is_empty();
    assert_eq!(controller.terminate(), Some(0));
    assert_untouched(&site, &all);
    assert_eq!(fs::read_dir(rig.run_dir().join("ipc")).unwrap().count(), 1);
    site.apply();
    assert_untouched(&site, &all);

    // Commands that come at once take turns.
    std::thread::scope(|scope| {
        let beside: Vec<_> = (0..3).map(|_| scope.spawn(|| site.run(&["apply", one]))).collect();
        site.apply();
        for one in beside {
            drop(one.join().unwrap().exits(0));
        }
    });
    assert_untouched(&site, &all);
    assert!(sweep::is_alive(site.pid("one")));

    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_containerd_namespace_has_one_owner() {
    let rig = Rig::start().await;
    let first = Site::of(&rig);
    let second = Site::beside(&rig, "second").with_namespace(NAMESPACE);
    first.write("a.yaml", &sleeper("a"));
    second.write("b.yaml", &sleeper("b"));
    let controller = first.controller();
    first.until_running("a");
    let all = first.pids();
    let (first_state, pid) = (first.state_dir(), format!("pid {}", controller.pid()));
    let named = [first_state.to_str().unwrap(), &pid];
    second.run(&["apply"]).exits(3).says(&named);
    second.run(&["run"]).exits(3).says(&named);
    // Taking everything down is no way around it, nor is force while the other one works.
    second.run(&["down"]).exits(3).says(&named);
    second.run(&["apply", "--take-over"]).exits(3).says(&named);
    // The same installation with another run directory would be a second controller too.
    let third = Site::beside(&rig, "third")
        .with_namespace(NAMESPACE)
        .with("EVENKEEL_STATE_DIR", first.state_dir());
    third.run(&["apply", "--take-over"]).exits(3).says(&[&pid]);
    assert_untouched(&first, &all);

    assert_eq!(controller.terminate(), Some(0));
    second.run(&["apply"]).exits(3).says(&["--take-over", first_state.to_str().unwrap()]);
    second.run(&["down"]).exits(3).says(&["--take-over"]);
    third.run(&["apply"]).exits(3).says(&["--take-over"]);
    second.run(&["apply", "--take-over"]).exits(0).says(&["unclaimed"]);
    assert_untouched(&first, &all);
    first.run(&["apply"]).exits(3).says(&["--take-over", second.state_dir().to_str().unwrap()]);
    second.run(&["down", "b"]).exits(0);
    // An owner that cannot come back needs no word.
    fs::remove_dir_all(second.state_dir()).unwrap();
    first.apply();
    assert_untouched(&first, &all);
    first.run(&["down"]).exits(0);
    rig.assert_clean();
}

/// Code and reason of the last end.
fn end(item: &Item) -> Option<(u32, &str)> {
    item.last_exit.as_ref().map(|it| (it.code, it.reason.as_str()))
}

#[tokio::test]
async fn jobs_that_have_ended_are_not_run_again_whoever_restarts() {
    for engine in Engine::all() {
        let mut rig = Rig::start_on(&engine).await;
        let site = Site::of(&rig);
        let out = rig.dir().join("out");
        fs::create_dir(&out).unwrap();
        let job = |name: &str, code: u32| {
            let script = format!("command: [sh, -c, \"echo ran >> /out/{name}; exit {code}\"]\n");
            let mounts =
                format!("mounts: [{{type: bind, source: {}, target: /out}}]\n", out.display());
            manifest(name, &(script + &mounts + "restart: {policy: never}"))
        };
        site.write("good.yaml", &job("good", 0));
        site.write("bad.yaml", &job("bad", 3));
        site.write("steady.yaml", &sleeper("steady"));
        let ended = |site: &Site| {
            for (name, phase, code) in [("good", Phase::Completed, 0), ("bad", Phase::Failed, 3)] {
                site.until(name, |item| {
                    item.filter(|it| it.phase == phase && end(it) == Some((code, "exited")))
                        .map(drop)
                });
                let runs = fs::read_to_string(out.join(name)).unwrap();
                assert_eq!(runs, "ran\n", "{name} on containerd {engine}");
            }
            // Recorded is not over: what is left of their tasks is still being removed.
            eventually("nothing to do", || (site.run(&["plan"]).code == Some(0)).then_some(()));
        };
        let controller = site.controller();
        let steady = site.until_running("steady");
        ended(&site);

        controller.kill();
        let controller = site.controller();
        ended(&site);

        // containerd crashes and comes back; what was dropped meanwhile runs then.
        rig.kill_containerd();
        site.until_status("an unreachable containerd", |status| {
            (status.runtime.state == "unreachable").then_some(())
        });
        site.run(&["status"]).exits(3).says(&["unreachable", "steady"]);
        site.write("late.yaml", &sleeper("late"));
        assert!(sweep::is_alive(steady));
        rig.start_containerd().await;
        site.until_running("late");
        ended(&site);
        assert_eq!(site.pid("steady"), steady, "on containerd {engine}");

        // Both, and containerd in order: newer ones forget what has ended then, too.
        controller.kill();
        rig.stop_containerd();
        rig.start_containerd().await;
        site.plan_is_empty();
        let controller = site.controller();
        ended(&site);
        assert_eq!(site.until_running("steady"), steady, "on containerd {engine}");

        // A shim takes the exit of its container with it.
        let once = manifest(
            "once",
            "command: [sleep, \"36000\"]\nrestart: {policy: never}\nstop: {signal: SIGKILL}",
        );
        site.write("once.yaml", &once);
        let (once, steady) = (site.until_running("once"), site.until_running("steady"));
        for name in ["once", "steady"] {
            sweep::signal(rig.shim(&site.item(name).unwrap().instance.unwrap().id), Signal::KILL);
        }
        let lost = site.until("once", |item| {
            item.filter(|it| it.phase == Phase::Failed && it.last_exit.is_some()).cloned()
        });
        assert_eq!(lost.reason, "exit-unknown");
        assert_eq!(end(&lost), Some((255, "exit-unknown")));
        site.until("steady", |item| item?.instance.as_ref()?.pid.filter(|it| *it != steady));
        until_dead(once);
        until_dead(steady);
        assert_eq!(controller.terminate(), Some(0));
        site.apply_exits(4);
        assert_eq!(site.item("once").unwrap().phase, Phase::Failed);
        ended(&site);
        site.run(&["down"]).exits(0);
        rig.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d16_an_exit_is_still_told_when_the_next_start_fails_and_is_not_its_code() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    // Its program takes itself away: what it wrote is there for the next start, and the program is not.
    let script = "command: [sh, -c, \"rm /bin/busybox; exit 3\"]\n";
    let backoff = "restart: {backoff: {initial: 10ms, max: 10ms}}";
    site.write("once.yaml", &manifest("once", &(script.to_owned() + backoff)));
    let controller = site.controller();
    let (exit, failure) = site.until("once", |item| {
        let item = item?;
        Some((item.last_exit.clone()?, item.start_failure.clone()?))
    });
    assert_eq!((exit.code, exit.reason.as_str()), (3, "exited"));
    assert_eq!((failure.code, failure.reason.as_str()), (127, "command-not-found"));
    assert_eq!(controller.terminate(), Some(0));
    let item = site.item("once").unwrap();
    assert_eq!((item.last_exit.unwrap().code, item.start_failure.unwrap().code), (3, 127));
    site.run(&["down"]).exits(0);
}

#[tokio::test]
async fn programs_that_fail_or_do_not_want_to_end() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let out = rig.dir().join("out");
    fs::create_dir(&out).unwrap();
    let loops = "while true; do sleep 0.1; done";
    let traps = |name: &str, signal: &str, code: u32, stop: &str| {
        let script = format!(
            "command: [sh, -c, \"trap 'exit {code}' {signal}; echo up > /out/{name}; {loops}\"]\n"
        );
        let mounts = format!("mounts: [{{type: bind, source: {}, target: /out}}]\n", out.display());
        manifest(name, &(script + &mounts + &format!("stop: {{{stop}}}")))
    };
    site.write("missing.yaml", &manifest("missing", "command: [/no/such/program]"));
    site.write("data.yaml", &manifest("data", "command: [/etc/passwd]"));
    site.write("crash.yaml", &manifest("crash", "command: [sh, -c, exit 5]"));
    site.write("term.yaml", &traps("term", "TERM", 7, "timeout: 1m"));
    site.write("usr1.yaml", &traps("usr1", "USR1", 8, "signal: SIGUSR1"));
    site.write("deaf.yaml", &manifest("deaf", "command: [sleep, \"36000\"]\nstop: {timeout: 1s}"));
    let controller = site.controller();

    let failure = |name: &str| {
        site.until(name, |item| {
            let item = item.filter(|it| it.phase == Phase::BackingOff)?;
            item.next_retry_at.as_ref()?;
            let failure = item.start_failure.as_ref()?;
            assert_eq!(item.reason, "start-failed");
            Some((failure.code, failure.reason.clone()))
        })
    };
    assert_eq!(failure("missing"), (127, "command-not-found".to_owned()));
    assert_eq!(failure("data"), (126, "command-not-executable".to_owned()));
    // It is never given up, and waits longer each time.
    site.until("crash", |item| {
        let item = item.filter(|it| it.phase == Phase::BackingOff && it.next_retry_at.is_some())?;
        let restarts = item.instance.as_ref()?.restarts;
        (restarts >= 3 && end(item) == Some((5, "exited"))).then_some(())
    });
    let said = ["BackingOff", "exited with code 5", "next try"];
    eventually("the same for people", || {
        let done = site.run(&["status", "crash"]);
        said.iter().all(|it| done.out.contains(it)).then(|| drop(done.exits(4)))
    });
    // An edit heals at once, whatever the delay.
    for name in ["missing", "crash"] {
        site.write(&format!("{name}.yaml"), &sleeper(name));
        site.until_running(name);
        assert_eq!(site.item(name).unwrap().start_failure, None);
    }
    site.remove("data.yaml");
    site.until_gone("data");

    // The program's own end, within its time and by its signal; and SIGKILL after it.
    for name in ["term", "usr1", "deaf"] {
        site.until_running(name);
    }
    for name in ["term", "usr1"] {
        eventually("a program that is up", || out.join(name).exists().then_some(()));
    }
    let stopped = |text: String| text + "\n  state: stopped\n";
    site.write("term.yaml", &stopped(traps("term", "TERM", 7, "timeout: 1m")));
    site.write("usr1.yaml", &stopped(traps("usr1", "USR1", 8, "signal: SIGUSR1")));
    let deaf = site.pid("deaf");
    site.write(
        "deaf.yaml",
        &stopped(manifest("deaf", "command: [sleep, \"36000\"]\nstop: {timeout: 1s}")),
    );
    for (name, code) in [("term", 7), ("usr1", 8), ("deaf", 137)] {
        site.until(name, |item| {
            let item = item.filter(|it| it.phase == Phase::Stopped && it.up_to_date)?;
            let found = item
                .last_exit
                .as_ref()
                .filter(|_| item.instance.as_ref().unwrap().pid.is_none())?;
            assert_eq!((found.code, found.reason.as_str()), (code, "stopped"), "{name}");
            Some(())
        });
    }
    assert!(!sweep::is_alive(deaf));
    // Started again, and removed: it cannot refuse that either.
    site.write("deaf.yaml", &manifest("deaf", "command: [sleep, \"36000\"]\nstop: {timeout: 1s}"));
    let deaf = site.until_running("deaf");
    site.remove("deaf.yaml");
    site.until_gone("deaf");
    assert!(!sweep::is_alive(deaf));

    // A task whose container object somebody has deleted is put back and removed; the workload starts anew.
    assert_eq!(controller.terminate(), Some(0));
    for by in ["apply", "down"] {
        let (id, old) = {
            let item = site.item("missing").unwrap().instance.unwrap();
            (item.id, item.pid.unwrap())
        };
        let request = Rig::request(DeleteContainerRequest { id });
        ContainersClient::new(rig.channel()).delete(request).await.unwrap();
        assert!(sweep::is_alive(old));
        site.write("term.yaml", &sleeper("term"));
        site.run(&[by]).exits(0);
        assert!(!sweep::is_alive(old), "after {by}");
    }
    rig.assert_clean();
}

#[tokio::test]
async fn an_image_that_cannot_be_unpacked_is_not_kept_and_a_mended_archive_is_used() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    fs::write(rig.archive(), busybox::contradictory()).unwrap();
    site.write("web.yaml", &sleeper("web"));
    for _ in 0..2 {
        site.run(&["apply", "--timeout", "5s"])
            .exits(4)
            .says(&["is not what the image's configuration says"]);
    }
    assert_eq!(rig.ctr(&["images", "list", "--quiet"]), "");
    fs::write(rig.archive(), busybox::archive()).unwrap();
    site.apply();
    site.pid("web");
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

/// A hardened box gives root's shells a mask under which nobody else may enter what they make.
#[tokio::test]
async fn the_mask_of_a_shell_is_not_that_of_containers_and_their_engine() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut rig = Rig::start().await;
    // For the embedded one alone.
    rig.stop_containerd();
    let shell = rig.dir().join("masked");
    let program = env!("CARGO_BIN_EXE_evenkeel");
    fs::write(&shell, format!("#!/bin/sh\numask 077\nexec {program} \"$@\"\n")).unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    let site = Site::of(&rig).with_embedded_engine().with_program(&shell);
    let made = rig.dir().join("made/source");
    let mount = format!("{{type: bind, source: {}, target: /srv, create: true}}", made.display());
    let spec = format!(
        "command: [sh, -c, umask; ls /srv; exec sleep 36000]\nuser: {{uid: 1000, gid: 1000}}\n\
         mounts: [{mount}]\nstop: {{signal: SIGKILL}}"
    );
    site.write("web.yaml", &manifest("web", &spec));
    site.apply();
    site.pid("web");
    eventually("its mask", || (site.run(&["logs", "web"]).exits(0).out == "0022\n").then_some(()));
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o755);
    site.run(&["down"]).exits(0);
}

#[tokio::test]
async fn the_embedded_engine_is_started_by_those_who_may_and_kept() {
    let mut rig = Rig::start().await;
    // For the embedded one alone.
    rig.stop_containerd();
    let site = Site::of(&rig).with_embedded_engine();
    let embedded = Embedded::new(&site.state_dir(), &site.run_dir());
    let engine = || match embedded.find() {
        Found::Running { pid: Some(pid) } => Some(pid),
        Found::Running { pid: None } | Found::Never | Found::Stopped => None,
    };
    let kill = || {
        let pid = engine().unwrap();
        sweep::signal(pid, Signal::KILL);
        // Its socket is closed a moment after it stopped to be a process that one sees.
        eventually("the end of the engine", || (engine() != Some(pid)).then_some(()));
    };
    site.write(
        "web.yaml",
        &manifest(
            "web",
            "command: [sh, -c, echo hello; exec sleep 36000]\nstop: {signal: SIGKILL}",
        ),
    );
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n"));

    // Looking starts nothing, and nothing observed is an answer.
    for _ in 0..2 {
        site.run(&["plan"]).exits(5).says(&["new manifest"]);
        site.run(&["status"]).exits(4).says(&["web"]);
        site.run(&["logs", "web"]).exits(2);
        site.run(&["down", "--dry-run"]).exits(0);
        assert_eq!(embedded.find(), Found::Never);
    }
    assert!(!site.state_dir().join("engine.json").exists());

    site.apply();
    let first = engine().unwrap();
    let web = site.pid("web");
    site.plan_is_empty();
    let hello = || {
        eventually("hello", || {
            (site.run(&["logs", "web"]).exits(0).out == "hello\n").then_some(())
        });
    };
    hello();
    site.apply();
    assert_eq!(engine(), Some(first), "it is found again");

    // What it answered once stands.
    let auto = site.clone().with("EVENKEEL_ENGINE", "auto");
    auto.plan_is_empty();
    for args in [["plan"], ["apply"], ["run"]] {
        auto.clone()
            .with_socket(&rig.socket())
            .run(&args)
            .exits(3)
            .says(&["embedded engine", "down"]);
        site.clone()
            .with("EVENKEEL_ENGINE", "system")
            .run(&args)
            .exits(3)
            .says(&["embedded engine"]);
    }

    // Dead: a root directory without an engine is unknown, not empty.
    kill();
    assert_eq!(embedded.find(), Found::Stopped);
    assert!(sweep::is_alive(web));
    site.run(&["plan"]).exits(3).says(&["evenkeel run", "evenkeel apply"]);
    site.run(&["status"]).exits(3).says(&["evenkeel apply", "web"]);
    hello();
    assert_eq!(embedded.find(), Found::Stopped);
    site.apply();
    assert_eq!(site.pid("web"), web);

    // A controller starts it, and again when it dies.
    kill();
    let controller = site.controller();
    assert_eq!(site.until_running("web"), web);
    kill();
    eventually("another engine", engine);
    site.write("late.yaml", &sleeper("late"));
    site.until_running("late");
    assert_eq!(site.until_running("web"), web);
    assert_eq!(controller.terminate(), Some(0));
    let last = engine().unwrap();

    // `down` of one leaves it, `down` of everything ends it.
    site.run(&["down", "late"]).exits(0);
    assert_eq!(engine(), Some(last));
    site.remove("late.yaml");
    site.run(&["down"]).exits(0);
    until_dead(last);
    assert!(!sweep::is_alive(web));
    let nothing = |when: &str| {
        assert_eq!(
            sweep::processes_of(rig.dir()).iter().map(|it| &it.arguments).collect::<Vec<_>>(),
            Vec::<&Vec<String>>::new(),
            "{when}"
        );
        assert_eq!(sweep::mounts_below(rig.dir()), Vec::<std::path::PathBuf>::new(), "{when}");
        let left: Vec<_> =
            fs::read_dir(site.run_dir()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"], "{when}");
    };
    nothing("after down");
    site.run(&["down"]).exits(0);
    nothing("after down of nothing");

    // Also when it has died before.
    site.apply();
    kill();
    site.run(&["down"]).exits(0);
    nothing("after down without an engine");
}

#[tokio::test]
async fn what_is_removed_on_exit_leaves_nothing_but_how_it_ended() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let job = |name: &str, command: &str| {
        let rest = "restart: {policy: never}\nremoveOnExit: true\nipcMode: shareable";
        manifest(name, &format!("command: {command}\n{rest}"))
    };
    site.write("good.yaml", &job("good", "[sh, -c, \"echo done; exit 0\"]"));
    site.write("bad.yaml", &job("bad", "[sh, -c, exit 6]"));
    site.write("missing.yaml", &job("missing", "[/no/such/program]"));
    site.apply_exits(4);
    for _ in 0..2 {
        site.plan_is_empty();
        let item = |name: &str| site.item(name).unwrap();
        assert_eq!(
            (item("good").phase, end(&item("good"))),
            (Phase::Completed, Some((0, "exited")))
        );
        assert_eq!((item("bad").phase, end(&item("bad"))), (Phase::Failed, Some((6, "exited"))));
        assert_eq!((item("missing").phase, end(&item("missing"))), (Phase::Failed, None));
        let failure = item("missing").start_failure.unwrap();
        assert_eq!((failure.code, failure.reason.as_str()), (127, "command-not-found"));
        assert!(failure.advice.contains("command"), "{failure:?}");
        site.run(&["status", "missing"])
            .exits(4)
            .says(&["127 (command-not-found)", &failure.advice]);
        // No file system, no mounts, no log.
        assert_eq!(fs::read_dir(site.run_dir().join("ipc")).map_or(0, Iterator::count), 0);
        assert_eq!(fs::read_dir(site.state_dir().join("logs")).map_or(0, Iterator::count), 0);
        let snapshots = rig.ctr(&["snapshots", "ls"]);
        assert!(
            !["good-", "bad-", "missing-"].iter().any(|it| snapshots.contains(it)),
            "{snapshots}"
        );
        site.apply_exits(4);
    }
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

/// How containerd says a workload's process is.
fn task_state(rig: &Rig, site: &Site, name: &str) -> String {
    let id = others::id(site, name);
    let list = rig.ctr(&["tasks", "list"]);
    let line = list.lines().find(|it| it.starts_with(&id)).unwrap_or_else(|| panic!("{list}"));
    line.split_whitespace().last().unwrap().to_owned()
}

#[tokio::test]
async fn what_somebody_has_paused_is_told_and_resumed_and_before_its_stop_signal_too() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let out = rig.dir().join("out");
    fs::create_dir(&out).unwrap();
    let text = |more: &str| {
        let script = "trap 'exit 7' TERM; echo up > /out/web; while true; do sleep 0.1; done";
        let mounts = format!("mounts: [{{type: bind, source: {}, target: /out}}]", out.display());
        let spec = format!("command: [sh, -c, \"{script}\"]\n{mounts}\nstop: {{timeout: 1m}}");
        manifest("web", &(spec + more))
    };
    site.write("web.yaml", &text(""));
    site.apply();
    eventually("a program that is up", || out.join("web").exists().then_some(()));
    let web = site.pid("web");
    others::pause(&site, "web");
    assert_eq!(task_state(&rig, &site, "web"), "PAUSED");
    site.run(&["plan"]).exits(5).says(&["resume", "paused, and wanted running"]);
    site.run(&["explain", "web"]).says(&["resume"]);

    // By the controller when it comes, and when it is there.
    let controller = site.controller();
    for _ in 0..2 {
        eventually("a resumed program", || {
            (task_state(&rig, &site, "web") == "RUNNING").then_some(())
        });
        assert_eq!(site.until_running("web"), web);
        others::pause(&site, "web");
    }
    eventually("a resumed program", || (task_state(&rig, &site, "web") == "RUNNING").then_some(()));
    assert_eq!(site.item("web").unwrap().instance.unwrap().restarts, 0);

    // It gets its signal and its time, though it was paused when its end was asked for.
    assert_eq!(controller.terminate(), Some(0));
    others::pause(&site, "web");
    site.write("web.yaml", &text("\nstate: stopped"));
    let controller = site.controller();
    let item = site.until("web", |item| {
        item.filter(|it| it.phase == Phase::Stopped && it.last_exit.is_some()).cloned()
    });
    assert_eq!(end(&item), Some((7, "stopped")));
    until_dead(web);
    assert_eq!(controller.terminate(), Some(0));
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_reload_says_what_needs_a_restart_and_an_emptied_configuration_changes_nothing() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let path = site.dir().join("config.yaml");
    let problem = |site: &Site| {
        let config = path.display().to_string();
        let problems = site.status().problems.into_iter().filter(|it| it.file == config);
        problems.map(|it| (it.code, it.severity, it.message)).collect::<Vec<_>>()
    };
    let emptied =
        |message: &str| vec![("empty-file".to_owned(), "warning".to_owned(), message.to_owned())];
    site.configure("defaultIpcMode: shareable\n");
    let controller = site.controller();
    let again = |times| {
        controller.hang_up();
        controller.until_logged("configuration was read again", times);
    };
    // What it cannot follow is told by its name, each of them, and what it can is followed.
    site.configure("defaultIpcMode: shareable\nengine: system\n");
    again(1);
    controller.until_logged("a changed setting needs a restart of the controller", 1);
    assert!(controller.log().contains("setting=\"engine\""), "{}", controller.log());
    site.configure("defaultIpcMode: shareable\n");
    again(2);
    assert_eq!(controller.log().matches("needs a restart").count(), 1, "it is as it was started");
    // Truncated, and whoever was about to write it is gone.
    site.configure("");
    controller.hang_up();
    controller.until_logged("configuration is empty; nothing changed", 1);
    site.until_status("that it is empty", |it| (!it.problems.is_empty()).then_some(()));
    let kept = emptied("the configuration is empty; what it said before holds");
    assert_eq!(problem(&site), kept);
    // Any command says so, and works.
    site.run(&["status"]).exits(0).says(&["warning[empty-file]"]);
    site.write("web.yaml", &sleeper("web"));
    site.until_running("web");
    assert_eq!(site.item("web").unwrap().ipc.unwrap().mode, "shareable");
    // A comment is no accident.
    site.configure("# every default\n");
    again(3);
    site.until_status("that nothing is wrong", |it| it.problems.is_empty().then_some(()));
    site.configure("");
    assert_eq!(controller.terminate(), Some(0));
    let controller = site.controller();
    site.until_status("that it is empty", |it| (!it.problems.is_empty()).then_some(()));
    assert_eq!(problem(&site), emptied("the configuration is empty: every default holds"));
    controller.until_logged("the configuration is empty: every default holds", 1);
    site.configure("engine: system\n");
    controller.hang_up();
    site.until_status("that nothing is wrong", |it| it.problems.is_empty().then_some(()));
    assert_eq!(controller.terminate(), Some(0));
    site.run(&["down"]).exits(0);
}
