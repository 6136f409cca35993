//! What may be removed and what may not, as a user meets it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use evenkeel::plan::Phase;
use evenkeel::status::{SourceStatus, Status};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::program::{Site, eventually, manifest, pause, sleeper, write};
use crate::rig::{Rig, sweep};

/// All of these run on as they did.
#[track_caller]
pub(crate) fn assert_untouched(site: &Site, before: &[(String, u32)]) {
    let now = site.pids();
    for one in before {
        assert!(now.contains(one), "{one:?} is not among {now:?}");
        assert!(sweep::is_alive(one.1), "{one:?} is dead");
    }
}

fn source<'a>(status: &'a Status, path: &Path) -> &'a SourceStatus {
    status.sources.iter().find(|it| Path::new(&it.path) == path).unwrap()
}

/// Waits until nothing of a source is removed, for this reason and because of this file, and all of these are held.
#[track_caller]
fn until_held(site: &Site, directory: &Path, reason: &str, file: &Path, names: &[&str]) {
    site.until_status(reason, |status| {
        let source = source(status, directory);
        let is_held =
            source.state == "held" && source.reason == reason && Path::new(&source.file) == file;
        let held = |name: &&str| {
            status
                .items
                .iter()
                .any(|it| it.name == *name && it.phase == Phase::Held && it.reason == reason)
        };
        (is_held && names.iter().all(held)).then_some(())
    });
}

#[track_caller]
fn until_ready(site: &Site, directory: &Path, names: &[&str]) {
    site.until_status("a source that can be believed again", |status| {
        (source(status, directory).state == "ready").then_some(())
    });
    for name in names {
        site.until_running(name);
    }
}

#[tokio::test]
async fn only_a_file_that_is_gone_for_sure_removes_its_container() {
    let rig = Rig::start().await;
    let (plain, mounted) = (rig.manifests_dir(), rig.dir().join("mounted"));
    fs::create_dir(&mounted).unwrap();
    let mount =
        || rustix::mount::mount("tmpfs", &mounted, "tmpfs", MountFlags::empty(), None).unwrap();
    mount();
    let site = Site::of(&rig).with_manifests(&[&plain, &mounted]);
    let fill = |names: &[&str]| {
        for it in names {
            site.write(&format!("{it}.yaml"), &sleeper(it));
        }
    };
    fill(&["a", "b", "c", "d"]);
    for name in ["e", "f"] {
        write(&mounted.join(format!("{name}.yaml")), &sleeper(name));
    }
    // Other tools' files hold nothing.
    site.write(
        "kustomization.yaml",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n",
    );
    site.write("renovate.json", "{\"extends\": [\"config:base\"]}\n");
    let _controller = site.controller();
    for name in ["a", "b", "c", "d", "e", "f"] {
        site.until_running(name);
    }
    let all = site.pids();

    site.remove("d.yaml");
    site.until_gone("d");
    let rest: Vec<_> = all.iter().filter(|it| it.0 != "d").cloned().collect();
    assert_untouched(&site, &rest);
    assert!(!sweep::is_alive(all.iter().find(|it| it.0 == "d").unwrap().1));

    // Emptied: all at once, or by a copy that has begun.
    for entry in fs::read_dir(&plain).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    until_held(&site, &plain, "source-emptied", &plain, &["a", "b", "c"]);
    assert_untouched(&site, &rest);
    site.run(&["status"]).exits(4).says(&["source-emptied", plain.to_str().unwrap()]);
    fill(&["a", "b", "c"]);
    until_ready(&site, &plain, &["a", "b", "c"]);

    // Truncated: it may have named any of them, so another one's absence does not count either.
    let truncated = plain.join("a.yaml");
    drop(fs::File::create(&truncated).unwrap());
    site.remove("b.yaml");
    until_held(&site, &plain, "empty-file", &truncated, &["a", "b"]);
    assert_untouched(&site, &rest);
    site.run(&["status"]).exits(1).says(&["empty-file", truncated.to_str().unwrap()]);
    fill(&["a", "b"]);
    until_ready(&site, &plain, &["a", "b", "c"]);

    // Renamed away.
    let away = rig.dir().join("away");
    fs::rename(&plain, &away).unwrap();
    until_held(&site, &plain, "source-missing", &plain, &["a", "b", "c"]);
    assert_untouched(&site, &rest);
    site.run(&["status"]).exits(1).says(&["source-missing", plain.to_str().unwrap()]);
    fs::rename(&away, &plain).unwrap();
    until_ready(&site, &plain, &["a", "b", "c"]);

    // Unmounted: what is below is empty, and on another device. The other source goes on as ever.
    rustix::mount::unmount(&mounted, UnmountFlags::empty()).unwrap();
    until_held(&site, &mounted, "source-replaced", &mounted, &["e", "f"]);
    assert_untouched(&site, &rest);
    site.remove("c.yaml");
    site.until_gone("c");
    let rest: Vec<_> = rest.iter().filter(|it| it.0 != "c").cloned().collect();
    assert_untouched(&site, &rest);
    assert_eq!(source(&site.status(), &plain).state, "ready");
}

