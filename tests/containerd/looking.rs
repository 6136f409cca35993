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

/// What `doctor` says of one thing, after `before` in a mount namespace of its own.
fn doctor_after(site: &Site, before: &str, what: &str) -> String {
    let inside = site.command(&["doctor"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{before} && exec \"$@\"")).arg("sh");
    command.arg(inside.get_program()).args(inside.get_args());
    command.envs(inside.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = command.current_dir(site.dir()).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let line = out.lines().find(|it| it[9..].starts_with(what));
    line.unwrap_or_else(|| panic!("no {what} in: {out}")).to_owned()
}

#[tokio::test]
async fn doctor_says_of_the_box_what_is_wrong_with_it() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let (run, state) =
        (site.run_dir().display().to_string(), site.state_dir().display().to_string());
    let says = |before: &str, what: &str, words: &[&str]| {
        let line = doctor_after(&site, before, what);
        assert!(words.iter().all(|it| line.contains(it)), "after {before}: {line}");
    };
    let tmpfs = |at: &str, options: &str| format!("mount -t tmpfs -o {options} tmpfs {at}");
    let fill = |at: &str| format!("! cat /dev/zero > {at}/full 2>/dev/null");

    says("true", "cgroup", &["ok ", "writable"]);
    says(
        "umount -l -R /sys/fs/cgroup",
        "cgroup",
        &["problem ", "no cgroups are mounted", "; mount"],
    );
    let sealed = "for it in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,bind,ro $it; done 2>/dev/null; true";
    says(sealed, "cgroup", &["problem ", "mounted read-only", "; mount"]);

    let own = tmpfs(&run, "size=8m,mode=700");
    says(&own, "run directory", &["ok ", "tmpfs"]);
    let small = tmpfs(&run, "size=1m,mode=700");
    says(&small, "run directory", &["warning ", "MiB", "; make room"]);
    says(&format!("{small} && {}", fill(&run)), "run directory", &["problem ", "full disk"]);
    let few = tmpfs(&run, "size=8m,mode=700,nr_inodes=5");
    says(&few, "run directory", &["warning ", "inodes left"]);
    says(
        &format!("{own} && mount -o remount,ro {run}"),
        "run directory",
        &["problem ", "read-only"],
    );
    says(
        &tmpfs(&run, "size=8m,mode=777"),
        "run directory",
        &["warning ", "others may write", "chmod"],
    );
    let disk = format!("mount --bind /usr {run}");
    says(&disk, "run directory", &["warning ", "kept after it", "; say `--run-dir`"]);
    says(&tmpfs(&state, "size=1m,mode=700"), "state directory", &["warning ", "; make room"]);
    let full = format!("{} && {}", tmpfs(&state, "size=1m,mode=700"), fill(&state));
    says(&full, "state directory", &["problem ", "full disk", "; make room"]);

    // Who sees what: the message has both halves.
    says("true", "mounts", &["warning ", "another mount namespace", "private", "PrivateMounts"]);
    let shared = format!("{own} && mount --make-shared {run}");
    says(&shared, "mounts", &["warning ", "shared:"]);
}

#[tokio::test]
async fn doctor_says_of_containerd_and_runc_what_is_wrong_with_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    // A runc that cannot run, where containerd does not look for it: it has another one.
    let bin = rig.dir().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("runc"), "#!/bin/sh\nexit 3\n").unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bin.join("runc"), mode.clone()).unwrap();
    let done = site.clone().with("PATH", &bin).run(&["doctor"]).exits(0);
    assert!(checks(&done.out).contains(&"ok runc".to_owned()), "{}", done.out);
    // One that is needed: that of an engine of our own, which also needs containerd.
    let own = Site::beside(&rig, "own").with_embedded_engine();
    let broken = own.clone().with("PATH", &bin);
    broken.run(&["doctor"]).exits(3).says(&["`runc --version` ended with", "3"]);
    std::fs::remove_file(bin.join("runc")).unwrap();
    let done = broken.run(&["doctor"]).exits(3).says(&["not on the PATH; install it"]);
    for it in ["problem runc", "problem containerd", "ok engine"] {
        assert!(checks(&done.out).contains(&it.to_owned()), "{}", done.out);
    }
    own.run(&["doctor"]).exits(0).says(&["embedded: ", "not started yet"]);

    // A snapshotter that was switched off, before and after something is in it.
    let configuration = rig.dir().join("config.toml");
    let usual = std::fs::read_to_string(&configuration).unwrap();
    let without = usual.replace(
        "disabled_plugins = [",
        &format!("disabled_plugins = [\"io.containerd.snapshotter.v1.{}\", ", Rig::snapshotter()),
    );
    assert_ne!(usual, without);
    rig.stop_containerd();
    std::fs::write(&configuration, &without).unwrap();
    rig.start_containerd().await;
    let done = site.run(&["doctor"]).exits(0).says(&["the first start chooses `native`"]);
    assert!(checks(&done.out).contains(&"warning snapshotter".to_owned()), "{}", done.out);
    rig.stop_containerd();
    std::fs::write(&configuration, &usual).unwrap();
    rig.start_containerd().await;
    site.write("web.yaml", &sleeper("web"));
    site.apply();
    let done = site.run(&["doctor"]).exits(0);
    assert!(checks(&done.out).contains(&"ok snapshotter".to_owned()), "{}", done.out);
    rig.stop_containerd();
    std::fs::write(&configuration, &without).unwrap();
    rig.start_containerd().await;
    let done = site.run(&["doctor"]).exits(3).says(&["which our snapshots are in", "switch it on"]);
    assert!(checks(&done.out).contains(&"problem snapshotter".to_owned()), "{}", done.out);
    rig.stop_containerd();
    std::fs::write(&configuration, &usual).unwrap();
    rig.start_containerd().await;
    site.run(&["down"]).exits(0);

    // Which engine, and why.
    site.clone().with_socket(&rig.dir().join("nobody.sock")).run(&["doctor"]).exits(3);
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
