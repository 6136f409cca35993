//! Commands that only look, on a real containerd.

use std::process::Command;

use rustix::process::Signal;

use crate::program::{Site, manifest, sleeper};
use crate::rig::{Rig, sweep};

/// `state name` of each line of `doctor`.
fn checks(out: &str) -> Vec<String> {
    let words = |line: &str| {
        line.split("  ")
            .map(str::trim)
            .filter(|it| !it.is_empty())
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    out.lines().map(words).collect()
}

#[tokio::test]
async fn doctor_finds_a_box_in_order_and_says_what_is_not() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    let done = site.run(&["doctor"]).exits(0).says(&[
        rig.engine().version().split(['~', '+']).next().unwrap(),
        "nobody has used the namespace",
        "system: its address was given",
        "containerd sees ours",
    ]);
    assert!(!checks(&done.out).iter().any(|it| it.starts_with("problem")), "{}", done.out);
    assert!(checks(&done.out).contains(&"ok runc".to_owned()), "{}", done.out);
    assert!(
        !site.state_dir().join("engine.json").exists() && !site.state_dir().join("owner").exists()
    );

    site.write("web.yaml", &sleeper("web"));
    let controller = site.controller();
    let pid = site.until_running("web");
    let pid_of_controller = format!("pid {}", controller.pid());
    site.run(&["doctor"]).exits(0).says(&["is ours", "recorded", &pid_of_controller]);
    let other = site.clone().with("EVENKEEL_STATE_DIR", rig.dir().join("other"));
    let done = other.run(&["doctor"]).exits(3);
    assert!(checks(&done.out).contains(&"problem owner".to_owned()), "{}", done.out);

    // In a mount namespace of its own, as a unit with PrivateTmp has.
    let inside = site.command(&["doctor"]);
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(inside.get_program()).args(inside.get_args());
    command.envs(inside.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = command.current_dir(rig.dir()).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(checks(&out).contains(&"warning mounts".to_owned()), "{out}");
    assert!(out.contains("another mount namespace"), "{out}");
    assert_eq!(output.status.code(), Some(0));

    // Hung, then gone.
    sweep::signal(rig.containerd_pid(), Signal::STOP);
    let done = site.run(&["doctor"]).exits(3);
    sweep::signal(rig.containerd_pid(), Signal::CONT);
    assert!(checks(&done.out).contains(&"problem containerd".to_owned()), "{}", done.out);
    rig.kill_containerd();
    let done = site.run(&["doctor"]).exits(3);
    assert!(checks(&done.out).contains(&"problem containerd".to_owned()), "{}", done.out);
    assert!(checks(&done.out).contains(&"ok controller".to_owned()), "{}", done.out);
    rig.start_containerd().await;
    assert_eq!(site.until_running("web"), pid);
    controller.terminate();
    site.run(&["down"]).exits(0);
}

#[tokio::test]
async fn explain_says_what_runs_what_comes_next_and_what_it_waits_for() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n"));
    site.write("joiner.yaml", &(sleeper("joiner") + "  ipcMode: container:donor\n"));
    site.write(
        "typo.yaml",
        &manifest("typo", "command: [slep]\nrestart: {backoff: {initial: 60s}}"),
    );
    site.run(&["explain", "joiner"]).exits(4).says(&[
        "joiner: Starting, not as the manifest says",
        "/joiner.yaml:1\n",
        "runs         nothing",
        "next         prepare joiner-",
        "(new manifest)",
        "after        start donor-",
    ]);
    site.apply_exits(4);
    let pid = format!("pid {} since", site.pid("joiner"));
    site.run(&["explain", "joiner"]).exits(0).says(&[
        "joiner: Running\n",
        &pid,
        "next         nothing to do",
    ]);
    let done = site.run(&["explain", "typo"]).exits(4).says(&[
        "typo: BackingOff",
        "failed start ",
        "[command-not-found, code 127]",
        "way out      correct `command`",
    ]);
    // When it is due by now, there is a step instead.
    assert!(
        done.out.contains("next look ") || done.out.contains("next         start"),
        "{}",
        done.out
    );
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n  hostname: other\n"));
    site.run(&["explain", "donor"]).exits(4).says(&[
        "hostname: ",
        "next         prepare donor-",
        "then         ",
    ]);
    rig.kill_containerd();
    site.run(&["explain", "joiner"])
        .exits(3)
        .says(&["containerd does not answer", "joiner: Running"]);
    rig.start_containerd().await;
    site.run(&["down"]).exits(0);
}
