//! Commands that only look, on a real containerd.

use std::process::Command;

use rustix::process::Signal;

use crate::program::{Site, sleeper};
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
        &rig.engine().version().split(['~', '+']).next().unwrap().to_owned(),
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