#[tokio::test]
async fn a_typo_costs_no_container() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let good = sleeper("web");
    site.write("web.yaml", &good);
    site.write("other.yaml", &sleeper("other"));
    let _controller = site.controller();
    let (web, other) = (site.until_running("web"), site.until_running("other"));
    let typos = [
        ("evenkeel/v1", "evenkel/v1", "foreign-document"),
        ("evenkeel/v1", "evenkeel/v11", "manifest-invalid"),
        ("apiVersion:", "apiversion:", "manifest-invalid"),
        ("kind: Container", "kind: Contaner", "manifest-invalid"),
        ("kind:", "knd:", "manifest-invalid"),
        ("metadata:", "metdata:", "missing-field"),
        ("  name:", "  nme:", "missing-field"),
        ("name: web", "name: Web_", "name-invalid"),
    ];
    for (right, wrong, reason) in typos {
        let typo = good.replacen(right, wrong, 1);
        assert_ne!(typo, good);
        for file in ["web.yaml", "moved.yaml"] {
            site.write(file, &typo);
            if file != "web.yaml" {
                site.remove("web.yaml");
            }
            let held = site.until("web", |item| {
                item.filter(|it| it.phase == Phase::Held && it.reason != "removal-pending").cloned()
            });
            assert_eq!(held.reason, reason, "{wrong} in {file}: {}", held.message);
            assert_eq!(held.instance.unwrap().pid, Some(web), "{wrong} in {file}");
            // Another workload's own edits and absence are not in question here, but its process is.
            assert_eq!(site.pid("other"), other, "{wrong} in {file}");
            site.write("web.yaml", &good);
            if file != "web.yaml" {
                site.remove(file);
            }
            assert_eq!(site.until_running("web"), web, "{wrong} in {file}");
        }
    }
    site.plan_is_empty();
}

