//! The program pulls from real registries into real containerds, whatever goes wrong on the way.

use std::path::{Path, PathBuf};
use std::process::Command;

use evenkeel::status::Item;

use crate::exec::in_terminal;
use crate::program::{Site, eventually, manifest, until_dead};
use crate::rig::busybox::{self, Packing};
use crate::rig::proxy::{Asked, Fault, Proxy, Request};
use crate::rig::recipe::Recipe;
use crate::rig::registry::{Kind, PASSWORD, Pushed, Registry, USER};
use crate::rig::{Engine, Rig};

/// Why a workload waits whose image did not come.
const FAILED: &str = "image-pull-failed";

/// A workload of an image, that runs until it is killed.
fn workload(name: &str, image: &str) -> String {
    script(name, image, "")
}

/// One that first does something that has to go well.
fn script(name: &str, image: &str, first: &str) -> String {
    let command = format!("set -e; {first}\nexec sleep 36000");
    let command = serde_json::to_string(&command).unwrap();
    manifest(name, &format!("command: [sh, -c, {command}]\nstop: {{signal: SIGKILL}}"))
        .replace("image: busybox", &format!("image: {image}"))
}

/// An installation with an image whose name begins with that of a proxy in front of a registry.
struct Stage {
    registry: Registry,
    proxy: Proxy,
    site: Site,
    rig: Rig,
}

impl Stage {
    async fn set(engine: &Engine) -> Self {
        let registry = Registry::start(Kind::Plain);
        let proxy = Proxy::to(registry.address());
        let rig = Rig::start_on(engine).await;
        let site = Site::of(&rig);
        Self { registry, proxy, site, rig }
    }

    async fn new() -> Self {
        Self::set(&Engine::chosen()).await
    }

    /// Pushes it behind the proxy, and says what it is called there.
    fn push(&self, name: &str, recipe: &Recipe) -> (Pushed, String) {
        let pushed = self.registry.push(name, recipe);
        let image = self.proxy.name(&pushed.name);
        (pushed, image)
    }

    /// Waits until a workload waits for its image, and says why.
    #[track_caller]
    fn until_failed(&self, name: &str) -> String {
        let failed = |it: &Item| (it.reason == FAILED).then(|| it.message.clone());
        self.site.until(name, |item| failed(item?))
    }

    /// Every image that is there can be run, and nothing leases what there is of one.
    fn assert_complete(&self) {
        let address = self.proxy.address().to_string();
        let checked = self.rig.ctr(&["images", "check", "--snapshotter", &Rig::snapshotter()]);
        for line in checked.lines().filter(|it| it.contains(&address)) {
            assert!(line.trim_end().ends_with("true"), "{checked}");
        }
        assert_eq!(self.rig.ctr(&["leases", "list", "--quiet"]), "");
    }
}

/// The digest of the image that a workload's instance was made from.
fn digest(rig: &Rig, site: &Site, name: &str) -> String {
    let id = site.item(name).unwrap().instance.unwrap().id;
    let info: serde_json::Value =
        serde_json::from_str(&rig.ctr(&["containers", "info", &id])).unwrap();
    info["Labels"]["evenkeel/image-digest"].as_str().unwrap().to_owned()
}

fn of<'a>(requests: &'a [Request], part: &str) -> Vec<&'a Request> {
    requests.iter().filter(|it| it.method == "GET" && it.path.contains(part)).collect()
}

/// Where a part begins that was asked for.
fn start(request: &Request) -> Option<u64> {
    request.range.as_ref()?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
}

