//! What the model has no part in: images in containerd's own terms, the log's program, and engines side by side.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image as ImageRecord,
};
use containerd_client::types::Descriptor;
use evenkeel::content::{self, Digest};
use evenkeel::host::linux::LinuxHost;
use evenkeel::host::{Ask, Host as _};
use evenkeel::image::Archives;
use evenkeel::observed::{Image, Task};
use evenkeel::runtime::containerd::{Containerd, Settings};
use evenkeel::runtime::{ErrorKind, LogTarget, Runtime as _, Update};
use evenkeel::workload::Signal;

use super::real::Real;
use super::{Harness as _, LEASE, SOON, create, create_task, kind, new_instance, observe, run};
use crate::program::eventually;
use crate::rig::busybox::{self, Packing};
use crate::rig::{Engine, NAMESPACE, Rig, sweep};

/// The image by that name in the archives of a directory, stored but for its record.
async fn store(client: &Containerd, directory: &Path, name: &str) -> (Image, content::NewImage) {
    let archives = Archives::new(vec![directory.to_owned()]);
    let mut archives = archives.with_patience(Duration::from_mins(1));
    let found = archives.find(&[name.to_owned()].into());
    assert_eq!(found.problems, []);
    let image = found.images[name].clone();
    let mut import = archives.import(&image).unwrap();
    let new = import.image().clone();
    while let Some(blob) = import.next().unwrap() {
        client.put_blob(LEASE, blob).await.unwrap();
    }
    (super::in_store(image), new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_as_docker_saves_it_becomes_a_container() {
    for engine in Engine::all() {
        let real = Real::start(&engine).await;
        let directory = real.rig.dir().join("archives");
        std::fs::create_dir(&directory).unwrap();
        for (name, packing) in
            [("plain", Packing::Plain), ("gzip", Packing::Gzip), ("zstd", Packing::Zstd)]
        {
            let archive = busybox::saved(&format!("{name}:1"), packing);
            std::fs::write(directory.join(format!("{name}.tar")), archive).unwrap();
            real.client.lease(LEASE).await.unwrap();
            let full = format!("docker.io/library/{name}:1");
            let (image, new) = store(&real.client, &directory, &full).await;
            real.client.put_image(LEASE, &new).await.unwrap();
            // Again, as after a crash just before the end.
            store(&real.client, &directory, &full).await;
            real.client.put_image(LEASE, &new).await.unwrap();
            real.client.remove_lease(LEASE).await.unwrap();
            real.collect().await;
            // The one from the rig's own archive has the same layers; without it, only this image keeps them.
            let request =
                DeleteImageRequest { name: busybox::IMAGE.to_owned(), sync: true, target: None };
            drop(ImagesClient::new(real.rig.channel()).delete(Rig::request(request)).await);
            let snapshots =
                real.rig.ctr(&["snapshots", "--snapshotter", &Rig::snapshotter(), "list"]);
            assert!(
                snapshots.contains(&image.config.diff_ids[0]),
                "it has to be unpacked again: {snapshots}"
            );
            let found = real.client.observe(&[full.clone()].into()).await.unwrap().images;
            assert_eq!(found, [(full, image.clone())].into());

            let mut instance = new_instance(&real, name);
            instance.image = image;
            create(&real, &instance).await;
            create_task(&real, &instance.id).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_was_never_unpacked_is_unpacked_when_it_is_needed() {
    for engine in Engine::all() {
        let rig = Rig::start_on(&engine).await;
        let client = rig.client();
        client.lease(LEASE).await.unwrap();
        let (image, new) = store(&client, &rig.state_dir().join("images"), busybox::IMAGE).await;
        // Killed between the record and its unpacking.
        let target = Descriptor {
            media_type: new.media_type.clone(),
            digest: new.digest.clone(),
            size: i64::try_from(new.size).unwrap(),
            ..Descriptor::default()
        };
        let record =
            ImageRecord { name: new.name.clone(), target: Some(target), ..ImageRecord::default() };
        let request = CreateImageRequest { image: Some(record), source_date_epoch: None };
        ImagesClient::new(rig.channel()).create(Rig::request(request)).await.unwrap();
        // Or while unpacking.
        let request = PrepareSnapshotRequest {
            snapshotter: Rig::snapshotter(),
            key: format!("evenkeel-unpack-{}", image.config.diff_ids[0]),
            ..PrepareSnapshotRequest::default()
        };
        SnapshotsClient::new(rig.channel()).prepare(Rig::request(request)).await.unwrap();

        let found = client.observe(&[new.name.clone()].into()).await.unwrap();
        assert_eq!(found.images, [(new.name.clone(), image.clone())].into());
        let real = Real { rig, client, image };
        run(&real, "web").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_whose_content_is_gone_is_not_found_although_its_name_is() {
    for engine in Engine::all() {
        let rig = Rig::start_on(&engine).await;
        let target = Descriptor {
            media_type: content::MANIFEST.to_owned(),
            digest: Digest::of(b"gone").to_string(),
            size: 4,
            ..Descriptor::default()
        };
        let name = "docker.io/library/gone:latest".to_owned();
        let record =
            ImageRecord { name: name.clone(), target: Some(target), ..ImageRecord::default() };
        let request = CreateImageRequest { image: Some(record), source_date_epoch: None };
        ImagesClient::new(rig.channel()).create(Rig::request(request)).await.unwrap();
        assert!(rig.client().observe(&[name].into()).await.unwrap().images.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_outlives_the_name_of_its_image() {
    for engine in Engine::all() {
        let real = Real::start(&engine).await;
        let instance = new_instance(&real, "web");
        create(&real, &instance).await;
        let request =
            DeleteImageRequest { name: busybox::IMAGE.to_owned(), sync: true, target: None };
        ImagesClient::new(real.rig.channel()).delete(Rig::request(request)).await.unwrap();
        assert!(
            real.client
                .observe(&[busybox::IMAGE.to_owned()].into())
                .await
                .unwrap()
                .images
                .is_empty()
        );
        create_task(&real, &instance.id).await;
        real.client.start_task(&instance.id).await.unwrap();
        assert_eq!(observe(&real).await.containers[0].image, instance.image);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_program_gets_one_argument_and_the_output() {
    for engine in Engine::all() {
        let real = Real::start(&engine).await;
        let program = real.rig.dir().join("log program");
        let seen = real.rig.dir().join("seen");
        // Descriptor 5 says that it is ready.
        let script = format!(
            "#!/bin/sh\nfor it; do echo \"[$it]\"; done >'{seen}'\nexec 5>&-\ncat <&3 >>'{seen}'\n",
            seen = seen.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let client =
            Containerd::new(Settings { log_program: program, ..real.rig.settings() }).unwrap();
        let instance = new_instance(&real, "web");
        create(&real, &instance).await;
        let mut spec = real.spec(&instance.id);
        spec.process_mut()
            .as_mut()
            .unwrap()
            .set_args(Some(["echo", "hello"].map(str::to_owned).into()));
        let update = Update { spec: Some(Box::new(spec)), ..Update::default() };
        client.update(&instance.id, &update).await.unwrap();
        let log = LogTarget::Files {
            directory: PathBuf::from("/var/a b&c=d:%"),
            max_size: 10,
            max_files: 2,
        };
        client.create_task(&instance.id, &log).await.unwrap();
        client.start_task(&instance.id).await.unwrap();
        client.wait(&instance.id, SOON).await.unwrap();
        client.delete_task(&instance.id).await.unwrap();
        let expected = "[log-pipe]\n[/var/a b&c=d:%:10:2]\nhello\n";
        let complete = async {
            while std::fs::read_to_string(&seen).unwrap() != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(SOON, complete).await.is_err() {
            assert_eq!(std::fs::read_to_string(&seen).unwrap(), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_containerds_with_the_same_names_leave_each_other_alone() {
    for engine in Engine::all() {
        let one = Real::start(&engine).await;
        let other = Real::start(&engine).await;
        let (instance, pid) = run(&one, "web").await;
        let (same, other_pid) = run(&other, "web").await;
        assert_eq!(instance.id, same.id);
        one.client.kill(&instance.id, Signal::KILL, true).await.unwrap();
        one.client.wait(&instance.id, SOON).await.unwrap();
        one.client.delete_task(&instance.id).await.unwrap();
        one.client.remove(&instance.id).await.unwrap();
        one.rig.assert_clean();
        assert!(!sweep::is_alive(pid));
        drop(one);
        assert!(sweep::is_alive(other_pid));
        assert_eq!(observe(&other).await.containers[0].task, Task::Running { pid: other_pid });
        assert!(!other.rig.remains().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rig_takes_everything_with_it() {
    for engine in Engine::all() {
        let mut real = Real::start(&engine).await;
        let (_, running) = run(&real, "running").await;
        let (hung, hung_pid) = run(&real, "hung").await;
        let (shimless, shimless_pid) = run(&real, "shimless").await;
        let created = new_instance(&real, "created");
        create(&real, &created).await;
        let created = create_task(&real, &created.id).await;
        let (lost, lost_pid) = run(&real, "lost").await;
        let mut sockets = sweep::shim_sockets(real.rig.dir());
        assert_eq!(sockets.len(), 5);
        // containerd cleans up after this one, and leaves its socket.
        sweep::signal(real.rig.shim(lost.id.as_str()), rustix::process::Signal::KILL);
        let is_gone = || (sweep::shim_sockets_of_bundles(real.rig.dir()).len() == 4).then_some(());
        eventually("containerd has cleaned up", is_gone);
        real.rig.stop_containerd();
        real.hang(&hung.id, true).await;
        sweep::signal(real.rig.shim(shimless.id.as_str()), rustix::process::Signal::KILL);
        let directory = real.rig.dir().to_owned();
        drop(real);
        assert!(!directory.exists());
        assert_eq!(sweep::mounts_below(&directory), Vec::<PathBuf>::new());
        for pid in [running, hung_pid, shimless_pid, created, lost_pid] {
            assert!(!sweep::is_alive(pid));
        }
        sockets.retain(|it| it.exists());
        assert_eq!(sockets, BTreeSet::new());
    }
}

#[tokio::test]
async fn a_containerd_that_is_not_there_is_named() {
    let address = PathBuf::from("/run/evenkeel-no-such/containerd.sock");
    let settings = Settings {
        address: address.clone(),
        namespace: NAMESPACE.to_owned(),
        snapshotter: "overlayfs".to_owned(),
        runc_root: PathBuf::from("/run/evenkeel-no-such/runc"),
        log_program: PathBuf::from("/bin/false"),
    };
    let client = Containerd::new(settings).unwrap();
    let error = client.observe(&BTreeSet::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    let cause = error.cause.unwrap().to_string();
    assert!(
        cause.contains("/run/evenkeel-no-such/containerd.sock") && cause.contains("No such file"),
        "{cause}"
    );
    assert_eq!(kind(client.peer_pid().await), ErrorKind::Unreachable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_behind_the_socket_is_known() {
    let rig = Rig::start().await;
    assert_eq!(rig.client().peer_pid().await.unwrap(), Some(rig.containerd_pid()));
    assert!(rig.ctr(&["version"]).contains("Server"));
    assert!(rig.evenkeel(&["--version"]).status.success());
    rig.assert_clean();
}

/// containerd refuses to send more than 16 MiB at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_is_listed_than_fits_into_one_answer() {
    for engine in Engine::all() {
        let real = Real::start(&engine).await;
        let mut ids = BTreeSet::new();
        real.client.lease(LEASE).await.unwrap();
        for n in 0..180 {
            let mut instance = new_instance(&real, &format!("w{n}"));
            let mut workload = serde_json::to_value(&instance.workload).unwrap();
            workload["spec"]["args"] = serde_json::json!(["x".repeat(100 << 10)]);
            instance.workload = serde_json::from_value(workload).unwrap();
            real.client.create(LEASE, &instance).await.unwrap();
            ids.insert(instance.id);
        }
        let found = observe(&real).await.containers;
        let found: BTreeSet<_> = found.into_iter().map(|it| it.id).collect();
        assert_eq!(found, ids, "on containerd {engine}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_content_and_the_layers_of_a_removed_image_are_gone_when_that_returns() {
    for engine in Engine::all() {
        let real = Real::start(&engine).await;
        let image = real.image.clone();
        let content = || real.rig.ctr(&["content", "list", "--quiet"]);
        let snapshots = || {
            let all = real.rig.ctr(&["snapshots", "--snapshotter", &Rig::snapshotter(), "list"]);
            all.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(content().contains(&image.digest) && !snapshots().is_empty());
        // What is stopped can be started again, although nothing is left of what it was made from but its layers.
        let instance = new_instance(&real, "web");
        create(&real, &instance).await;
        real.client.remove_image(&image.name, &image.digest).await.unwrap();
        assert_eq!(content(), "");
        assert_eq!(snapshots().len(), 1 + image.config.diff_ids.len());
        create_task(&real, &instance.id).await;
        real.client.start_task(&instance.id).await.unwrap();
        real.client.kill(&instance.id, evenkeel::workload::Signal::KILL, true).await.unwrap();
        real.client.wait(&instance.id, super::SOON).await.unwrap();
        real.client.delete_task(&instance.id).await.unwrap();
        real.client.remove(&instance.id).await.unwrap();
        real.client.collect_garbage().await.unwrap();
        assert_eq!(snapshots(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_unpack_one_layer_do_not_get_in_each_others_way() {
    for engine in Engine::all() {
        let rig = Rig::start_on(&engine).await;
        let clients = [rig.client(), rig.client(), rig.client()];
        let directory = rig.state_dir().join("images");
        clients[0].lease(LEASE).await.unwrap();
        let (image, new) = store(&clients[0], &directory, busybox::IMAGE).await;
        let put = |it: usize| clients[it].put_image(LEASE, &new);
        let (a, b, c) = tokio::join!(put(0), put(1), put(2));
        for it in [a, b, c] {
            it.unwrap();
        }
        let found = clients[0].observe(&[image.name.clone()].into()).await.unwrap();
        assert_eq!(found.images.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_full_the_disk_of_the_images_is_is_known() {
    for engine in Engine::all() {
        let rig = Rig::start_on(&engine).await;
        // Some make the directory for the first of it.
        rig.load_image().await;
        let process = rig.client().process().await.unwrap();
        let content = process.content.clone().unwrap();
        assert!(content.starts_with(rig.dir()) && content.is_dir(), "{}", content.display());
        let host = LinuxHost::new(&rig.run_dir(), "/evenkeel-test").unwrap();
        let ask = Ask { runtime: Some(process), ..Ask::default() };
        let space = host.observe(&ask).unwrap().image_space.unwrap();
        // As `df` says it.
        let output = std::process::Command::new("df").arg("--output=pcent").arg(&content).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let said: u64 = text.lines().nth(1).unwrap().trim().trim_end_matches('%').parse().unwrap();
        // It rounds up, and others write meanwhile.
        assert!(space.fill().abs_diff(said) <= 2, "{space:?}: {said} %");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_cannot_be_unpacked_leaves_what_has_its_name() {
    for engine in Engine::all() {
        let real = Real::start(&engine).await;
        let before = real.image.clone();
        let directory = real.rig.dir().join("archives");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("wrong.tar"), busybox::contradictory()).unwrap();
        real.client.lease(LEASE).await.unwrap();
        let (wrong, new) = store(&real.client, &directory, &before.name).await;
        assert_ne!(wrong.digest, before.digest);
        assert_eq!(kind(real.client.put_image(LEASE, &new).await), ErrorKind::Conflict);
        real.client.remove_lease(LEASE).await.unwrap();
        real.collect().await;
        let found = real.client.observe(&[before.name.clone()].into()).await.unwrap().images;
        assert_eq!(found, [(before.name.clone(), before)].into(), "on containerd {engine}");
    }
}

/// A layer that is an archive as it is, and what it becomes on top of nothing.
fn lowest(layer: &[u8]) -> content::NewLayer {
    let size = u64::try_from(layer.len()).unwrap();
    let blob = content::Descriptor::new(content::LAYER, Digest::of(layer), size);
    let diff_ids = [blob.digest.to_string()];
    content::stack(&[blob], &diff_ids).remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_was_there_stays_for_who_builds_on_it() {
    for engine in Engine::all() {
        let real = Real::start(&engine).await;
        let image = real.image.clone();
        let layer = lowest(&busybox::layer());
        let is_there = || {
            real.rig
                .ctr(&["snapshots", "--snapshotter", &Rig::snapshotter(), "list"])
                .contains(&layer.chain_id)
        };
        real.client.lease(LEASE).await.unwrap();
        real.client.unpack_layer(LEASE, &layer).await.unwrap();
        // Nobody else needs it any more.
        real.client.remove_image(&image.name, &image.digest).await.unwrap();
        assert!(is_there(), "on containerd {engine}");
        real.client.remove_lease(LEASE).await.unwrap();
        real.collect().await;
        assert!(!is_there(), "on containerd {engine}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unpacked_already_waits_for_no_layer_of_another() {
    let mut large = busybox::Tar::default();
    large.file("zeros", 0o644, &vec![0; 64 << 20]);
    let large = large.finish();
    let layer = lowest(&large);
    for engine in Engine::all() {
        let real = Real::start(&engine).await;
        real.client.lease(LEASE).await.unwrap();
        let blob = content::Blob {
            digest: layer.blob.digest.to_string(),
            size: layer.blob.size,
            labels: [].into(),
            content: &mut &*large,
        };
        real.client.put_blob(LEASE, blob).await.unwrap();
        let (_, new) =
            store(&real.client, &real.rig.state_dir().join("images"), busybox::IMAGE).await;
        let is_unpacked = std::cell::Cell::new(false);
        let unpack = async {
            real.client.unpack_layer(LEASE, &layer).await.unwrap();
            is_unpacked.set(true);
        };
        let record = async {
            real.client.put_image(LEASE, &new).await.unwrap();
            assert!(!is_unpacked.get(), "on containerd {engine}");
        };
        tokio::join!(unpack, record);
    }
}
