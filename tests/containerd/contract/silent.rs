//! A containerd that takes every call and answers none: each verb of the seam comes back by itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel::content::{Descriptor, Digest, NewImage, stack};
use evenkeel::desired::{Origin, Source};
use evenkeel::observed::{Came, Image, ImageConfig, ImagePlace};
use evenkeel::runtime::containerd::{Containerd, Settings};
use evenkeel::runtime::{
    Blob, Error, ErrorKind, Exec, LogTarget, Mark, NewBlob, NewInstance, Runtime as _, Streams,
    Tell, Update,
};
use evenkeel::workload::{InstanceId, IpcDefaults, Signal};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{LEASE, workload};

/// The client's first bytes, before its frames.
const PREFACE: usize = 24;

/// Kind of the frame that begins a call.
const HEADERS: u8 = 1;

/// Accepts, reads, says nothing; and tells of each call that has come in.
fn listen(socket: &Path) -> mpsc::UnboundedReceiver<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let (calls, came) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let calls = calls.clone();
            tokio::spawn(async move {
                stream.read_exact(&mut [0; PREFACE]).await?;
                loop {
                    // Three bytes of length, kind, flags, four bytes of stream.
                    let mut head = [0; 9];
                    stream.read_exact(&mut head).await?;
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                    let mut body = vec![0; length.try_into().unwrap()];
                    stream.read_exact(&mut body).await?;
                    if head[3] == HEADERS && calls.send(()).is_err() {
                        return Ok::<(), std::io::Error>(());
                    }
                }
            });
        }
    });
    came
}

fn image() -> Image {
    Image {
        name: "docker.io/library/busybox:latest".to_owned(),
        digest: format!("sha256:{}", "a".repeat(64)),
        config: ImageConfig::default(),
        place: ImagePlace::Store,
    }
}

fn instance() -> NewInstance {
    let workload = workload("web");
    let revision = workload.revision(&image().digest);
    NewInstance {
        id: InstanceId::new(&workload.name, &revision),
        revision,
        origin: Origin {
            source: Source::new(Path::new("/"), Path::new("/manifests")),
            file: "web.yaml".into(),
            document: 0,
        },
        workload,
        defaults: IpcDefaults::default(),
        image: image(),
    }
}

/// What the calls that may find an end say of one that they have not heard of.
const STILL: Result<(), ErrorKind> = Ok(());
const UNREACHABLE: Result<(), ErrorKind> = Err(ErrorKind::Unreachable);

fn outcome<T>(result: Result<T, Error>) -> Result<(), ErrorKind> {
    result.map(drop).map_err(|error| error.kind)
}

/// Has one call made to a new containerd of that kind, and says what it came to and how long it took, on a clock that
/// is moved from the moment on at which the call has come in.
async fn silence<F: Future>(call: impl FnOnce(Containerd) -> F) -> (F::Output, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("containerd.sock");
    let mut came = listen(&socket);
    let settings = Settings {
        address: socket,
        namespace: "evenkeel".to_owned(),
        snapshotter: "overlayfs".to_owned(),
        runc_root: PathBuf::from("/run/evenkeel/runc"),
        log_program: PathBuf::from("/usr/bin/evenkeel"),
    };
    let call = call(Containerd::new(settings).unwrap());
    tokio::pin!(call);
    tokio::select! {
        _ = &mut call => panic!("it came back before it was heard"),
        heard = tokio::time::timeout(Duration::from_secs(30), came.recv()) => {
            heard.expect("the call comes in").unwrap();
        }
    }
    tokio::time::pause();
    let begun = Instant::now();
    let result = tokio::time::timeout(Duration::from_hours(10), call).await;
    let took = begun.elapsed();
    tokio::time::resume();
    (result.expect("it waits for ever"), took)
}

/// Expects of each verb an outcome and the seconds after which it comes at the latest.
macro_rules! each {
    ($($name:literal: $seconds:literal, $expected:expr, $client:ident => $call:expr;)*) => {
        $({
            let (found, took) = silence(|$client| async move { outcome($call.await) }).await;
            assert_eq!(found, $expected, "{}", $name);
            // The clock moves by milliseconds.
            let limit = Duration::from_secs($seconds) + Duration::from_millis(100);
            assert!(took <= limit, "{}: {took:?}", $name);
        })*
    };
}