#[tokio::test]
async fn what_is_held_is_released_by_its_token_only() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let names = ["a", "b", "c", "d"];
    let fill = || {
        for it in names {
            site.write(&format!("{it}.yaml"), &sleeper(it));
        }
    };
    let thin = || {
        for it in ["a", "b", "c"] {
            site.remove(&format!("{it}.yaml"));
        }
    };
    fill();
    let controller = site.controller();
    for it in &names {
        site.until_running(it);
    }
    let all = site.pids();

    thin();
    let token = site.until_status("a hold of three removals", |status| {
        let hold = status.holds.first().filter(|it| it.removals.len() == 3)?;
        assert_eq!(hold.reason, "prune-limit");
        Some(hold.token.clone())
    });
    assert_untouched(&site, &all);
    site.run(&["approve"]).exits(0).says(&[
        &token,
        "prune-limit",
        "remove a",
        "remove b",
        "remove c",
    ]);
    site.run(&["status"]).exits(4).says(&[&format!("evenkeel approve {token}")]);
    site.run(&["approve", "00000000"]).exits(2).says(&["evenkeel approve"]);
    assert_untouched(&site, &all);
    site.run(&["approve", &token]).exits(0).says(&["removal of a", "removal of b", "removal of c"]);
    for it in ["a", "b", "c"] {
        site.until_gone(it);
    }
    assert_untouched(&site, &all[3..]);
    let approvals = || fs::read_dir(site.run_dir().join("approvals")).unwrap().count();
    eventually("a release that is used up", || (approvals() == 0).then_some(()));

    // Without a controller it counts for the next apply.
    fill();
    for it in &names {
        site.until_running(it);
    }
    assert_eq!(controller.terminate(), Some(0));
    let all = site.pids();
    thin();
    site.run(&["apply"]).exits(4).says(&["prune-limit"]);
    assert_untouched(&site, &all);
    let token = site.status().holds[0].token.clone();
    site.run(&["approve", &token]).exits(0).says(&["no controller runs"]);
    assert_untouched(&site, &all);
    site.apply();
    assert_eq!(site.pids(), &all[3..]);

    // A release that was overtaken by the file's return is none for its next absence.
    fill();
    site.apply();
    thin();
    let token = site.status().holds[0].token.clone();
    site.run(&["approve", &token]).exits(0);
    fill();
    site.apply();
    let all = site.pids();
    thin();
    site.run(&["apply"]).exits(4).says(&["prune-limit"]);
    assert_untouched(&site, &all);

    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_source_that_is_never_quiet_keeps_no_command_waiting() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    for name in ["a", "b"] {
        site.write(&format!("{name}.yaml"), &sleeper(name));
    }
    site.apply();
    let all = site.pids();
    site.remove("a.yaml");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                site.write("b.yaml", &format!("# {n}\n{}", sleeper("b")));
                pause();
            }
        });
        // Not removed, because it may be on its way; and not waited for until the command's own limit either.
        let done = site.run(&["apply"]);
        is_over.store(true, Ordering::SeqCst);
        done.exits(4).says(&["Held"]);
    });
    assert_eq!(site.pids(), all);
    site.apply();
    assert_eq!(site.pids(), all[1..]);
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_single_file_removes_nothing_and_saving_again_changes_nothing() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("a.yaml", &sleeper("a"));
    site.write("b.yaml", &(sleeper("b") + "  ipcMode: shareable\n"));
    site.write("c.yaml", &(sleeper("c") + "  ipcMode: container:b\n"));
    site.write("d.yaml", &manifest("d", "command: [\"true\"]\nrestart: {policy: never}"));
    site.write("e.yaml", &(sleeper("e") + "  state: stopped\n"));
    site.run(&["plan"]).exits(5).says(&["new manifest"]);
    site.apply();
    site.plan_is_empty();
    site.plan_is_empty();
    let all = site.pids();
    assert_eq!(all.len(), 3);
    assert_eq!(site.item("d").unwrap().phase, Phase::Completed);
    assert_eq!(site.item("e").unwrap().phase, Phase::Stopped);

    // One file beside five others, from elsewhere.
    let one = site.dir().join("one.yaml");
    write(&one, &sleeper("one"));
    let one = one.to_str().unwrap();
    site.run(&["apply", one]).exits(0);
    site.run(&["plan", one]).exits(0);
    assert_untouched(&site, &all);
    let all = site.pids();
    assert_eq!(all.len(), 4);
    fs::remove_file(one).unwrap();
    site.run(&["apply", one]).exits(1).says(&["source-missing"]);
    site.run(&["apply"]).exits(0).says(&["unclaimed", &format!("evenkeel down --source {one}")]);
    assert_untouched(&site, &all);
    site.run(&["down", "--source", one]).exits(0);
    assert_untouched(&site, &all[..3]);
    assert_eq!(site.pids().len(), 3);

    // Through a pipe.
    let mut piped = site.command(&["apply", "-"]);
    write(Path::new(one), &sleeper("piped"));
    piped.stdin(fs::File::open(one).unwrap());
    assert!(piped.output().unwrap().status.success());
    assert_untouched(&site, &all[..3]);
    assert_eq!(site.pids().len(), 4);
    site.run(&["down", "piped"]).exits(0);

    // The same meaning in other words.
    let before = "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: saved\n  labels: {team: x}\n\
                  spec:\n  image: busybox\n  command: [sleep, \"36000\"]\n  shmSize: 32Mi\n  \
                  stop: {timeout: 0s}\n  env: [{name: A, value: b}]\n";
    let after = "# Said again.\nspec:\n  stop:\n    timeout: 0s # at once\n  env:\n    - value: b\n      name: A\n  \
                 shmSize: 33554432\n  command:\n    - sleep\n    - '36000'\n  image: busybox\n\
                 metadata:\n  labels:\n    team: x\n  name: saved\nkind: Container\napiVersion: evenkeel/v1\n";
    site.write("saved.yaml", before);
    site.apply();
    let all = site.pids();
    site.write("saved.yaml", after);
    site.plan_is_empty();
    site.remove("saved.yaml");
    // Another spelling of the image is noted, and no more.
    site.write("elsewhere/x.yml", &after.replace("busybox", "docker.io/library/busybox:latest"));
    let plan = site.run(&["plan"]).exits(5);
    assert_eq!(
        plan.out.lines().filter(|it| !it.starts_with("update ")).collect::<Vec<_>>(),
        ["1 step to do"]
    );
    site.apply();
    assert_eq!(site.pids(), all);
    site.plan_is_empty();
    site.write("elsewhere/x.yml", &before.replace("32Mi", "64Mi"));
    site.run(&["plan"]).exits(5).says(&["shmSize"]);

    site.run(&["down"]).exits(0);
    rig.assert_clean();
}
