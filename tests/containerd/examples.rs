//! Every example, and what the demo runs, on a real containerd: applied as it stands, and gone without a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use evenkeel::manifest::{self, Content};
use evenkeel::status::Status;

use crate::ipc::stage::{Inside, Stage, find, item, make_archive, pid, pids, runs};

/// The image of most examples; the others use [`crate::ipc::stage::IMAGE`].
const IMAGE: &str = "docker.io/library/busybox:1.35";

/// What becomes of the workloads that are not simply running.
fn expected(name: &str) -> &'static [&'static str] {
    match name {
        "job-never" => &["Completed"],
        "stopped" => &["Stopped"],
        // Fails after 5 s, and waits a second before it is started again.
        "on-failure" => &["Running", "BackingOff", "Starting"],
        _ => &["Running"],
    }
}

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = ["examples", "manifests"]
        .iter()
        .flat_map(|it| std::fs::read_dir(root.join(it)).unwrap())
        .map(|it| it.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|it| it.extension().is_some_and(|it| it == "yaml")).collect();
    files.sort();
    assert!(files.len() > 10, "{files:?}");
    files
}

#[tokio::test]
async fn every_example_reaches_its_phase_and_leaves_nothing() {
    let stage = Stage::set().await;
    make_archive(&stage.rig.state_dir().join("images/named.tar"), IMAGE);
    // A port that is free here, and a place on the host that goes with the rig.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = stage.rig.dir().join("srv");
    let mut names = BTreeSet::new();
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text
            .replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"))
            .replace("/srv/evenkeel", place.to_str().unwrap());
        for document in manifest::read(&file, text.as_bytes()).documents {
            let Content::Workload { name, .. } = document.content else {
                panic!("{} has a document that is no workload", file.display())
            };
            assert!(names.insert(name.to_string()), "two examples are called {name}");
        }
        stage.write(file.file_name().unwrap().to_str().unwrap(), &text);
    }

    let applied = stage.apply();
    // Whether the failing one runs at this moment decides between the two.
    assert!([0, 4].contains(&applied.code), "{applied:#?}");
    let found: BTreeMap<&str, String> =
        applied.status.items.iter().map(|it| (it.name.as_str(), it.phase.to_string())).collect();
    assert_eq!(found.len(), names.len(), "{found:?}");
    for name in &names {
        let phase = &found[name.as_str()];
        assert!(expected(name).contains(&phase.as_str()), "{name} is {phase}: {applied:#?}");
        assert_eq!(item(&applied.status, name).problems, []);
    }
    check_what_they_show(&stage, &applied.status, port, &place);

    let again = stage.apply();
    let steady = |status: &Status| {
        let mut pids = pids(status);
        pids.remove("on-failure");
        pids
    };
    assert_eq!(steady(&again.status), steady(&applied.status));
    stage.take_down();
}

/// What the comments of the examples promise.
fn check_what_they_show(stage: &Stage, status: &Status, port: u16, place: &Path) {
    let prints = |name: &str, text: &str| {
        let output = stage.rig.evenkeel(&["logs", "--engine", "system", name]);
        String::from_utf8_lossy(&output.stdout).contains(text)
    };
    assert!(prints("command-env-user", "hello from greeter.example, home is"));
    assert!(prints("job-never", "migrated"));
    assert_eq!(item(status, "job-never").last_exit.as_ref().unwrap().code, 0);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(place.join("tmpfs-and-bind").is_dir());
    assert!(find(status, "stopped").is_some_and(|it| it.instance.is_none()));
    for (donor, joiner) in [("ipc-donor", "ipc-joiner"), ("producer", "consumer")] {
        assert!(runs(status, donor) && runs(status, joiner));
        let view = |name: &str| Inside::of(&pid(status, name).to_string());
        assert_eq!(view(donor).identity(), view(joiner).identity());
    }
    let own = Inside::of(&pid(status, "own-dev-shm").to_string()).shm.unwrap();
    assert!(own.is_read_only() && own.super_options.contains("size=1024k"), "{own:?}");
    assert_eq!(Inside::of(&pid(status, "ipc-none-readonly").to_string()).shm, None);
}
