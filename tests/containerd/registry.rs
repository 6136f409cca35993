//! The registries that pulls are tested with: they let in whom they should, have what was pushed, and go wrong as told.

use std::time::Duration;

use evenkeel::content::{self, Digest};

use crate::program::{now, until_dead};
use crate::rig::busybox::Packing;
use crate::rig::proxy::{Asked, Fault, Proxy};
use crate::rig::recipe::Recipe;
use crate::rig::registry::{Answer, Kind, Pushed, Registry, Stored, ask, skopeo};
use crate::rig::sweep;

/// What Docker calls them.
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Small images are pushed faster.
fn small() -> Recipe {
    Recipe::empty().with(&[("etc/motd", "hello")])
}

fn inspect(registry: &Registry, name: &str, options: &[&str]) -> Result<serde_json::Value, String> {
    let image = format!("docker://{}/{name}", registry.host());
    let output = skopeo(&[&["inspect", "--no-tags"], options, &[&image]].concat());
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn registries_let_in_whom_they_should() {
    for kind in [Kind::Plain, Kind::Basic, Kind::Tls, Kind::TlsBasic] {
        let registry = Registry::start(kind);
        let pushed = registry.push("a/b:1", &small());
        let options = registry.options("");
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let found = inspect(&registry, "a/b:1", &options).unwrap();
        assert_eq!(found["Digest"], pushed.digest.as_str(), "{kind:?}");
        let (with_tls, asks) = match kind {
            Kind::Plain => (false, false),
            Kind::Basic => (false, true),
            Kind::Tls => (true, false),
            Kind::TlsBasic => (true, true),
        };
        let blind = inspect(&registry, "a/b:1", &["--tls-verify=false"]);
        assert_eq!(blind.is_err(), asks, "{kind:?}: {blind:?}");
        assert!(blind.err().is_none_or(|it| it.contains("authentication required")), "{kind:?}");
        if with_tls {
            // No authority of this machine has signed it.
            let refused = inspect(&registry, "a/b:1", &options[1..]);
            assert!(refused.as_ref().unwrap_err().contains("x509"), "{kind:?}: {refused:?}");
            assert!(registry.authority().exists());
        } else {
            let version = ask(registry.address(), "GET", "/v2/", &[]);
            assert_eq!(version.status, if asks { 401 } else { 200 }, "{kind:?}");
            assert_eq!(
                version.header("www-authenticate"),
                asks.then_some("Basic realm=\"test\""),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn a_registry_leaves_nothing_behind() {
    let registry = Registry::start(Kind::Plain);
    let directory = registry.dir().to_owned();
    registry.push("a:1", &Recipe::busybox());
    assert_eq!(sweep::processes_of(&directory).len(), 1, "itself and no other");
    drop(registry);
    assert_eq!(sweep::processes_of(&directory).len(), 0);
    assert!(!directory.exists());
}

#[test]
fn a_registry_ends_with_whoever_started_it() {
    let start = std::thread::spawn(|| {
        let registry = Registry::start(Kind::Plain);
        let directory = registry.dir().to_owned();
        let pid = sweep::processes_of(&directory)[0].pid;
        // As if this process had been killed.
        std::mem::forget(registry);
        (directory, pid)
    });
    let (directory, pid) = start.join().unwrap();
    until_dead(pid);
    assert_eq!(sweep::remove(&directory), Vec::<String>::new());
}

#[test]
fn images_have_the_media_types_that_they_claim() {
    let registry = Registry::start(Kind::Plain);
    let types = |name: &str, recipe: &Recipe| {
        let Stored { media_type, config, layers } = registry.stored(&registry.push(name, recipe));
        let layers: Vec<String> = layers.into_iter().map(|it| it.media_type).collect();
        (media_type, config.media_type, layers)
    };
    let expect = |target: &str, config: &str, layer: &str| {
        (target.to_owned(), config.to_owned(), vec![layer.to_owned()])
    };
    let oci = |layer| expect(content::MANIFEST, content::CONFIG, layer);
    assert_eq!(types("a:1", &small()), oci(content::LAYER_GZIP));
    assert_eq!(types("b:1", &small().packed(Packing::Zstd)), oci(content::LAYER_ZSTD));
    assert_eq!(types("c:1", &small().packed(Packing::Plain)), oci(content::LAYER));
    assert_eq!(types("d:1", &small().docker()), expect(DOCKER, DOCKER_CONFIG, DOCKER_LAYER));
    let index = |layer| expect(content::INDEX, content::CONFIG, layer);
    assert_eq!(types("e:1", &small().among_others()), index(content::LAYER_GZIP));
    let list = expect(DOCKER_LIST, DOCKER_CONFIG, DOCKER_LAYER);
    assert_eq!(types("f:1", &small().among_others().docker()), list);
}

#[test]
fn an_index_has_garbage_for_another_architecture_first() {
    let registry = Registry::start(Kind::Plain);
    let pushed = registry.push("a:1", &small().among_others());
    let path = format!("/v2/a/manifests/{}", pushed.digest);
    let answer = ask(registry.address(), "GET", &path, &[("Accept", content::INDEX)]);
    let content::Target::Index(entries) = content::parse_target(&answer.body).unwrap() else {
        panic!("{answer:?}")
    };
    let architectures: Vec<String> =
        entries.iter().map(|it| it.platform.clone().unwrap().architecture).collect();
    assert_eq!(architectures.len(), 2, "{architectures:?}");
    assert_ne!(architectures[0], content::architecture());
    assert_eq!(architectures[1], content::architecture());
}

#[test]
fn a_tag_moves_and_data_is_the_same_for_the_same_seed() {
    let registry = Registry::start(Kind::Plain);
    let data = |seed| small().with_data(2, 100_000, seed).packed(Packing::Plain);
    let first = registry.push("a/b:1", &data(1));
    let second = registry.push("a/b:1", &data(2));
    assert_ne!(first.digest, second.digest);
    let now = inspect(&registry, "a/b:1", &["--tls-verify=false"]).unwrap();
    assert_eq!(now["Digest"], second.digest.as_str());
    assert_eq!(registry.push("c:1", &data(1)).digest, first.digest);
    let sizes: Vec<u64> = registry.stored(&first).layers.iter().map(|it| it.size).collect();
    assert!(sizes[1..].iter().all(|it| *it >= 100_000), "{sizes:?}");
    // It does not get smaller.
    let packed = registry.stored(&registry.push("d:1", &data(1).packed(Packing::Gzip)));
    assert!(packed.layers[1..].iter().all(|it| it.size >= 100_000), "{packed:?}");
}

/// A registry with one image of a few layers, behind a proxy.
struct Behind {
    registry: Registry,
    proxy: Proxy,
    pushed: Pushed,
    /// Its largest layer.
    layer: Digest,
    size: u64,
}

impl Behind {
    fn start(kind: Kind) -> Self {
        let registry = Registry::start(kind);
        let recipe = small().with_data(1, 300_000, 1).packed(Packing::Plain);
        let pushed = registry.push("a/b:1", &recipe);
        let proxy = Proxy::to(registry.address());
        let stored = registry.stored(&pushed).layers.remove(1);
        let (layer, size) = (stored.digest, stored.size);
        Self { registry, proxy, pushed, layer, size }
    }

    fn blob(&self, headers: &[(&str, &str)]) -> Answer {
        ask(self.proxy.address(), "GET", &format!("/v2/a/b/blobs/{}", self.layer), headers)
    }
}

#[test]
fn a_proxy_passes_on_what_is_asked_and_said_and_counts_it() {
    let it = Behind::start(Kind::Plain);
    let whole = it.blob(&[]);
    assert_eq!((whole.status, Digest::of(&whole.body)), (200, it.layer.clone()));
    let part = it.blob(&[("Range", "bytes=1000-")]);
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[1000..]));
    let manifest = "/v2/a/b/manifests/1";
    let head = ask(it.proxy.address(), "HEAD", manifest, &[("Accept", content::MANIFEST)]);
    assert_eq!(head.header("docker-content-digest"), Some(it.pushed.digest.as_str()));
    assert_eq!(head.body, b"");
    let counts = [("GET", Asked::Blob), ("HEAD", Asked::Manifest), ("GET", Asked::Manifest)];
    assert_eq!(counts.map(|(method, asked)| it.proxy.count(method, &asked)), [2, 1, 0]);
    let requests = it.proxy.requests();
    assert_eq!(requests[0].range, None);
    assert_eq!(requests[1].range.as_deref(), Some("bytes=1000-"));
    assert_eq!(requests[1].sent, it.size - 1000);
    assert_eq!(requests[2].path, manifest);
    assert_eq!(
        requests.iter().map(|it| it.status).collect::<Vec<_>>(),
        [Some(200), Some(206), Some(200)]
    );
    assert!(requests.iter().all(|it| !it.has_authorization));
    // Another program's idea of a registry works through it as well.
    let image = format!("docker://{}", it.proxy.name(&it.pushed.name));
    let output = skopeo(&["inspect", "--tls-verify=false", "--raw", &image]);
    assert_eq!(Digest::of(&output.stdout), it.pushed.digest, "{output:?}");
}

#[test]
fn who_says_who_it_is_is_seen() {
    let it = Behind::start(Kind::Basic);
    let image = format!("docker://{}", it.proxy.name(&it.pushed.name));
    let options = it.registry.options("");
    let output = skopeo(&["inspect", "--raw", &options[0], &options[1], &image]);
    assert_eq!(Digest::of(&output.stdout), it.pushed.digest, "{output:?}");
    let requests = it.proxy.requests();
    let version = requests.iter().find(|it| it.path == "/v2/").unwrap();
    assert_eq!((version.status, version.has_authorization), (Some(401), false));
    let manifest = requests.iter().find(|it| it.path.contains("/manifests/")).unwrap();
    assert_eq!((manifest.status, manifest.has_authorization), (Some(200), true));
}

#[test]
fn answers_are_those_that_were_told() {
    let it = Behind::start(Kind::Plain);
    for status in [401, 403, 404, 500, 503] {
        it.proxy.fail_next(Asked::containing(&it.layer), Fault::status(status));
        assert_eq!(it.blob(&[]).status, status);
    }
    let limited = Fault::status(429).with("Retry-After", "7");
    it.proxy.fail_all(Asked::Blob, limited);
    for _ in 0..2 {
        let answer = it.blob(&[]);
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")));
    }
    it.proxy.fail_next(Asked::Version, Fault::status(401));
    assert_eq!(ask(it.proxy.address(), "GET", "/v2/", &[]).status, 401);
    // Others are let through.
    assert_eq!(ask(it.proxy.address(), "GET", "/v2/", &[]).status, 200);
    it.proxy.mend();
    assert_eq!(it.blob(&[]).status, 200);
    it.proxy.fail_next(Asked::Anything, Fault::HangUp);
    let ended = ask(it.proxy.address(), "GET", "/v2/", &[]);
    assert_eq!((ended.status, ended.body.len()), (0, 0));
    assert_eq!(ask(it.proxy.address(), "GET", "/v2/", &[]).status, 200);
}

#[test]
fn bodies_are_cut_changed_or_whole_as_told() {
    let it = Behind::start(Kind::Plain);
    let whole = it.blob(&[]).body;
    it.proxy.fail_next(Asked::Blob, Fault::Cut(100_000));
    let cut = it.blob(&[]);
    assert_eq!(cut.header("content-length"), Some(it.size.to_string().as_str()));
    assert_eq!(cut.body, whole[..100_000]);
    it.proxy.fail_next(Asked::Blob, Fault::Cut(0));
    assert_eq!((it.blob(&[]).body.len(), it.proxy.requests()[2].status), (0, Some(200)));
    it.proxy.fail_next(Asked::Blob, Fault::Corrupt(200_000));
    let corrupt = it.blob(&[]).body;
    let differ: Vec<usize> = (0..whole.len()).filter(|n| whole[*n] != corrupt[*n]).collect();
    assert_eq!(differ, [200_000]);
    it.proxy.fail_next(Asked::Blob, Fault::Whole);
    let answer = it.blob(&[("Range", "bytes=1000-")]);
    assert_eq!((answer.status, answer.body), (200, whole));
    assert!(it.proxy.requests().last().unwrap().range.is_some());
}

#[test]
fn who_is_silent_stays_so_until_it_is_mended() {
    let it = Behind::start(Kind::Plain);
    std::thread::scope(|scope| {
        for (n, (fault, sent)) in
            [(Fault::Silence, 0), (Fault::Stall(50_000), 50_000)].into_iter().enumerate()
        {
            it.proxy.fail_all(Asked::Blob, fault);
            let asking = scope.spawn(|| it.blob(&[]));
            it.proxy.until("it has got so far", |all| (all.get(n)?.sent == sent).then_some(()));
            // A registry that answers has done so long before.
            assert!(!asking.is_finished());
            it.proxy.mend();
            assert_eq!(asking.join().unwrap().body.len(), usize::try_from(sent).unwrap());
        }
    });
}

#[test]
fn who_is_slow_takes_its_time() {
    let it = Behind::start(Kind::Plain);
    it.proxy.fail_next(Asked::Blob, Fault::Slow(it.size * 2));
    let begun = now();
    let answer = it.blob(&[]);
    assert!(now() - begun >= Duration::from_millis(450), "{:?}", now() - begun);
    assert_eq!(Digest::of(&answer.body), it.layer);
}

#[test]
fn nobody_listens_while_it_is_unplugged() {
    let mut it = Behind::start(Kind::Plain);
    it.proxy.fail_next(Asked::Blob, Fault::Slow(1000));
    std::thread::scope(|scope| {
        let address = it.proxy.address();
        let path = format!("/v2/a/b/blobs/{}", it.layer);
        let asking = scope.spawn(move || ask(address, "GET", &path, &[]));
        it.proxy.until("it has begun", |all| (all.first()?.sent > 0).then_some(()));
        it.proxy.unplug();
        assert!(asking.join().unwrap().body.len() < usize::try_from(it.size).unwrap());
    });
    let refused = std::net::TcpStream::connect(it.proxy.address()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    it.proxy.plug_in();
    assert_eq!(it.blob(&[]).status, 200);
}
