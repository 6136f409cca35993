//! Images by hand and what becomes of them, on a real containerd.

use std::path::{Path, PathBuf};

use evenkeel::engine::{Embedded, Found};

use crate::program::{Site, eventually, manifest, sleeper};
use crate::rig::busybox::{self, Packing};
use crate::rig::{Engine, Rig};

const OLD: &str = "docker.io/library/old:1";

/// An archive where no program looks for it.
fn archive(site: &Site) -> PathBuf {
    let path = site.dir().join("old.archive");
    std::fs::write(&path, busybox::saved("old:1", Packing::Gzip)).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What is in the store of the rig's namespace: blobs, snapshots and leases.
fn everything(rig: &Rig) -> Vec<String> {
    let snapshotter = Rig::snapshotter();
    let lists: [&[&str]; 3] = [
        &["content", "list", "--quiet"],
        &["snapshots", "--snapshotter", &snapshotter, "list"],
        &["leases", "list", "--quiet"],
    ];
    let text: String = lists.into_iter().map(|it| rig.ctr(it)).collect();
    text.lines().filter(|it| !it.starts_with("KEY")).map(str::to_owned).collect()
}

fn names(site: &Site) -> Vec<String> {
    let done = site.run(&["image", "list", "--output", "json"]).exits(0);
    let report: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let images = report["images"].as_array().unwrap();
    images.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_down_and_a_prune_of_all_nothing_is_left_in_the_store() {
    for engine in Engine::all() {
        let rig = Rig::start_on(&engine).await;
        let site = Site::of(&rig);
        site.run(&["image", "list"]).exits(0).says(&["no images"]);
        site.write("web.yaml", &sleeper("web"));
        site.apply();
        site.run(&["image", "import", text(&archive(&site))]).exits(0).says(&[OLD]);
        assert_eq!(names(&site), [busybox::IMAGE, OLD]);
        let list = site.run(&["image", "list"]).exits(0);
        list.says(&["NAME", "  web", "unused"]);
        // What is needed stays, and what somebody wants to keep.
        site.run(&["image", "pin", "old:1"]).exits(0).says(&["pinned"]);
        site.run(&["image", "list"]).exits(0).says(&["(pinned)"]);
        site.run(&["image", "prune"]).exits(0).says(&["nothing to remove"]);
        site.run(&["image", "prune", "--all"]).exits(0).says(&["nothing to remove"]);
        site.run(&["image", "unpin", "old:1"]).exits(0);
        let would = ["would remove docker.io/library/old:1", "1 image"];
        site.run(&["image", "prune", "--dry-run"]).exits(0).says(&would);
        assert_eq!(names(&site).len(), 2);
        site.run(&["image", "prune"]).exits(0).says(&["removed docker.io/library/old:1"]);
        assert_eq!(names(&site), [busybox::IMAGE]);

        // What only a manifest names and an archive has goes if all is to go.
        site.run(&["down"]).exits(0);
        assert!(everything(&rig).len() > 2, "down leaves images alone");
        site.run(&["image", "prune"]).exits(0).says(&["nothing to remove"]);
        site.run(&["image", "prune", "--all"]).exits(0).says(&["1 image"]);
        assert_eq!(everything(&rig), [""; 0]);
        site.run(&["image", "list"]).exits(0).says(&["no images"]);
        // And comes again when it is needed.
        site.apply();
        site.run(&["down"]).exits(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_controller_an_image_comes_is_marked_and_goes_and_what_is_wanted_stays() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let controller = site.controller();
    site.write("web.yaml", &sleeper("web"));
    let pid = site.until_running("web");
    site.run(&["image", "import", text(&archive(&site))]).exits(0);
    controller.hang_up();
    // Who lists it next sees since when it is unused.
    eventually("it is marked", || {
        let done = site.run(&["image", "list"]).exits(0);
        done.out.contains("unused for ").then_some(())
    });
    site.run(&["image", "prune"]).exits(0).says(&["removed docker.io/library/old:1"]);
    assert_eq!(names(&site), [busybox::IMAGE]);
    // Of what runs nothing goes, whatever is asked for.
    site.run(&["image", "prune", "--all"]).exits(0).says(&["nothing to remove"]);
    assert_eq!(site.pid("web"), pid);
    let events = site.run(&["events"]).exits(0);
    events.says(&["removed", "docker.io/library/old:1: asked for by hand"]);

    // With no time to wait it goes by itself.
    site.configure("removeAfter: 200ms\nimages: {grace: 0s}\n");
    site.run(&["image", "import", text(&archive(&site))]).exits(0);
    controller.hang_up();
    eventually("it is gone", || (names(&site).len() == 1).then_some(()));
    assert_eq!(site.pid("web"), pid);
    controller.terminate();
    site.run(&["down"]).exits(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_pruned_while_a_manifest_may_hide_what_it_wants() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &sleeper("web"));
    site.run(&["image", "import", text(&archive(&site))]).exits(0);
    site.write("new.yaml", &manifest("new", "frobnicate: 1"));
    let prune = site.run(&["image", "prune"]).exits(4);
    prune.says(&["nothing is removed", "`new`"]);
    assert_eq!(names(&site), [OLD]);
    site.write("new.yaml", "");
    site.run(&["image", "prune"]).exits(4);
    site.remove("new.yaml");
    site.run(&["image", "prune"]).exits(0).says(&["1 image"]);
    assert_eq!(names(&site), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_is_imported_whole_or_in_part_and_what_is_none_is_said_to_be_that() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let good = archive(&site);
    let bad = site.dir().join("bad.tar");
    std::fs::write(&bad, b"no archive").unwrap();
    let done = site.run(&["image", "import", text(&bad), text(&good)]).exits(4);
    done.says(&["bad.tar", OLD]);
    assert_eq!(names(&site), [OLD]);
    let done = site.run(&["image", "import", "--name", "other:1", text(&good)]).exits(4);
    done.says(&["docker.io/library/other:1", "they have: docker.io/library/old:1"]);
    site.run(&["image", "import", "--name", "old:1", text(&good)]).exits(0).says(&[OLD]);
    assert_eq!(names(&site), [OLD]);
    // It is as good as one that a workload has brought.
    site.write("a.yaml", &sleeper("a").replace("busybox", "old:1"));
    site.apply();
    site.run(&["down"]).exits(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_somebody_else_is_listed_and_stays() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &sleeper("web"));
    site.run(&["image", "import", text(&archive(&site))]).exits(0);
    // Its labels are copied with it.
    rig.ctr(&["images", "tag", OLD, "docker.io/library/theirs:1"]);
    site.run(&["image", "list"]).exits(0).says(&["somebody else's"]);
    site.run(&["image", "pin", "theirs:1"]).exits(2).says(&["somebody else's"]);
    site.run(&["image", "prune", "--all"]).exits(0).says(&["1 image"]);
    assert_eq!(names(&site), ["docker.io/library/theirs:1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_engine_is_started_to_be_pruned_and_ends_with_that() {
    let rig = Rig::start().await;
    let site = Site::of(&rig).with_embedded_engine();
    let embedded = Embedded::new(&site.state_dir(), &site.run_dir());
    site.write("web.yaml", &sleeper("web"));
    site.run(&["image", "list"]).exits(0).says(&["no images"]);
    site.run(&["image", "prune"]).exits(0).says(&["nothing to remove"]);
    assert_eq!(embedded.find(), Found::Never);
    site.apply();
    site.run(&["down"]).exits(0);
    assert_eq!(embedded.find(), Found::Stopped);
    site.run(&["image", "list"]).exits(3);
    site.run(&["image", "prune", "--all"]).exits(0).says(&["1 image"]);
    assert_eq!(embedded.find(), Found::Stopped);
    site.run(&["image", "prune", "--all"]).exits(0).says(&["nothing to remove"]);
}