#[tokio::test]
async fn every_verb_comes_back_from_a_containerd_that_never_answers() {
    let id = &instance().id;
    let limit = Duration::from_secs(7);
    each! {
        "observe": 30, UNREACHABLE, it => it.observe(&BTreeSet::new());
        "observe images": 30, UNREACHABLE, it => it.observe(&[image().name].into());
        "put_blob": 60, UNREACHABLE, it => {
            let digest = Digest::of(b"x").to_string();
            async move {
                let content = &mut &b"x"[..];
                let labels = [("a".to_owned(), "b".to_owned())].into();
                it.put_blob(LEASE, Blob { digest, size: 1, labels, content }).await
            }
        };
        "open_blob": 60, UNREACHABLE, it => {
            let blob = NewBlob { digest: Digest::of(b"x"), size: 1, labels: [].into() };
            async move { it.open_blob(LEASE, &blob).await.map(drop) }
        };
        "unpack_layer": 20, UNREACHABLE, it => {
            let blob = Descriptor::new(evenkeel::content::LAYER, Digest::of(b"x"), 1);
            let layers = stack(&[blob], &[Digest::of(b"y").to_string()]);
            async move { it.unpack_layer(LEASE, &layers[0]).await }
        };
        "put_image": 20, UNREACHABLE, it => async move {
            let Image { name, digest, config, .. } = image();
            let media_type = evenkeel::content::MANIFEST.to_owned();
            let came = Came::Pulled;
            it.put_image(LEASE, &NewImage { name, digest, media_type, size: 1, config, came }).await
        };
        "mark_image": 20, UNREACHABLE, it => async move {
            it.mark_image("a", &image().digest, &Mark::Pinned).await
        };
        "remove_image": 20, UNREACHABLE, it => async move {
            it.remove_image("a", &image().digest).await
        };
        "lease": 20, UNREACHABLE, it => it.lease(LEASE);
        "remove_lease": 20, UNREACHABLE, it => it.remove_lease(LEASE);
        "prepare_snapshot": 20, UNREACHABLE, it => it.prepare_snapshot(LEASE, &instance());
        "create": 20, UNREACHABLE, it => it.create(LEASE, &instance());
        "update": 20, UNREACHABLE, it =>
            it.update(id, &Update { ending: Some(1), ..Update::default() });
        "create_task": 60, UNREACHABLE, it => it.create_task(id, &LogTarget::None);
        "start_task": 30, UNREACHABLE, it => it.start_task(id);
        "resume_task": 30, UNREACHABLE, it => it.resume_task(id);
        "kill": 30, UNREACHABLE, it => it.kill(id, Signal::TERM, false);
        "wait": 7, STILL, it => it.wait(id, limit);
        "delete_task": 30, UNREACHABLE, it => it.delete_task(id);
        "remove": 30, UNREACHABLE, it => it.remove(id);
        "clear": 30, UNREACHABLE, it => it.clear(id);
        "remove_snapshot": 20, UNREACHABLE, it => it.remove_snapshot("web-0123456789");
        "readopt": 20, UNREACHABLE, it => it.readopt(id);
        "exec": 20, UNREACHABLE, it => async move {
            let exec = Exec { args: vec!["true".to_owned()], ..Exec::default() };
            it.exec(id, "key", &exec, &Streams::default()).await
        };
        "wait_exec": 7, STILL, it => it.wait_exec(id, "key", limit);
        "signal_exec": 30, UNREACHABLE, it => it.tell_exec(id, "key", Tell::Signal(Signal::TERM));
        "resize_exec": 30, UNREACHABLE, it => it.tell_exec(id, "key", Tell::Resize(80, 25));
        "end_of_input": 30, UNREACHABLE, it => it.tell_exec(id, "key", Tell::EndOfInput);
        "delete_exec": 30, UNREACHABLE, it => it.delete_exec(id, "key");
        // Not of the seam, and asked for before or after everything else.
        "owner": 20, UNREACHABLE, it => it.owner();
        "set_owner": 20, UNREACHABLE, it => it.set_owner("x");
        "version": 10, UNREACHABLE, it => it.version();
        "fault_of_snapshotter": 10, UNREACHABLE, it => it.fault_of_snapshotter();
        "collect_garbage": 20, UNREACHABLE, it => it.collect_garbage();
    }
}

/// A verb that is new has to be asked for above.
#[test]
fn every_verb_is_asked_for() {
    let source = include_str!("../../../src/runtime.rs");
    let (_, verbs) = source.split_once("pub trait Runtime").unwrap();
    let (verbs, _) = verbs.split_once("\n}").unwrap();
    let own = include_str!("silent.rs");
    for verb in verbs.lines().filter_map(|it| it.trim_start().strip_prefix("fn ")) {
        let name = verb.split('(').next().unwrap();
        // It asks nothing by itself.
        if name != "hints" {
            assert!(own.contains(&format!("it.{name}(")), "{name}");
        }
    }
}