/// Lets an installation in: with Docker's file of credentials or a login of our own, and with a `hosts.toml`.
fn introduce(site: Site, registry: &Registry, kind: Kind) -> Site {
    let settings = site.dir().join("registries");
    let hosts = settings.join("hosts").join(registry.host());
    std::fs::create_dir_all(&hosts).unwrap();
    let file = |path: PathBuf, text: &str| {
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let host = registry.host();
    let mut config = format!(
        "removeAfter: 200ms\nregistries:\n  hostsDirs: [{}]\n",
        settings.join("hosts").display()
    );
    if matches!(kind, Kind::Tls | Kind::TlsBasic) {
        let authority = registry.authority();
        let text = format!("server = \"https://{host}\"\nca = \"{}\"\n", authority.display());
        file(hosts.join("hosts.toml"), &text);
    }
    if kind == Kind::TlsBasic {
        let password = file(settings.join("password"), PASSWORD);
        let login = format!("{{host: \"{host}\", username: {USER}, passwordFile: {password}}}");
        config.push_str(&["  logins: [", &login, "]\n"].concat());
    }
    site.configure(&config);
    if kind == Kind::Basic {
        let auth = base64(format!("{USER}:{PASSWORD}").as_bytes());
        let config = serde_json::json!({ "auths": { host: { "auth": auth } } });
        file(settings.join("config.json"), &config.to_string());
        return site.with("DOCKER_CONFIG", settings.as_path());
    }
    site
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let at = |n: usize| u32::from(piece.get(n).copied().unwrap_or(0));
        let all = at(0) << 16 | at(1) << 8 | at(2);
        for n in 0..4 {
            let digit = char::from(DIGITS[usize::try_from(all >> (18 - 6 * n) & 63).unwrap()]);
            text.push(if n <= piece.len() { digit } else { '=' });
        }
    }
    text
}

#[test]
fn base64_is_what_others_make_of_it() {
    for (bytes, text) in
        [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
    {
        assert_eq!(base64(bytes.as_bytes()), text);
    }
}

#[tokio::test]
async fn images_of_every_kind_are_pulled_into_every_containerd() {
    // Their lowest layers differ, so that no layer is unpacked for another kind.
    let recipe = |name: &str| Recipe::empty().with(&[("kind", name)]).with_busybox();
    let recipes = [
        ("gzip", recipe("gzip")),
        ("zstd", recipe("zstd").packed(Packing::Zstd)),
        ("plain", recipe("plain").packed(Packing::Plain)),
        ("docker", recipe("docker").docker()),
        ("index", recipe("index").among_others()),
        ("list", recipe("list").among_others().docker()),
    ];
    for engine in Engine::all() {
        println!("on containerd {engine}");
        let it = Stage::set(&engine).await;
        for (name, recipe) in &recipes {
            let layered = recipe
                .clone()
                .with(&[("data/old", "old"), ("data/stays", "1"), ("gone/a", "a"), ("gone/b", "b")])
                .with(&[("data/.wh.old", ""), ("gone/.wh..wh..opq", ""), ("gone/new", "new")]);
            let (_, image) = it.push(&format!("kinds/{name}:1"), &layered);
            let whiteouts = "test \"$(ls /data)\" = stays; test \"$(ls /gone)\" = new";
            it.site.write(&format!("{name}.yaml"), &script(name, &image, whiteouts));
        }
        it.site.apply();
        for (name, _) in &recipes {
            it.site.pid(name);
        }
        it.site.plan_is_empty();
        it.assert_complete();
        it.site.run(&["down"]).exits(0);
        it.rig.assert_clean();
    }
}

#[tokio::test]
async fn registries_of_every_kind_are_pulled_from() {
    for engine in Engine::all() {
        println!("on containerd {engine}");
        let rig = Rig::start_on(&engine).await;
        for kind in [Kind::Plain, Kind::Basic, Kind::Tls, Kind::TlsBasic] {
            let registry = Registry::start(kind);
            let pushed = registry.push("a/b:1", &Recipe::busybox());
            let site = introduce(Site::of(&rig), &registry, kind);
            site.write("web.yaml", &workload("web", &pushed.name));
            let controller = site.controller();
            site.until_running("web");
            assert_eq!(digest(&rig, &site, "web"), pushed.digest.as_str(), "{kind:?}");
            // Nobody who can read these learns the password.
            let said = [controller.log(), site.run(&["status", "--output", "json"]).out];
            let secrets = [PASSWORD.to_owned(), base64(format!("{USER}:{PASSWORD}").as_bytes())];
            for secret in &secrets {
                assert!(said.iter().all(|it| !it.contains(secret.as_str())), "{kind:?}");
            }
            assert_eq!(controller.terminate(), Some(0));
            site.run(&["down"]).exits(0);
        }
    }
}

#[tokio::test]
async fn twenty_workloads_with_one_image_cause_one_pull() {
    let it = Stage::new().await;
    let recipe = Recipe::busybox().with_data(3, 1_000_000, 1).among_others();
    let (pushed, image) = it.push("many:1", &recipe);
    let names: Vec<String> = (0..20).map(|n| format!("web-{n}")).collect();
    for name in &names {
        it.site.write(&format!("{name}.yaml"), &workload(name, &image));
    }
    it.site.apply();
    assert_eq!(it.site.pids().len(), names.len());
    let stored = it.registry.stored(&pushed);
    let requests = it.proxy.requests();
    for blob in stored.layers.iter().chain([&stored.config]) {
        assert_eq!(of(&requests, blob.digest.as_str()).len(), 1, "{blob:?}: {requests:#?}");
    }
    assert_eq!(it.proxy.count("GET", &Asked::Blob), stored.layers.len() + 1);
    // What the name stands for, the index, and the manifest of this machine.
    let manifests = ["GET", "HEAD"].map(|it_is| it.proxy.count(it_is, &Asked::Manifest));
    assert!(manifests[0] + manifests[1] <= 3, "{requests:#?}");
}

#[tokio::test]
async fn what_a_registry_does_wrong_is_told_and_tried_again() {
    let mut it = Stage::new().await;
    let unauthorized = Fault::status(401).with("WWW-Authenticate", "Basic realm=\"test\"");
    let faults = [
        (Asked::Manifest, unauthorized.clone(), "registry-unauthorized"),
        (Asked::Anything, unauthorized, "registry-unauthorized"),
        (Asked::Manifest, Fault::status(403), "registry-unauthorized"),
        (Asked::Manifest, Fault::status(404), "image-not-found"),
        (Asked::Manifest, Fault::status(429).with("Retry-After", "1"), "registry-rate-limited"),
        (Asked::Manifest, Fault::status(500), "registry-failed"),
        (Asked::Blob, Fault::status(503), "registry-failed"),
        (Asked::Blob, Fault::status(404), "image-not-found"),
        (Asked::Blob, Fault::Corrupt(50), "content-mismatch"),
        (Asked::Manifest, Fault::Corrupt(50), "content-mismatch"),
    ];
    let controller = it.site.controller();
    for (n, (asked, fault, reason)) in faults.into_iter().enumerate() {
        println!("{asked:?} {fault:?}");
        let name = format!("web-{n}");
        let recipe = Recipe::busybox().with(&[("n", &name)]);
        let (_, image) = it.push(&format!("faults/{name}:1"), &recipe);
        it.proxy.fail_all(asked, fault);
        it.site.write(&format!("{name}.yaml"), &workload(&name, &image));
        let message = it.until_failed(&name);
        assert!(message.contains(reason), "{message}");
        it.proxy.mend();
        it.site.until_running(&name);
    }
    let (_, image) = it.push("unplugged:1", &Recipe::busybox());
    it.proxy.unplug();
    it.site.write("unplugged.yaml", &workload("unplugged", &image));
    let message = it.until_failed("unplugged");
    assert!(message.contains("registry-unreachable"), "{message}");
    it.proxy.plug_in();
    it.site.until_running("unplugged");
    it.assert_complete();
    assert_eq!(controller.terminate(), Some(0));
}

#[tokio::test]
async fn a_registry_that_hangs_keeps_nobody_else_from_starting() {
    let it = Stage::new().await;
    let (_, image) = it.push("hangs:1", &Recipe::busybox());
    it.proxy.fail_all(Asked::Anything, Fault::Silence);
    let _controller = it.site.controller();
    it.site.write("hangs.yaml", &workload("hangs", &image));
    it.proxy.until("it is asked", |requests| requests.first().map(drop));
    it.site.write("other.yaml", &workload("other", "busybox"));
    it.site.until_running("other");
    assert!(it.until_failed("hangs").contains("registry-silent"));
    it.proxy.mend();
    it.site.until_running("hangs");
}

#[tokio::test]
async fn a_layer_that_was_cut_goes_on_where_it_was() {
    let it = Stage::new().await;
    let (pushed, image) = it.push("cut:1", &Recipe::busybox().with_data(1, 8_000_000, 1));
    let layer = it.registry.stored(&pushed).layers.remove(1).digest;
    it.proxy.fail_next(Asked::containing(&layer), Fault::Cut(5_000_000));
    it.site.write("web.yaml", &workload("web", &image));
    it.site.apply();
    let requests = it.proxy.requests();
    let asked = of(&requests, layer.as_str());
    assert_eq!(asked.iter().map(|it| start(it)).collect::<Vec<_>>(), [None, Some(5_000_000)]);
    it.assert_complete();
}

#[tokio::test]
async fn a_part_that_comes_as_the_whole_is_no_harm() {
    let it = Stage::new().await;
    let (pushed, image) = it.push("whole:1", &Recipe::busybox().with_data(1, 8_000_000, 1));
    let layer = it.registry.stored(&pushed).layers.remove(1).digest;
    it.proxy.fail_next(Asked::containing(&layer), Fault::Cut(5_000_000));
    it.proxy.fail_next(Asked::containing(&layer), Fault::Whole);
    it.site.write("web.yaml", &workload("web", &image));
    it.site.apply();
    it.site.pid("web");
    it.assert_complete();
}

#[tokio::test]
async fn a_pull_outlives_the_controller_and_containerd() {
    for engine in Engine::all() {
        println!("on containerd {engine}");
        for kills_containerd in [false, true] {
            let mut it = Stage::set(&engine).await;
            let (pushed, image) =
                it.push("killed:1", &Recipe::busybox().with_data(2, 8_000_000, 1));
            let layers = it.registry.stored(&pushed).layers;
            let (first, second) = (layers[1].digest.clone(), layers[2].digest.clone());
            it.proxy.fail_all(Asked::containing(&second), Fault::Stall(5_000_000));
            let controller = it.site.controller();
            it.site.write("web.yaml", &workload("web", &image));
            it.proxy.until("one layer has come, and some of the other", |requests| {
                let sent = |part: &str| of(requests, part).iter().map(|it| it.sent).sum::<u64>();
                let (first, second) = (sent(first.as_str()), sent(second.as_str()));
                (first == layers[1].size && second == 5_000_000).then_some(())
            });
            // What was sent may still be on its way; of what has come, a piece may not be written yet.
            let come = layers[0].size + layers[1].size + 4_000_000;
            it.site.until_status("it has come", |status| {
                status.pulls.iter().any(|it| it.done >= come).then_some(())
            });
            let controller = if kills_containerd {
                it.rig.kill_containerd();
                it.rig.start_containerd().await;
                it.proxy.mend();
                controller
            } else {
                let pid = controller.pid();
                controller.kill();
                until_dead(pid);
                it.proxy.mend();
                it.site.controller()
            };
            it.site.until_running("web");
            let requests = it.proxy.requests();
            let again = of(&requests, second.as_str()).pop().and_then(start);
            assert!(again.is_some_and(|it| it > 0), "it starts over: {requests:#?}");
            if !kills_containerd {
                assert!(of(&requests, first.as_str()).len() <= 2, "{requests:#?}");
            }
            it.assert_complete();
            assert_eq!(controller.terminate(), Some(0));
        }
    }
}

#[tokio::test]
async fn a_containerd_that_is_killed_while_it_unpacks_leaves_no_part_of_an_image() {
    for engine in Engine::all() {
        println!("on containerd {engine}");
        let mut it = Stage::set(&engine).await;
        let recipe = Recipe::busybox().with_data(3, 40_000_000, 5).packed(Packing::Gzip);
        let (_, image) = it.push("unpacked:1", &recipe);
        let controller = it.site.controller();
        it.site.write("web.yaml", &workload("web", &image));
        // Manifest, configuration and four layers have come, and one of those is unpacked just now.
        eventually("all has come and is unpacked", || {
            let come = it.rig.ctr(&["content", "list", "--quiet"]).lines().count();
            let snapshots =
                it.rig.ctr(&["snapshots", "--snapshotter", &Rig::snapshotter(), "list"]);
            (come >= 6 && snapshots.contains("evenkeel-unpack-")).then_some(())
        });
        it.rig.kill_containerd();
        it.rig.start_containerd().await;
        it.site.until_running("web");
        let log = controller.log();
        assert!(log.contains("failed to unpack layer"), "it was killed too late: {log}");
        it.assert_complete();
        assert_eq!(controller.terminate(), Some(0));
    }
}

#[tokio::test]
async fn without_a_network_an_archive_is_enough() {
    let mut it = Stage::new().await;
    let image = it.proxy.name("x/archived:1");
    it.proxy.unplug();
    let archive: PathBuf = it.site.state_dir().join("images/archived.tar");
    std::fs::write(archive, busybox::saved(&image, Packing::Gzip)).unwrap();
    it.site.write("web.yaml", &workload("web", &image));
    // Another one is where the configuration says.
    let (more, other) = (it.site.dir().join("more"), it.proxy.name("x/more:1"));
    std::fs::create_dir(&more).unwrap();
    std::fs::write(more.join("more.tar"), busybox::saved(&other, Packing::Plain)).unwrap();
    it.site.configure(&format!("removeAfter: 200ms\narchives: [{}]\n", more.display()));
    it.site.write("more.yaml", &workload("more", &other));
    it.site.apply();
    it.site.pid("web");
    it.site.pid("more");
    it.proxy.plug_in();
    assert_eq!(it.proxy.requests(), [], "nobody was asked");
}

#[tokio::test]
async fn a_moved_tag_is_another_image_at_the_next_start_where_that_is_wanted() {
    for (policy, moves) in [("always", true), ("if-not-present", false)] {
        let it = Stage::new().await;
        let version = |text| Recipe::busybox().with(&[("version", text)]);
        let (first, image) = it.push("moves:1", &version("1"));
        let wanted = format!("spec:\n  imagePullPolicy: {policy}\n");
        it.site.write("web.yaml", &workload("web", &image).replace("spec:\n", &wanted));
        it.site.apply();
        assert_eq!(digest(&it.rig, &it.site, "web"), first.digest.to_string());
        let (second, _) = it.push("moves:1", &version("2"));
        it.site.run(&["stop", "web"]).exits(0);
        it.site.run(&["start", "web"]).exits(0);
        it.site.apply();
        let expected = if moves { second } else { first };
        assert_eq!(digest(&it.rig, &it.site, "web"), expected.digest.to_string(), "{policy}");
    }
}

#[tokio::test]
async fn what_is_not_to_be_pulled_is_not_asked_for() {
    let it = Stage::new().await;
    let (_, image) = it.push("never:1", &Recipe::busybox());
    let never = workload("never", &image).replace("spec:\n", "spec:\n  imagePullPolicy: never\n");
    it.site.write("never.yaml", &never);
    it.site.run(&["apply"]);
    let item = it.site.item("never").unwrap();
    assert_eq!(
        (item.reason.as_str(), item.instance.is_none()),
        ("image-missing", true),
        "{item:?}"
    );
    assert_eq!(it.proxy.requests(), []);
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_pull_goes_on_when_there_is_room() {
    let mut it = Stage::new().await;
    it.rig.on_small_disk(16 << 20).await;
    let (pushed, image) = it.push("large:1", &Recipe::busybox().with_data(3, 8_000_000, 1));
    let controller = it.site.controller();
    it.site.write("web.yaml", &workload("web", &image));
    let message = it.until_failed("web");
    assert!(message.contains("disk-full"), "{message}");
    assert!(it.rig.ctr(&["images", "list", "--quiet"]).is_empty(), "there is no part of an image");
    let before = it.proxy.requests().len();
    it.rig.grow_disk(200 << 20);
    it.site.until_running("web");
    // What was there did not come again.
    let again = it.proxy.requests().split_off(before);
    let sent: u64 = again.iter().map(|it| it.sent).sum();
    let whole: u64 = it.registry.stored(&pushed).layers.iter().map(|it| it.size).sum();
    assert!(sent < whole, "{again:#?}");
    it.assert_complete();
    assert_eq!(controller.terminate(), Some(0));
}

#[tokio::test]
async fn what_has_come_is_told_while_it_comes() {
    let it = Stage::new().await;
    let (pushed, image) = it.push("long:1", &Recipe::busybox().with_data(1, 20 << 20, 1));
    let layer = it.registry.stored(&pushed).layers.remove(1).digest;
    it.proxy.fail_all(Asked::containing(&layer), Fault::Stall(15 << 20));
    let controller = it.site.controller();
    it.site.write("web.yaml", &workload("web", &image));
    let is_told = |it: &Item| {
        let (_, numbers) = it.message.split_once(" pulled: ")?;
        let done: u64 = numbers.split(' ').next()?.parse().ok()?;
        (it.reason == "image-pulling" && done >= 10 && numbers.ends_with("of 22 MiB")).then_some(())
    };
    it.site.until("web", |item| is_told(item?));
    it.proxy.mend();
    it.site.until_running("web");
    assert_eq!(controller.terminate(), Some(0));
}

#[tokio::test]
async fn a_terminal_has_a_bar_for_what_comes_and_a_pipe_has_lines() {
    let it = Stage::new().await;
    let (pushed, image) = it.push("barred:1", &Recipe::busybox().with_data(1, 8 << 20, 1));
    let layer = it.registry.stored(&pushed).layers.remove(1).digest;
    // It takes two seconds.
    it.proxy.fail_all(Asked::containing(&layer), Fault::Slow(4 << 20));
    let script = format!("$EXE image pull {image} 2>&1 >/dev/null; echo code $?");
    let output = in_terminal(&it.site, &script).wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    // The last code of the terminal ends a drawing of the bar.
    let bars: Vec<&str> =
        shown.split(['\r', '\n', '\x1b']).filter(|it| it.contains("MiB/s")).collect();
    let is_whole = |it: &&str| {
        it.contains(&image)
            && it.contains("[=")
            && it.contains(" MiB/")
            && it.trim_end().ends_with('s')
    };
    assert!(bars.iter().filter(|it| is_whole(it)).count() > 3, "{shown:?}");
    assert!(shown.contains("code 0") && !shown.contains("0/0"), "{shown:?}");

    it.site.run(&["image", "prune", "--all"]).exits(0);
    let said = it.site.run(&["image", "pull", &image]).exits(0).err;
    assert!(said.contains("pulling image=") && said.contains(&image), "{said}");
    assert!(!said.contains(['\x1b', '[']), "{said}");
}

#[tokio::test]
async fn after_a_prune_nothing_is_left() {
    let it = Stage::new().await;
    let (_, image) = it.push("pruned:1", &Recipe::busybox().among_others());
    it.site.write("web.yaml", &workload("web", &image));
    it.site.apply();
    it.site.run(&["down"]).exits(0);
    it.site.run(&["image", "prune", "--all"]).exits(0);
    it.rig.assert_clean();
    let snapshotter = Rig::snapshotter();
    let lists: [&[&str]; 3] = [
        &["images", "list", "--quiet"],
        &["content", "list", "--quiet"],
        &["snapshots", "--snapshotter", &snapshotter, "list"],
    ];
    for list in lists {
        let left = it.rig.ctr(list);
        let left: Vec<&str> = left.lines().filter(|it| !it.starts_with("KEY")).collect();
        assert_eq!(left, Vec::<&str>::new(), "{list:?}");
    }
}

#[tokio::test]
async fn an_image_is_pulled_by_hand_beside_a_controller_and_without_one() {
    let it = Stage::new().await;
    let (pushed, image) = it.push("hand:1", &Recipe::busybox().with_data(1, 3_000_000, 7));
    let says = format!("{image}: {}", pushed.digest);
    // Without any manifest nobody knows what may be needed, and nothing is pruned.
    it.site.write("other.yaml", &manifest("other", "state: stopped"));
    for beside in [false, true] {
        let controller = beside.then(|| it.site.controller());
        it.site.run(&["image", "pull", &image]).exits(0).says(&[&says]);
        // What its name stands for is there already.
        let blobs = it.proxy.count("GET", &Asked::Blob);
        it.site.run(&["image", "pull", &image, "--pin"]).exits(0).says(&[&says, "pinned"]);
        assert_eq!(it.proxy.count("GET", &Asked::Blob), blobs);
        it.site.run(&["image", "list"]).exits(0).says(&[&image, "pinned"]);
        it.site.run(&["image", "prune", "--all"]).exits(0);
        it.assert_complete();
        assert!(it.rig.ctr(&["images", "list", "--quiet"]).contains(&image));
        let nowhere = it.proxy.name(&pushed.name).replace("hand", "nowhere");
        it.site.run(&["image", "pull", &nowhere]).exits(4).says(&[&nowhere]);
        it.site.run(&["image", "unpin", &image]).exits(0);
        it.site.run(&["image", "prune"]).exits(0).says(&[&image]);
        assert!(!it.rig.ctr(&["images", "list", "--quiet"]).contains(&image));
        if let Some(controller) = controller {
            assert_eq!(controller.terminate(), Some(0));
        }
    }
    it.rig.assert_clean();
}

/// How full a disk is, as `df` says it.
fn fill(path: &Path) -> u64 {
    let df = Command::new("df").arg("--output=pcent").arg(path).output().unwrap();
    let text = String::from_utf8(df.stdout).unwrap();
    text.lines().nth(1).unwrap().trim().trim_end_matches('%').parse().unwrap()
}

#[tokio::test]
async fn a_small_disk_that_gets_too_full_loses_what_nothing_needs_oldest_first_and_no_more() {
    let mut it = Stage::new().await;
    it.rig.on_small_disk(128 << 20).await;
    let disk = it.site.dir().join("containerd-root");
    let names = |it: &Stage| it.rig.ctr(&["images", "list", "--quiet"]);
    let controller = it.site.controller();
    let (_, needed) = it.push("needed:1", &Recipe::busybox().with_data(1, 4_000_000, 1));
    it.site.write("web.yaml", &workload("web", &needed));
    let pid = it.site.until_running("web");
    let [older, old] = ["older:1", "old:1"].map(|name| {
        let seed = u64::try_from(name.len()).unwrap();
        let (_, image) = it.push(name, &Recipe::busybox().with_data(1, 14_000_000, seed));
        it.site.run(&["image", "pull", &image]).exits(0);
        image
    });
    controller.hang_up();
    eventually("both are marked", || {
        let list = it.site.run(&["image", "list"]).exits(0);
        (list.out.matches("unused for ").count() == 2).then_some(())
    });
    let before = fill(&disk);
    assert!((30..85).contains(&before), "{before} %");
    // As if that was long ago.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for (image, seconds) in [(&older, 1), (&old, 2)] {
        let since = format!("evenkeel/unused-since={} {seconds}", boot.trim());
        it.rig.ctr(&["images", "label", image, &since]);
    }
    controller.hang_up();
    assert_eq!(names(&it).lines().count(), 3, "nothing goes below the mark");
    let (high, low) = (before - 1, before - 6);
    it.site.configure(&format!("images: {{highWatermark: {high}, lowWatermark: {low}}}\n"));
    controller.hang_up();
    eventually("there is room", || (fill(&disk) <= low).then_some(()));
    controller.hang_up();
    it.site.run(&["plan"]).exits(0);
    let left = names(&it);
    assert!(left.contains(&old) && left.contains(&needed) && !left.contains(&older), "{left}");
    it.site.run(&["events"]).exits(0).says(&[&format!("{older}: unused, and the disk is")]);
    assert_eq!(it.site.pid("web"), pid);
    it.assert_complete();
    assert_eq!(controller.terminate(), Some(0));
}
